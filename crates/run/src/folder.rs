//! The life of a stage's folder: partial, resumed, whole.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use problem::{Result, invalid};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::atomic::{is_aside, remove_leftovers, write_atomic};
use crate::{Identity, hash_bytes, hash_file, logs};

const LOG: &str = "log.txt";
const MANIFEST: &str = "manifest.json";
const METRICS: &str = "metrics.jsonl";
const STATE: &str = "state";
/// A folder in a finished stage for what is added to it later: no manifest lists it, and the stage run again keeps it.
pub const ADDED: &str = "adapted";

/// Size and SHA-256 of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    bytes: u64,
    sha256: String,
}

/// `manifest.json`: what a finished stage is and how it came about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Hash of `identity`.
    pub fingerprint: String,
    /// What decided the folder's bytes.
    pub identity: Identity,
    /// The program that wrote it.
    pub program_version: String,
    /// Hash over `files`: the identity of this folder's content for the stages that read it.
    pub content: String,
    /// Every file but the metrics, the log and this one.
    pub files: BTreeMap<String, FileRecord>,
    /// What the stage reports about itself.
    pub summary: Value,
}

/// How a stage's folder stands to what is wanted now.
#[derive(Debug)]
pub enum Standing {
    /// Up to date: nothing to run.
    Finished(Box<Manifest>),
    /// An interrupted run of the same fingerprint can go on.
    Resumable,
    /// There is a finished folder, but of another fingerprint; these parts differ.
    Changed(Vec<String>),
    /// Files of a finished folder are missing or of another size.
    Damaged(String),
    /// Nothing there.
    Absent,
}

/// A stage being written, in `<stage>.partial`.
#[derive(Debug)]
pub struct Run {
    partial: PathBuf,
    folder: PathBuf,
    identity: Identity,
    checkpoints: usize,
}

fn partial_of(folder: &Path) -> PathBuf {
    folder.with_file_name(format!("{}.partial", folder.file_name().unwrap_or_default().to_string_lossy()))
}

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

/// Makes the names in a folder durable.
pub fn sync_folder(folder: &Path) -> Result<()> {
    Ok(fs_err::File::open(folder)?.sync_all()?)
}

/// Compares a stage's folder with what is wanted.
pub fn standing(folder: &Path, wanted: &Identity) -> Result<Standing> {
    let partial = partial_of(folder);
    // A kill between the two renames of `finish` leaves a complete partial folder.
    if !folder.exists() && partial.join(MANIFEST).exists() {
        if partial.join(STATE).exists() {
            fs_err::remove_dir_all(partial.join(STATE))?;
        }
        fs_err::rename(&partial, folder)?;
    }
    if folder.join(MANIFEST).exists() {
        let manifest: Manifest = read_json(&folder.join(MANIFEST))?;
        if manifest.fingerprint == wanted.fingerprint() {
            for (name, record) in &manifest.files {
                let path = folder.join(name);
                if fs_err::metadata(&path).map(|m| m.len()).ok() != Some(record.bytes) {
                    return Ok(Standing::Damaged(path.display().to_string()));
                }
            }
            return Ok(Standing::Finished(Box::new(manifest)));
        }
        if !resumable(&partial, wanted) {
            return Ok(Standing::Changed(wanted.differences(&manifest.identity)));
        }
    }
    Ok(if resumable(&partial, wanted) { Standing::Resumable } else { Standing::Absent })
}

fn resumable(partial: &Path, wanted: &Identity) -> bool {
    fs_err::read_to_string(partial.join(STATE).join("fingerprint")).is_ok_and(|f| f == wanted.fingerprint())
}

impl Run {
    /// Opens `<folder>.partial`, keeping its state if it belongs to the same fingerprint, else starting empty.
    pub fn begin(folder: &Path, identity: Identity) -> Result<Self> {
        let partial = partial_of(folder);
        if !resumable(&partial, &identity) {
            if partial.exists() {
                fs_err::remove_dir_all(&partial)?;
            }
            fs_err::create_dir_all(partial.join(STATE))?;
            write_atomic(&partial.join(STATE).join("fingerprint"), identity.fingerprint().as_bytes())?;
        }
        logs::open_stage_log(&partial.join(LOG))?;
        Ok(Self { partial, folder: folder.to_owned(), identity, checkpoints: 0 })
    }

    /// Where the stage's file `name` is written.
    pub fn path(&self, name: &str) -> PathBuf {
        self.partial.join(name)
    }

