//! Hashes of source files, each read once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use problem::Result;

/// Hashes by path, size and time of change: a matrix asks for the same files in every cell.
#[derive(Debug, Default)]
pub(crate) struct Hashes {
    known: RefCell<HashMap<(PathBuf, u64, SystemTime), String>>,
}

impl Hashes {
    /// SHA-256 of a file.
    pub(crate) fn of(&self, file: &Path) -> Result<String> {
        let metadata = fs_err::metadata(file)?;
        let key = (file.to_owned(), metadata.len(), metadata.modified()?);
        if let Some(known) = self.known.borrow().get(&key) {
            return Ok(known.clone());
        }
        let hash = run::hash_file(file)?;
        self.known.borrow_mut().insert(key, hash.clone());
        Ok(hash)
    }
}
