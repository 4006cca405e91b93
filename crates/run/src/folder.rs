//! A stage being written: begun, resumed, checkpointed, finished.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use problem::{Result, mistake};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::atomic::write_atomic;
use crate::identity::differences_of_environments;
use crate::json::{read_json, write_json};
use crate::manifest::{Files, LOG, MANIFEST, METRICS, STATE, hash_of_artifact, record_files};
use crate::status::{ENVIRONMENTS, environments_of, fingerprint_of, partial_of, publish, set_aside, write_fingerprint};
use crate::{Environment, Identity, Lock, Manifest, logs};

/// A stage being written, in `<stage>.partial`.
#[derive(Debug)]
pub struct Run {
    partial: PathBuf,
    folder: PathBuf,
    identity: Identity,
    environment: Environment,
    checkpoints: usize,
    _lock: Lock,
}

/// What is called right after every checkpoint, with the stage's kind and the number of its checkpoints.
type Hook = fn(&str, usize);

static ON_CHECKPOINT: OnceLock<Hook> = OnceLock::new();

/// Has `hook` called right after every checkpoint of this process. For tests, which end the process there.
pub fn on_checkpoint(hook: Hook) {
    _ = ON_CHECKPOINT.set(hook);
}

impl Run {
    /// Opens `<folder>.partial` and holds its lock. What an interrupted run of the same fingerprint left there, or set aside, is gone on
    /// from; what another fingerprint left is renamed to `<folder>.partial-<fingerprint>`, where a later run of that fingerprint finds it.
    ///
    /// # Errors
    /// Another process works in this folder, or the interrupted run was begun in another environment.
    pub fn begin(folder: &Path, identity: Identity, environment: Environment) -> Result<Self> {
        Self::open(folder, identity, environment, false)
    }

    /// The same, which goes on from an interrupted run in whatever environment it was begun; all of them are recorded.
    ///
    /// # Errors
    /// Another process works in this folder.
    pub fn begin_in_any_environment(folder: &Path, identity: Identity, environment: Environment) -> Result<Self> {
        Self::open(folder, identity, environment, true)
    }

    fn open(folder: &Path, identity: Identity, environment: Environment, accept: bool) -> Result<Self> {
        let (partial, fingerprint) = (partial_of(folder), identity.fingerprint());
        if let Some(other) = fingerprint_of(&partial).filter(|found| *found != fingerprint) {
            let _lock = lock(&partial)?;
            let kept = set_aside(folder, &other);
            fs_err::rename(&partial, &kept)?;
            tracing::warn!(
                "{}: an unfinished run with other settings is kept as {}; the same settings would continue it",
                folder.display(),
                kept.display()
            );
        }
        let own = set_aside(folder, &fingerprint);
        if own.exists() && !partial.exists() {
            fs_err::rename(&own, &partial)?;
        }
        fs_err::create_dir_all(partial.join(STATE))?;
        let lock = lock(&partial)?;
        if fingerprint_of(&partial).is_none() {
            write_fingerprint(&partial, &fingerprint)?;
        }
        let mut environments = environments_of(&partial);
        if let Some(earlier) = environments.last().filter(|earlier| !accept && **earlier != environment) {
            let differences = differences_of_environments(earlier, &environment).join(", ");
            let hint = "run it as before, or accept the environment; nothing is deleted";
            return Err(mistake(
                format!("{}: was begun in another environment: {differences}", folder.display()),
                hint,
            ));
        }
        if environments.last() != Some(&environment) {
            environments.push(environment.clone());
            write_json(&partial.join(STATE).join(ENVIRONMENTS), &environments)?;
        }
        logs::open_stage_log(&partial.join(LOG))?;
        Ok(Self { partial, folder: folder.to_owned(), identity, environment, checkpoints: 0, _lock: lock })
    }

    /// Where the stage's file `name` is written.
    pub fn path(&self, name: &str) -> PathBuf {
        self.partial.join(name)
    }

