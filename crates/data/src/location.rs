//! A source's files: how they are encoded, and which local ones a folder or a pattern names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use problem::{Result, invalid};

use crate::input::Input;

/// In front of data sets of the hub.
pub(crate) const HUB: &str = "hf://datasets/";

/// How a file is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Parquet,
    /// An Arrow IPC file.
    Arrow,
    /// JSON lines, or one JSON array of objects.
    Json,
    Csv {
        delimiter: u8,
    },
}

/// How a text file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    None,
    Gzip,
    Zstd,
}

/// One file of a source.
#[derive(Clone, Debug)]
pub(crate) struct SourceFile {
    /// As messages name it.
    pub(crate) name: Arc<str>,
    /// As `source_row` names it: the path below what the user gave.
    pub(crate) short: Arc<str>,
    pub(crate) format: Format,
    pub(crate) packing: Packing,
    pub(crate) input: Input,
    /// Where it is on this machine; none of what is behind an address.
    pub(crate) path: Option<PathBuf>,
}

const KNOWN: &str = ".parquet, .arrow, .feather, .jsonl, .ndjson, .json, .csv or .tsv (texts also with .gz or .zst)";

impl SourceFile {
    pub(crate) fn new(name: String, short: String, input: Input) -> Result<Self> {
        let (format, packing) = encoding(&short).ok_or_else(|| {
            invalid(&name, format!("a file ending in {KNOWN}"), "another ending", "rename the file as what it is")
        })?;
        Ok(Self { name: name.into(), short: short.into(), format, packing, input, path: None })
    }
}

/// What a file name's ending says.
fn encoding(name: &str) -> Option<(Format, Packing)> {
    let lower = name.to_lowercase();
    let (bare, packing) = match lower.rsplit_once('.') {
        Some((bare, "gz")) => (bare, Packing::Gzip),
        Some((bare, "zst")) => (bare, Packing::Zstd),
        _ => (lower.as_str(), Packing::None),
    };
    let format = match bare.rsplit_once('.')?.1 {
        "parquet" | "pq" => Format::Parquet,
        "arrow" | "feather" | "ipc" => Format::Arrow,
        "jsonl" | "ndjson" | "json" => Format::Json,
        "csv" => Format::Csv { delimiter: b',' },
        "tsv" => Format::Csv { delimiter: b'\t' },
        _ => return None,
    };
    let packable = matches!(format, Format::Json | Format::Csv { .. });
    (packable || packing == Packing::None).then_some((format, packing))
}

/// The local files behind `sources`, for a fingerprint, each with its name as `source_row` gives it; remote ones are left out.
pub fn local_files(sources: &[String]) -> Result<Vec<(PathBuf, String)>> {
    let mut files = Vec::new();
    for source in sources.iter().filter(|s| !is_remote(s)) {
        files.extend(local(source)?);
    }
    Ok(files)
}

/// Is a source an address, and not a path?
pub fn is_remote(source: &str) -> bool {
    source.contains("://")
}

/// Paths of a local source, and each below what was given.
pub(crate) fn local(source: &str) -> Result<Vec<(PathBuf, String)>> {
    let path = Path::new(source);
    let short = |p: &Path, root: &Path| p.strip_prefix(root).unwrap_or(p).display().to_string();
    if path.is_dir() {
        let mut found = Vec::new();
        shards(path, &mut found)?;
        found.sort();
        if found.is_empty() {
            return Err(invalid(
                source,
                format!("a folder with files ending in {KNOWN}"),
                "none",
                "name another folder",
            ));
        }
        return Ok(found.into_iter().map(|p| (p.clone(), short(&p, path))).collect());
    }
    if path.exists() || !source.contains(['*', '?', '[']) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        fs_err::metadata(path)?;
        return Ok(vec![(path.to_owned(), name)]);
    }
    let wrong = |found: String| invalid(source, "files that match", found, "quote the pattern, and look at its folder");
    let matches = glob::glob(source).map_err(|e| wrong(e.to_string()))?;
    let mut found: Vec<PathBuf> = matches.filter_map(std::result::Result::ok).filter(|p| p.is_file()).collect();
    found.sort();
    if found.is_empty() {
        return Err(wrong("none".into()));
    }
    let root: PathBuf =
        path.components().take_while(|c| !c.as_os_str().to_string_lossy().contains(['*', '?', '['])).collect();
    Ok(found.into_iter().map(|p| (p.clone(), short(&p, &root))).collect())
}

/// Files of known encodings below a folder; names that begin with `.` or `_` are a writer's own.
fn shards(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(['.', '_']) {
            continue;
        }
        if path.is_dir() {
            shards(&path, found)?;
        } else if encoding(&name).is_some() {
            found.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_say_what_a_file_is() {
        assert_eq!(encoding("a.PARQUET"), Some((Format::Parquet, Packing::None)));
        assert_eq!(encoding("train.jsonl.gz"), Some((Format::Json, Packing::Gzip)));
        assert_eq!(encoding("a.tsv.zst"), Some((Format::Csv { delimiter: b'\t' }, Packing::Zstd)));
        assert_eq!(encoding("a.parquet.gz"), None);
        assert_eq!(encoding("README"), None);
    }
}