    /// A place beside the stage's folder, for what may serve several stages; nobody's identity depends on it.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.partial.with_file_name(name)
    }

    /// What decides the folder's bytes.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where the file `name` of the unfinished state lies; gone once the stage is finished.
    pub fn state(&self, name: &str) -> PathBuf {
        self.partial.join(STATE).join(name)
    }

    /// The stage's kind.
    pub fn stage(&self) -> &str {
        &self.identity.stage
    }

    /// The run's seed.
    pub fn seed(&self) -> u64 {
        self.identity.seed
    }

    /// A random stream of this stage.
    pub fn rng(&self, path: &[&str]) -> rand_chacha::ChaCha8Rng {
        let mut names = vec![self.identity.stage.as_str()];
        names.extend(path);
        crate::rng(self.identity.seed, &names)
    }

    /// Keeps an intermediate result: computed once, read back by a resumed run.
    pub fn part<T: Serialize + DeserializeOwned>(&mut self, name: &str, compute: impl FnOnce() -> T) -> Result<T> {
        match self.finished_part(name)? {
            Some(value) => Ok(value),
            None => self.save_part(name, compute()),
        }
    }

    /// The intermediate result `name`, if an earlier run or step saved it.
    pub fn finished_part<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.state(&format!("{name}.json"));
        if path.exists() { read_json(&path).map(Some) } else { Ok(None) }
    }

    /// Saves an intermediate result and gives it back.
    pub fn save_part<T: Serialize>(&mut self, name: &str, value: T) -> Result<T> {
        write_atomic(&self.state(&format!("{name}.json")), &serde_json::to_vec(&value).expect("plain data"))?;
        self.checkpointed();
        Ok(value)
    }

    /// To be called right after a checkpoint is on disk.
    ///
    /// `IDIOLECT_ABORT_AFTER=<stage>:<n>` makes the process die behind the n-th checkpoint of a stage, without cleaning
    /// up: the tests kill the program this way at a known point.
    pub fn checkpointed(&mut self) {
        self.checkpoints += 1;
        let wanted = format!("{}:{}", self.identity.stage, self.checkpoints);
        if std::env::var("IDIOLECT_ABORT_AFTER").is_ok_and(|v| v == wanted) {
            tracing::warn!("aborting after checkpoint {wanted}, as IDIOLECT_ABORT_AFTER asks");
            std::process::abort();
        }
    }

    /// Appends one line to `metrics.jsonl`.
    pub fn log(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string(line).expect("plain data");
        tracing::debug!("{text}");
        text.push('\n');
        let mut file = fs_err::OpenOptions::new().create(true).append(true).open(self.path(METRICS))?;
        Ok(file.write_all(text.as_bytes())?)
    }

    /// Forgets the lines of steps that a resumed run will take again: those with `step` at `step` or later.
    pub fn rewind_log(&mut self, step: usize) -> Result<()> {
        let path = self.path(METRICS);
        if !path.exists() {
            return Ok(());
        }
        let text = fs_err::read_to_string(&path)?;
        let keep = |line: &&str| {
            serde_json::from_str::<Value>(line).is_ok_and(|v| v["step"].as_u64().is_none_or(|s| s < step as u64))
        };
        let kept: String = text.lines().filter(keep).flat_map(|l| [l, "\n"]).collect();
        write_atomic(&path, kept.as_bytes())
    }

    /// Records every file, drops the state, and puts the folder in its place. What lies in [`ADDED`] of a folder that stood there is kept.
    pub fn finish(self, summary: Value) -> Result<Manifest> {
        let mut files = BTreeMap::new();
        record_files(&self.partial, "", &mut files)?;
        let content = hash_bytes(serde_json::to_string(&files).expect("plain data").as_bytes());
        let manifest = Manifest {
            fingerprint: self.identity.fingerprint(),
            identity: self.identity,
            program_version: env!("CARGO_PKG_VERSION").into(),
            content,
            files,
            summary,
        };
        write_json(&self.partial.join(MANIFEST), &manifest)?;
        fs_err::remove_dir_all(self.partial.join(STATE))?;
        sync_folder(&self.partial)?;
        let old = self
            .folder
            .with_file_name(format!("{}.old", self.folder.file_name().unwrap_or_default().to_string_lossy()));
        if old.exists() {
            carry(&old, &self.folder)?; // an earlier end was interrupted
            fs_err::remove_dir_all(&old)?;
        }
        if self.folder.exists() {
            fs_err::rename(&self.folder, &old)?;
        }
        fs_err::rename(&self.partial, &self.folder)?;
        if let Some(parent) = self.folder.parent() {
            sync_folder(parent)?;
        }
        if old.exists() {
            carry(&old, &self.folder)?;
            fs_err::remove_dir_all(&old)?;
        }
        Ok(manifest)
    }
}

/// Takes what people added to a finished folder over into the one in its place.
fn carry(old: &Path, new: &Path) -> Result<()> {
    let (from, to) = (old.join(ADDED), new.join(ADDED));
    if from.exists() && new.exists() && !to.exists() {
        fs_err::rename(from, to)?;
    }
    Ok(())
}