    /// A place in the pipeline's folder, for what may serve several stages; nobody's identity depends on it.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.partial.with_file_name(name)
    }

    /// What decides the result.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What moves the last bits of the result.
    pub fn environment(&self) -> &Environment {
        &self.environment
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
    pub fn checkpointed(&mut self) {
        self.checkpoints += 1;
        if let Some(hook) = ON_CHECKPOINT.get() {
            hook(&self.identity.stage, self.checkpoints);
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

    /// Records every file, drops the state, and puts the folder in its place. `artifacts` are what later stages read, by name, with their
    /// [`Files`]. What lies in [`crate::ADDED`] of a folder that was there is kept.
    pub fn finish(self, summary: Value, artifacts: &[(&str, Files)]) -> Result<Manifest> {
        let mut files = BTreeMap::new();
        record_files(&self.partial, "", &mut files)?;
        let artifacts =
            artifacts.iter().map(|(name, own)| ((*name).to_owned(), hash_of_artifact(&files, own))).collect();
        let mut earlier_environments = environments_of(&self.partial);
        earlier_environments.retain(|earlier| *earlier != self.environment);
        let manifest = Manifest {
            fingerprint: self.identity.fingerprint(),
            identity: self.identity,
            environment: self.environment,
            earlier_environments,
            program_version: env!("CARGO_PKG_VERSION").into(),
            artifacts,
            files,
            summary,
        };
        write_json(&self.partial.join(MANIFEST), &manifest)?;
        publish(&self.partial, &self.folder)?;
        Ok(manifest)
    }
}

/// The lock of an unfinished run.
fn lock(partial: &Path) -> Result<Lock> {
    Lock::take(&partial.join(STATE).join("lock")).map_err(|e| e.within(partial.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::ADDED;
    use crate::{Status, recover, status};
    use serde_json::json;

    fn identity(steps: u32) -> Identity {
        Identity::new("reward", 1, json!({"steps": steps}), 7)
    }

    fn environment(threads: u32) -> Environment {
        Environment::from([("threads".to_owned(), threads.to_string())])
    }

    fn begin(folder: &Path, steps: u32) -> Run {
        Run::begin(folder, identity(steps), environment(1)).unwrap()
    }

    fn look(folder: &Path, steps: u32) -> Status {
        status(folder, &identity(steps), &environment(1)).unwrap()
    }

    #[test]
    fn a_folder_appears_whole_and_then_is_up_to_date() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("reward");
        assert!(matches!(look(&folder, 1), Status::Absent));
        let mut run = begin(&folder, 1);
        write_atomic(&run.path("model"), b"weights").unwrap();
        run.log(&json!({"step": 0, "loss": 1.0})).unwrap();
        assert!(!folder.exists());
        let manifest = run.finish(json!({"accuracy": 0.7}), &[("reward-model", &["model"])]).unwrap();
        assert_eq!(manifest.files.keys().collect::<Vec<_>>(), ["model"]);
        assert!(!folder.join("state").exists());
        assert!(matches!(look(&folder, 1), Status::UpToDate(m) if *m == manifest));
        assert!(matches!(look(&folder, 2), Status::Changed(d) if d == ["config.steps"]));
        fs_err::write(folder.join("model"), "cut").unwrap();
        assert!(matches!(look(&folder, 1), Status::Damaged(p) if p.ends_with("model")));
    }

    #[test]
    fn an_interrupted_run_keeps_its_parts_and_another_fingerprint_renames_them() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("reward");
        assert_eq!(begin(&folder, 1).part("x", || 5).unwrap(), 5);
        assert!(matches!(look(&folder, 1), Status::Resumable));
        assert_eq!(begin(&folder, 1).part("x", || 6).unwrap(), 5);
        assert_eq!(begin(&folder, 2).part("x", || 6).unwrap(), 6);
        // The first is kept, and is gone on from when its settings are wanted again.
        assert!(matches!(look(&folder, 1), Status::Resumable));
        assert_eq!(begin(&folder, 1).part("x", || 7).unwrap(), 5);
        assert_eq!(begin(&folder, 2).part("x", || 7).unwrap(), 6);
    }

    #[test]
    fn another_environment_is_named_and_recorded_and_deletes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("reward");
        assert_eq!(begin(&folder, 1).part("x", || 5).unwrap(), 5);
        let found = status(&folder, &identity(1), &environment(2)).unwrap();
        let Status::OtherEnvironment { finished: None, differences } = found else { panic!("{found:?}") };
        assert_eq!(differences, ["threads 1 (now 2)"]);
        let error = Run::begin(&folder, identity(1), environment(2)).unwrap_err();
        assert!(error.to_string().contains("was begun in another environment: threads 1 (now 2)"), "{error}");
        // Whoever accepts it goes on from there.
        let mut run = Run::begin_in_any_environment(&folder, identity(1), environment(2)).unwrap();
        assert_eq!(run.part("x", || 6).unwrap(), 5);
        let manifest = run.finish(json!({}), &[]).unwrap();
        assert_eq!((manifest.environment, manifest.earlier_environments), (environment(2), vec![environment(1)]));
        let found = status(&folder, &identity(1), &environment(1)).unwrap();
        assert!(matches!(found, Status::OtherEnvironment { finished: Some(_), .. }), "{found:?}");
        assert!(matches!(status(&folder, &identity(1), &environment(2)).unwrap(), Status::UpToDate(_)));
    }

    #[test]
    fn two_processes_do_not_write_one_stage() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("reward");
        let first = begin(&folder, 1);
        for steps in [1, 2] {
            let error = Run::begin(&folder, identity(steps), environment(1)).unwrap_err();
            assert!(error.to_string().contains("another run is working here"), "{error}");
        }
        drop(first);
        begin(&folder, 1);
    }

    #[test]
    fn a_resumed_log_holds_every_step_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = begin(&dir.path().join("s"), 1);
        for step in 0..5 {
            run.log(&json!({"step": step})).unwrap();
        }
        run.rewind_log(3).unwrap();
        run.log(&json!({"step": 3})).unwrap();
        let text = fs_err::read_to_string(run.path(METRICS)).unwrap();
        assert_eq!(text, "{\"step\":0}\n{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n");
    }

    #[test]
    fn an_artifacts_hash_follows_its_bytes_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, model: &[u8], config: &[u8]| {
            let run = begin(&dir.path().join(name), 1);
            write_atomic(&run.path("model"), model).unwrap();
            write_atomic(&run.path("config.toml"), config).unwrap();
            run.finish(json!({}), &[("reward-model", &["model"])]).unwrap().artifacts
        };
        assert_eq!(write("a", b"1", b"x"), write("b", b"1", b"y"));
        assert_ne!(write("a", b"1", b"x"), write("c", b"2", b"x"));
    }

    /// A finished folder to which somebody added a file.
    fn with_something_added(folder: &Path) {
        begin(folder, 1).finish(json!({}), &[]).unwrap();
        fs_err::create_dir(folder.join(ADDED)).unwrap();
        fs_err::write(folder.join(ADDED).join("ann.json"), "1").unwrap();
    }

    #[test]
    fn what_was_added_to_a_folder_outlives_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("reward");
        with_something_added(&folder);
        let manifest = begin(&folder, 2).finish(json!({}), &[]).unwrap();
        assert!(manifest.files.is_empty(), "nobody's identity depends on it");
        assert_eq!(fs_err::read(folder.join(ADDED).join("ann.json")).unwrap(), b"1");
        assert!(matches!(look(&folder, 2), Status::UpToDate(_)));
    }

    #[test]
    fn what_was_added_outlives_a_kill_between_the_two_renames() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, old, partial) =
            (dir.path().join("reward"), dir.path().join(".reward.replaced"), dir.path().join("reward.partial"));
        // Killed behind the first rename: the old folder waits, the new one has its partial name.
        with_something_added(&folder);
        fs_err::rename(&folder, &old).unwrap();
        begin(&folder, 2).finish(json!({}), &[]).unwrap();
        fs_err::rename(&folder, &partial).unwrap();
        with_something_added(&old); // `finish` above carried it over
        assert!(matches!(look(&folder, 2), Status::UpToDate(_)), "also before it is recovered");
        recover(&folder).unwrap();
        assert!(folder.join(ADDED).join("ann.json").exists());
        assert!(!old.exists());
        // Killed behind the second one, before the old folder's additions were taken over.
        fs_err::rename(folder.join(ADDED), dir.path().join("x")).unwrap();
        fs_err::create_dir(&old).unwrap();
        fs_err::rename(dir.path().join("x"), old.join(ADDED)).unwrap();
        recover(&folder).unwrap();
        assert!(folder.join(ADDED).join("ann.json").exists());
        assert!(!old.exists());
    }

    #[test]
    fn a_kill_between_the_two_renames_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("reward");
        begin(&folder, 1).finish(json!({}), &[]).unwrap();
        fs_err::rename(&folder, dir.path().join("reward.partial")).unwrap();
        assert!(matches!(look(&folder, 1), Status::UpToDate(_)));
        assert!(!folder.exists(), "looking changes nothing");
        recover(&folder).unwrap();
        assert!(folder.join(MANIFEST).exists());
    }
}
