//! Files that are whole or not there.

use std::io::Write;
use std::path::Path;

use problem::{Result, invalid};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads a JSON file; a damaged one is an error that names it.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_slice(&fs_err::read(path)?).map_err(|e| {
        invalid(
            path.display().to_string(),
            "JSON as this program writes it",
            e.to_string(),
            "remove the stage's folder and run again",
        )
    })
}

/// Writes pretty JSON, atomically.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).expect("plain data");
    text.push(b'\n');
    write_atomic(path, &text)
}

/// Writes aside, syncs, renames: the file is whole or not there.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_aside(path, |aside| Ok(fs_err::File::create(aside)?.write_all(bytes)?))
}

/// The same for what `write` writes to the path that it is given.
pub fn write_aside(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let aside = path.with_file_name(format!("{}.part", path.file_name().unwrap_or_default().to_string_lossy()));
    write(&aside)?;
    let durable = || fs_err::OpenOptions::new().write(true).open(&aside)?.sync_all();
    Ok(durable().and_then(|()| fs_err::rename(&aside, path))?)
}

/// Makes the names in a folder durable.
pub fn sync_folder(folder: &Path) -> Result<()> {
    Ok(fs_err::File::open(folder)?.sync_all()?)
}