fn record_files(root: &Path, below: &str, files: &mut BTreeMap<String, FileRecord>) -> Result<()> {
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
    use serde_json::json;

    fn identity(steps: u32) -> Identity {
        Identity::new("reward", 1, json!({"steps": steps}), 7)
    }

    #[test]
    fn a_folder_appears_whole_and_then_stands() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("reward");
        assert!(matches!(standing(&folder, &identity(1)).unwrap(), Standing::Absent));
        let mut run = Run::begin(&folder, identity(1)).unwrap();
        write_atomic(&run.path("model"), b"weights").unwrap();
        run.log(&json!({"step": 0, "loss": 1.0})).unwrap();
        assert!(!folder.exists());
        let manifest = run.finish(json!({"accuracy": 0.7})).unwrap();
        assert_eq!(manifest.files.keys().collect::<Vec<_>>(), ["model"]);
        assert!(!folder.join("state").exists());
        assert!(matches!(standing(&folder, &identity(1)).unwrap(), Standing::Finished(m) if *m == manifest));
        assert!(matches!(standing(&folder, &identity(2)).unwrap(), Standing::Changed(d) if d == ["config.steps"]));
        fs_err::write(folder.join("model"), "cut").unwrap();
        assert!(matches!(standing(&folder, &identity(1)).unwrap(), Standing::Damaged(p) if p.ends_with("model")));
    }

    #[test]
    fn an_interrupted_run_keeps_its_parts_and_another_fingerprint_does_not_see_them() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("reward");
        let mut run = Run::begin(&folder, identity(1)).unwrap();
        assert_eq!(run.part("x", || 5).unwrap(), 5);
        drop(run);
        assert!(matches!(standing(&folder, &identity(1)).unwrap(), Standing::Resumable));
        let mut run = Run::begin(&folder, identity(1)).unwrap();
        assert_eq!(run.part("x", || 6).unwrap(), 5);
        drop(run);
        let mut run = Run::begin(&folder, identity(2)).unwrap();
        assert_eq!(run.part("x", || 6).unwrap(), 6);
    }

    #[test]
    fn a_resumed_log_holds_every_step_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = Run::begin(&dir.path().join("s"), identity(1)).unwrap();
        for step in 0..5 {
            run.log(&json!({"step": step})).unwrap();
        }
        run.rewind_log(3).unwrap();
        run.log(&json!({"step": 3})).unwrap();
        let text = fs_err::read_to_string(run.path(METRICS)).unwrap();
        assert_eq!(text, "{\"step\":0}\n{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n");
    }

    #[test]
    fn the_content_hash_follows_the_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let run = Run::begin(&dir.path().join(name), identity(1)).unwrap();
            write_atomic(&run.path("model"), bytes).unwrap();
            run.finish(json!({})).unwrap().content
        };
        assert_eq!(write("a", b"1"), write("b", b"1"));
        assert_ne!(write("a", b"1"), write("c", b"2"));
    }

    #[test]
    fn what_was_added_to_a_folder_outlives_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("reward");
        Run::begin(&folder, identity(1)).unwrap().finish(json!({})).unwrap();
        fs_err::create_dir(folder.join(ADDED)).unwrap();
        fs_err::write(folder.join(ADDED).join("ann.json"), "1").unwrap();
        let manifest = Run::begin(&folder, identity(2)).unwrap().finish(json!({})).unwrap();
        assert!(manifest.files.is_empty(), "nobody's identity depends on it");
        assert_eq!(fs_err::read(folder.join(ADDED).join("ann.json")).unwrap(), b"1");
        assert!(matches!(standing(&folder, &identity(2)).unwrap(), Standing::Finished(_)));
        // Also if the last end stopped before it had cleared away.
        fs_err::rename(folder.join(ADDED), dir.path().join("x")).unwrap();
        fs_err::create_dir(dir.path().join("reward.old")).unwrap();
        fs_err::rename(dir.path().join("x"), dir.path().join("reward.old").join(ADDED)).unwrap();
        Run::begin(&folder, identity(3)).unwrap().finish(json!({})).unwrap();
        assert!(folder.join(ADDED).join("ann.json").exists() && !dir.path().join("reward.old").exists());
    }

    #[test]
    fn a_kill_between_the_two_renames_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("reward");
        Run::begin(&folder, identity(1)).unwrap().finish(json!({})).unwrap();
        fs_err::rename(&folder, dir.path().join("reward.partial")).unwrap();
        assert!(matches!(standing(&folder, &identity(1)).unwrap(), Standing::Finished(_)));
    }
}
