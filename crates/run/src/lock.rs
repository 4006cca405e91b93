//! A file that one process holds at a time.

use std::fs::TryLockError;
use std::path::Path;

use problem::{Problem, Result, mistake};

/// The lock of a folder's work, until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: fs_err::File,
}

impl Lock {
    /// Takes the lock of the file `path`, which is made if it does not exist.
    ///
    /// # Errors
    /// Another process holds it.
    pub fn take(path: &Path) -> Result<Self> {
        let file = fs_err::OpenOptions::new().create(true).append(true).open(path)?;
        match file.file().try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => {
                let folder = path.parent().unwrap_or(path).display();
                let hint = "wait for it, or stop it; a stopped run is continued by the same command";
                Err(mistake(format!("{folder}: another run is working here"), hint))
            }
            Err(TryLockError::Error(error)) => Err(Problem::from(error).within(path.display())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_one_holders_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".lock");
        let first = Lock::take(&path).unwrap();
        let error = Lock::take(&path).unwrap_err();
        assert!(error.to_string().contains("another run is working here"), "{error}");
        drop(first);
        Lock::take(&path).unwrap();
    }
}
