//! A stage's folder: what makes it up to date, how it is written, how it resumes.
//!
//! A stage is a function from (config, inputs) to a folder. [`Identity`] is everything that decides the folder's bytes;
//! its hash is the fingerprint. [`Run::begin`] opens `<stage>.partial` beside the final folder, keeping what an
//! interrupted run with the same fingerprint left there; [`Run::finish`] writes the manifest, syncs, and renames, so that
//! a stage's folder is either whole or not there.
//!
//! ```
//! # fn main() -> problem::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let folder = dir.path().join("stage");
//! let identity = run::Identity::new("stage", 1, serde_json::json!({"steps": 3}), 7);
//! let mut run = run::Run::begin(&folder, identity.clone())?;
//! run::write_atomic(&run.path("answer.txt"), b"42")?;
//! run.finish(serde_json::json!({}))?;
//! assert!(matches!(run::standing(&folder, &identity)?, run::Standing::Finished(_)));
//! # Ok(()) }
//! ```

mod atomic;
mod folder;
mod identity;
mod interval_plot;
mod logs;
mod memory;
mod plot;
mod progress;
mod seed;

pub use atomic::{Aside, is_aside, remove_leftovers, write_aside, write_atomic};
pub use folder::{ADDED, Manifest, Run, Standing, read_json, standing, sync_folder, write_json};
pub use identity::{Identity, hash_bytes, hash_file};
pub use interval_plot::interval_plot;
pub use logs::{LogFormat, Phase, close_stage_log, phase, start as start_logs, step};
pub use memory::memory_mib;
pub use plot::{Series, bar_plot, line_plot, log_plot};
pub use problem::{is_expected_panic, unless_it_panics};
pub use progress::Progress;
pub use seed::{derive, rng};
