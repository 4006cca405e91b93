//! A stage's folder: what makes it up to date, how it is written, how it resumes.
//!
//! A stage is a function from (config, inputs) to a folder. [`Identity`] is everything that decides the result; its hash is the
//! fingerprint. The [`Environment`] moves last bits only and is recorded apart. [`Run::begin`] opens `<stage>.partial` next to the final
//! folder, going on from what an interrupted run with the same fingerprint left; [`Run::finish`] writes the manifest, syncs, and renames, so
//! that a stage's folder is either whole or not there.
//!
//! ```
//! # fn main() -> problem::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let folder = dir.path().join("stage");
//! let identity = run::Identity::new("stage", 1, serde_json::json!({"steps": 3}), 7);
//! let environment = run::Environment::from([("threads".to_owned(), "1".to_owned())]);
//! let run = run::Run::begin(&folder, identity.clone(), environment.clone())?;
//! run::write_atomic(&run.path("answer.txt"), b"42")?;
//! run.finish(serde_json::json!({}), &[("answer", &["answer.txt"])])?;
//! assert!(matches!(run::status(&folder, &identity, &environment)?, run::Status::UpToDate(_)));
//! # Ok(()) }
//! ```

mod atomic;
mod bars;
mod folder;
mod identity;
mod json;
mod lock;
mod logs;
mod manifest;
mod memory;
mod progress;
mod seed;
mod status;
mod watch;

pub use atomic::{Aside, is_aside, remove_leftovers, sync_folder, write_aside, write_atomic};
pub use folder::{Run, on_checkpoint};
pub use identity::{Environment, Identity, hash_bytes, hash_file};
pub use json::{read_json, write_json};
pub use lock::Lock;
pub use logs::{LogFormat, Phase, close_stage_log, phase, start as start_logs, step};
pub use manifest::{ADDED, Files, Manifest};
pub use memory::memory_mib;
pub use problem::{is_expected_panic, unless_it_panics};
pub use progress::Progress;
pub use seed::{derive, rng};
pub use status::{Status, recover, status, whole};
