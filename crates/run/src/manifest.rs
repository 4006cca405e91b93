//! `manifest.json`: what a finished stage is and how it came about.

use std::collections::BTreeMap;
use std::path::Path;

use problem::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::atomic::{is_aside, remove_leftovers};
use crate::json::read_json;
use crate::{Environment, Identity, hash_bytes, hash_file};

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const LOG: &str = "log.txt";
pub(crate) const METRICS: &str = "metrics.jsonl";
pub(crate) const STATE: &str = "state";
/// A folder in a finished stage for what is added to it later: no manifest lists it, and the stage run again keeps it.
pub const ADDED: &str = "adapted";

/// Size and SHA-256 of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// `manifest.json`: what a finished stage is and how it came about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Hash of `identity`.
    pub fingerprint: String,
    /// What decided the result.
    pub identity: Identity,
    /// What moved its last bits: the environment in which the stage ended.
    #[serde(default)]
    pub environment: Environment,
    /// Other environments in which parts of it were computed before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier_environments: Vec<Environment>,
    /// The program that wrote it.
    pub program_version: String,
    /// What later stages read, by name: a hash over the bytes of its files. No log, metrics, configuration or report is part of it.
    #[serde(default)]
    pub artifacts: BTreeMap<String, String>,
    /// Every file but the metrics, the log and this one.
    pub files: BTreeMap<String, FileRecord>,
    /// What the stage reports about itself.
    pub summary: Value,
}

impl Manifest {
    /// The manifest in `folder`, if there is one.
    ///
    /// # Errors
    /// A file that is no manifest.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(MANIFEST);
        if path.exists() { read_json(&path).map(Some) } else { Ok(None) }
    }
}

/// The files of an artifact: names below the stage's folder, each a whole name, `*.ending` or `beginning*` for
/// files directly in the folder, or `folder/` for everything below a folder.
pub type Files<'a> = &'a [&'a str];

fn belongs(name: &str, files: Files) -> bool {
    let inside = name.contains('/');
    files.iter().any(|pattern| match (pattern.strip_prefix('*'), pattern.strip_suffix('*'), pattern.ends_with('/')) {
        (Some(ending), ..) => name.ends_with(ending) && !inside,
        (None, Some(beginning), _) => name.starts_with(beginning) && !inside,
        (None, None, true) => name.starts_with(pattern),
        (None, None, false) => name == *pattern,
    })
}

/// A hash over the names and hashes of an artifact's files.
pub(crate) fn hash_of_artifact(records: &BTreeMap<String, FileRecord>, files: Files) -> String {
    let lines: Vec<String> = records
        .iter()
        .filter(|(name, _)| belongs(name, files))
        .map(|(name, record)| format!("{name} {}\n", record.sha256))
        .collect();
    hash_bytes(lines.concat().as_bytes())
}

/// Sizes and hashes of all files below `root`, which are made durable.
pub(crate) fn record_files(root: &Path, below: &str, files: &mut BTreeMap<String, FileRecord>) -> Result<()> {
    remove_leftovers(&root.join(below));
    for entry in fs_err::read_dir(root.join(below))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_aside(&name) {
            continue;
        }
        let relative = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        if entry.file_type()?.is_dir() {
            if relative != STATE {
                record_files(root, &relative, files)?;
            }
        } else if relative != METRICS && relative != LOG && relative != MANIFEST {
            let file = fs_err::File::open(entry.path())?;
            file.sync_all()?;
            let bytes = file.metadata()?.len();
            files.insert(relative, FileRecord { bytes, sha256: hash_file(&entry.path())? });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_is_its_files_and_nothing_else() {
        let record = |sha256: &str| FileRecord { bytes: 1, sha256: sha256.into() };
        let files = |model: &str, config: &str| {
            BTreeMap::from([
                ("model.safetensors".to_owned(), record(model)),
                ("adapters/ann/a.json".to_owned(), record("a")),
                ("config.toml".to_owned(), record(config)),
            ])
        };
        let hash = |model, config, of: Files| hash_of_artifact(&files(model, config), of);
        assert_eq!(hash("1", "x", &["*.safetensors"]), hash("1", "y", &["*.safetensors"]));
        assert_ne!(hash("1", "x", &["*.safetensors"]), hash("2", "x", &["*.safetensors"]));
        assert_ne!(hash("1", "x", &["model.safetensors"]), hash("2", "x", &["model.safetensors"]));
        assert_ne!(hash("1", "x", &["adapters/"]), hash("1", "x", &[]));
        assert_eq!(hash("1", "x", &["*.json"]), hash("1", "x", &[]), "an ending speaks of the folder itself");
    }
}
