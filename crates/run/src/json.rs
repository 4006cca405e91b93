//! JSON files of a run.

use std::path::Path;

use problem::{Result, invalid};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::atomic::write_atomic;

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
