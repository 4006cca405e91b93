//! The status of a stage's folder: up to date, changed, resumable, damaged, not there. Looking at it changes nothing; [`recover`] ends what
//! a killed process had begun to end.

use std::path::{Path, PathBuf};

use problem::Result;

use crate::atomic::{sync_folder, write_atomic};
use crate::identity::differences_of_environments;
use crate::json::read_json;
use crate::manifest::{ADDED, MANIFEST, STATE};
use crate::{Environment, Identity, Manifest};

/// The status of a stage's folder, compared with what is wanted now.
#[derive(Debug)]
pub enum Status {
    /// Nothing to run.
    UpToDate(Box<Manifest>),
    /// An interrupted run of the same fingerprint can go on.
    Resumable,
    /// What is there has the wanted fingerprint, and was computed in an environment that may move its last bits.
    OtherEnvironment {
        /// The finished folder; none if an interrupted run can go on.
        finished: Option<Box<Manifest>>,
        /// Such as `threads 1 (now 2)`.
        differences: Vec<String>,
    },
    /// There is a finished folder, but of another fingerprint; these parts differ.
    Changed(Vec<String>),
    /// Files of a finished folder are missing or of another size.
    Damaged(String),
    /// Nothing there.
    Absent,
}

const FINGERPRINT: &str = "fingerprint";
pub(crate) const ENVIRONMENTS: &str = "environments.json";

/// Where an unfinished stage is written.
pub(crate) fn partial_of(folder: &Path) -> PathBuf {
    sibling(folder, "partial")
}

/// Where a finished folder waits while another takes its place: a name that nobody gives to a folder of their own.
pub(crate) fn old_of(folder: &Path) -> PathBuf {
    folder.with_file_name(format!(".{}.replaced", folder.file_name().unwrap_or_default().to_string_lossy()))
}

/// Where a finished stage lies: in its folder, or still under the partial name if a process was killed at its very end.
pub fn whole(folder: &Path) -> PathBuf {
    let partial = partial_of(folder);
    if partial.join(MANIFEST).exists() { partial } else { folder.to_owned() }
}

fn sibling(folder: &Path, ending: &str) -> PathBuf {
    folder.with_file_name(format!("{}.{ending}", folder.file_name().unwrap_or_default().to_string_lossy()))
}

/// Where a partial run of this fingerprint is kept while a run of another one works.
pub(crate) fn set_aside(folder: &Path, fingerprint: &str) -> PathBuf {
    sibling(folder, &format!("partial-{}", &fingerprint[..fingerprint.len().min(12)]))
}

/// The fingerprint of an unfinished run.
pub(crate) fn fingerprint_of(partial: &Path) -> Option<String> {
    fs_err::read_to_string(partial.join(STATE).join(FINGERPRINT)).ok()
}

pub(crate) fn write_fingerprint(partial: &Path, fingerprint: &str) -> Result<()> {
    write_atomic(&partial.join(STATE).join(FINGERPRINT), fingerprint.as_bytes())
}

/// The environments in which an unfinished run was computed, in their order.
pub(crate) fn environments_of(partial: &Path) -> Vec<Environment> {
    read_json(&partial.join(STATE).join(ENVIRONMENTS)).unwrap_or_default()
}

/// Compares a stage's folder with what is wanted. Changes nothing.
///
/// # Errors
/// A manifest that cannot be read.
pub fn status(folder: &Path, wanted: &Identity, environment: &Environment) -> Result<Status> {
    let partial = partial_of(folder);
    // A process that was killed at its very end leaves a whole folder under the partial name.
    let whole = whole(folder);
    let fingerprint = wanted.fingerprint();
    let mut changed = None;
    if let Some(manifest) = Manifest::read(&whole)? {
        if manifest.fingerprint == fingerprint {
            if let Some(path) = missing_file(&whole, &manifest) {
                return Ok(Status::Damaged(path));
            }
            let differences = differences_of_environments(&manifest.environment, environment);
            if differences.is_empty() {
                return Ok(Status::UpToDate(Box::new(manifest)));
            }
            return Ok(Status::OtherEnvironment { finished: Some(Box::new(manifest)), differences });
        }
        changed = Some(Status::Changed(wanted.differences(&manifest.identity)));
    }
    for unfinished in [partial, set_aside(folder, &fingerprint)] {
        if fingerprint_of(&unfinished).is_some_and(|found| found == fingerprint) {
            let earlier = environments_of(&unfinished);
            let differences =
                earlier.last().map(|earlier| differences_of_environments(earlier, environment)).unwrap_or_default();
            return Ok(if differences.is_empty() {
                Status::Resumable
            } else {
                Status::OtherEnvironment { finished: None, differences }
            });
        }
    }
    Ok(changed.unwrap_or(Status::Absent))
}

/// The first file of a finished folder that is missing or of another size.
fn missing_file(folder: &Path, manifest: &Manifest) -> Option<String> {
    manifest.files.iter().find_map(|(name, record)| {
        let path = folder.join(name);
        let whole = fs_err::metadata(&path).is_ok_and(|found| found.len() == record.bytes);
        (!whole).then(|| path.display().to_string())
    })
}

/// Ends what a process had begun to end when it was killed: a whole folder under the partial name takes its place, and what was added to
/// the folder before it is carried over. Whoever calls this holds the lock of the pipeline's folder.
///
/// # Errors
/// A file system that refuses.
pub fn recover(folder: &Path) -> Result<()> {
    let partial = partial_of(folder);
    if partial.join(MANIFEST).exists() {
        return publish(&partial, folder);
    }
    let old = old_of(folder);
    if old.exists() {
        if !folder.exists() {
            fs_err::rename(&old, folder)?; // its successor never came
            return Ok(());
        }
        carry(&old, folder)?;
    }
    Ok(())
}

/// Puts a whole folder, written at `partial`, in its place. What lies in [`ADDED`] of a folder that was there is carried over.
pub(crate) fn publish(partial: &Path, folder: &Path) -> Result<()> {
    let old = old_of(folder);
    if partial.join(STATE).exists() {
        fs_err::remove_dir_all(partial.join(STATE))?;
    }
    sync_folder(partial)?;
    if old.exists() && folder.exists() {
        carry(&old, folder)?; // an earlier end was interrupted
    }
    if folder.exists() {
        fs_err::rename(folder, &old)?;
    }
    fs_err::rename(partial, folder)?;
    if let Some(parent) = folder.parent() {
        sync_folder(parent)?;
    }
    if old.exists() {
        carry(&old, folder)?;
    }
    Ok(())
}

/// Takes what people added to a finished folder over into the one in its place, file by file, and removes the old folder. A file that the
/// new folder has already is newer, and stays.
fn carry(old: &Path, new: &Path) -> Result<()> {
    let (from, to) = (old.join(ADDED), new.join(ADDED));
    if from.exists() {
        fs_err::create_dir_all(&to)?;
        for entry in fs_err::read_dir(&from)? {
            let entry = entry?;
            let target = to.join(entry.file_name());
            if !target.exists() {
                fs_err::rename(entry.path(), target)?;
            }
        }
    }
    Ok(fs_err::remove_dir_all(old)?)
}
