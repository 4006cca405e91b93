//! What can go wrong with a stage's folder.

/// This crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure, with the place where it happened; [`Error::hint`] is the remedy, printed on a line of its own.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A file of ours does not hold what we wrote.
    #[error("{place}: expected {expected}, found {found}")]
    Invalid {
        /// File, and field where known.
        place: String,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
        /// The remedy.
        hint: String,
    },
    /// Another process works on this folder.
    #[error("{0}: another run is working here")]
    Locked(String),
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io(error) => file_hint(error),
            Self::Invalid { hint, .. } => Some(hint.clone()),
            Self::Locked(_) => Some("wait for it, or stop it; a stopped run is continued by the same command".into()),
        }
    }
}

/// Advice where the user's file is at fault rather than the disk.
pub fn file_hint(error: &std::io::Error) -> Option<String> {
    use std::io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | PermissionDenied | IsADirectory | NotADirectory)
        .then(|| "check that the path is right and can be read".into())
}
