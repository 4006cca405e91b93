//! Files that appear whole: written under a name of their own in the same folder, synced, renamed.
//!
//! The name of a file under construction is `.NAME.PID-COUNT-RANDOM.part`: nobody else's file is in its place, folder
//! listings skip it by its dot, and two writers of one target do not meet. Whoever writes it holds a lock on it. What a killed
//! process leaves is locked by nobody, and goes when the next command writes into that folder.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use problem::{Result, unwritable};

const ENDING: &str = "part";

/// Bytes of the target's name that stay in the name of the file under construction: both are names of at most 255.
const KEPT: usize = 180;

/// A file under construction; without [`Aside::publish`] it goes again.
#[derive(Debug)]
pub struct Aside {
    target: PathBuf,
    path: PathBuf,
    file: File,
    published: bool,
}

impl Aside {
    /// A new, empty file beside `target`. The first one in a folder removes what killed processes left there.
    ///
    /// # Errors
    /// A folder that is not there or cannot be written to.
    pub fn new(target: &Path) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        sweep_once(folder_of(target));
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let kept = (0..=name.len().min(KEPT)).rev().find(|at| name.is_char_boundary(*at)).unwrap_or(0);
        loop {
            let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let random: u32 = rand::random();
            let path = target.with_file_name(format!(".{}.{process}-{count}-{random:08x}.{ENDING}", &name[..kept]));
            let file = match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(unwritable(target.display(), &error)),
            };
            let aside = Self { target: target.to_owned(), path, file, published: false };
            // Another process may have taken the file, new and not yet locked, for a leftover. Where a file system has no locks, nobody
            // removes leftovers.
            match aside.file.try_lock() {
                Ok(()) | Err(TryLockError::Error(_)) if aside.is_there() => return Ok(aside),
                _ => {}
            }
        }
    }

    fn is_there(&self) -> bool {
        let (by_name, ours) = (std::fs::metadata(&self.path), self.file.metadata());
        matches!((by_name, ours), (Ok(a), Ok(b)) if (a.dev(), a.ino()) == (b.dev(), b.ino()))
    }

    /// Where to write. A library that opens this path must not remove what is there.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file, open for reading and writing.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// What was written becomes the target, durably and in one step.
    ///
    /// # Errors
    /// A disk that is full or fails; nothing is left then, and a target that was there is as it was.
    pub fn publish(mut self) -> Result<()> {
        let place = |error: std::io::Error| unwritable(self.target.display(), &error);
        self.file.sync_all().and_then(|()| fs_err::rename(&self.path, &self.target)).map_err(place)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if !self.published {
            _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Writes aside, syncs, renames: the file is whole or not there.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut aside = Aside::new(path)?;
    aside.file().write_all(bytes).map_err(|error| unwritable(path.display(), &error))?;
    aside.publish()
}

/// The same for what `write` writes to the path that it is given.
pub fn write_aside(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let aside = Aside::new(path)?;
    write(aside.path())?;
    aside.publish()
}

/// Makes the names in a folder durable.
pub fn sync_folder(folder: &Path) -> Result<()> {
    Ok(fs_err::File::open(folder)?.sync_all()?)
}

/// Is this the name of a file under construction, or of one that a killed process left?
pub fn is_aside(name: &str) -> bool {
    let parts = || {
        let (front, id) = name.strip_prefix('.')?.strip_suffix(ENDING)?.strip_suffix('.')?.rsplit_once('.')?;
        let mut id = id.split('-');
        let (process, count, random) = (id.next()?, id.next()?, id.next()?);
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let hex = random.len() == 8 && random.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        (!front.is_empty() && digits(process) && digits(count) && hex && id.next().is_none()).then_some(())
    };
    parts().is_some()
}

/// Removes from a folder, not from those in it, what killed processes left under construction. What cannot be read or removed stays.
pub fn remove_leftovers(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if !is_aside(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let path = entry.path();
        // No write access is asked for: a lock needs none.
        let unused = fs_err::File::open(&path)
            .is_ok_and(|file| file.file().try_lock().is_ok() && fs_err::remove_file(&path).is_ok());
        if unused {
            tracing::debug!("removed {}, which a killed process left", path.display());
        }
    }
}

fn folder_of(target: &Path) -> &Path {
    target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Looks for leftovers once in every folder that this process writes to.
fn sweep_once(folder: &Path) {
    static SWEPT: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);
    let mut swept = SWEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if swept.get_or_insert_default().insert(folder.to_owned()) {
        drop(swept);
        remove_leftovers(folder);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_users_own_part_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("X");
        fs_err::write(dir.path().join("X.part"), "mine").unwrap();
        fs_err::write(dir.path().join(".X.part"), "mine too").unwrap();
        write_atomic(&target, b"whole").unwrap();
        write_aside(&target, |aside| Ok(fs_err::write(aside, "whole again")?)).unwrap();
        assert_eq!(names(dir.path()), [".X.part", "X", "X.part"]);
        assert_eq!(fs_err::read_to_string(dir.path().join("X.part")).unwrap(), "mine");
        assert_eq!(fs_err::read_to_string(target).unwrap(), "whole again");
    }

    #[test]
    fn writers_of_one_target_do_not_meet() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("X");
        std::thread::scope(|scope| {
            for writer in 0..8u8 {
                let target = &target;
                scope.spawn(move || {
                    for _ in 0..50 {
                        let text = vec![b'a' + writer; 10_000 + usize::from(writer)];
                        write_aside(target, |aside| {
                            for piece in text.chunks(1000) {
                                OpenOptions::new().append(true).open(aside)?.write_all(piece)?;
                            }
                            Ok(())
                        })
                        .unwrap();
                        let read = fs_err::read(target).unwrap();
                        assert_eq!(read.len(), 10_000 + usize::from(read[0] - b'a'));
                        assert!(read.iter().all(|b| *b == read[0]), "two writers in one file");
                    }
                });
            }
        });
        assert_eq!(names(dir.path()), ["X"]);
    }

    #[test]
    fn a_failure_or_a_panic_leaves_nothing_and_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("X");
        write_atomic(&target, b"old").unwrap();
        let failed = write_aside(&target, |aside| {
            fs_err::write(aside, "half")?;
            Err(problem::machine("the disk is full", ""))
        });
        assert_eq!(failed.unwrap_err().to_string(), "the disk is full");
        _ = crate::unless_it_panics(|| write_aside(&target, |_| panic!("a bug")));
        assert_eq!(names(dir.path()), ["X"]);
        assert_eq!(fs_err::read_to_string(&target).unwrap(), "old");
        let message = write_atomic(&dir.path().join("none/X"), b"").unwrap_err().to_string();
        assert!(message.contains("none/X: No such file"), "{message}");
        assert!(!message.contains(ENDING), "{message}");
    }

    #[test]
    fn long_names_are_written_too() {
        let dir = tempfile::tempdir().unwrap();
        let name = "é".repeat(127);
        write_atomic(&dir.path().join(&name), b"x").unwrap();
        assert_eq!(names(dir.path()), [name]);
    }

    #[test]
    fn names_under_construction_are_told_from_all_others() {
        let dir = tempfile::tempdir().unwrap();
        let aside = Aside::new(&dir.path().join("model.safetensors")).unwrap();
        assert!(is_aside(&aside.path().file_name().unwrap().to_string_lossy()));
        for name in
            ["X.part", ".X.part", ".X.1-2.part", ".X.1-2-0000000g.part", ".1-2-00000000.part", "X.1-2-00000000.part"]
        {
            assert!(!is_aside(name), "{name}");
        }
    }

    #[test]
    fn what_a_killed_process_left_goes_and_what_a_living_one_writes_stays() {
        // This test, run once more as a process of its own, that stops in the middle of a file.
        const FOLDER: &str = "RUN_TEST_ASIDE_FOLDER";
        if let Some(folder) = std::env::var_os(FOLDER) {
            let mut aside = Aside::new(&Path::new(&folder).join("X")).unwrap();
            aside.file().write_all(b"half").unwrap();
            fs_err::write(Path::new(&folder).join("ready"), "").unwrap();
            std::thread::sleep(std::time::Duration::from_secs(60));
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let name = "atomic::tests::what_a_killed_process_left_goes_and_what_a_living_one_writes_stays";
        let mut other = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(FOLDER, dir.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !dir.path().join("ready").exists() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let parts = || names(dir.path()).iter().filter(|n| is_aside(n)).count();
        remove_leftovers(dir.path());
        assert_eq!(parts(), 1, "the other process lives");
        other.kill().unwrap();
        other.wait().unwrap();
        assert_eq!(parts(), 1, "nobody has cleaned up");
        write_atomic(&dir.path().join("Y"), b"y").unwrap();
        assert_eq!(names(dir.path()), ["Y", "ready"]);
    }
}
