//! What can go wrong between a user's file and the canonical table.

/// This crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure, with the place where it happened; [`Error::hint`] is the remedy, printed on a line of its own.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Something of the user's is not as it must be.
    #[error("{place}: expected {expected}, found {found}")]
    Invalid {
        /// File, row and column where known.
        place: String,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
        /// The remedy.
        hint: String,
    },
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io(error) => run::file_hint(error),
            Self::Invalid { hint, .. } => Some(hint.clone()),
        }
    }
}

/// Shorthand for [`Error::Invalid`].
pub(crate) fn invalid(
    place: impl std::fmt::Display,
    expected: impl Into<String>,
    found: impl Into<String>,
    hint: impl Into<String>,
) -> Error {
    Error::Invalid { place: place.to_string(), expected: expected.into(), found: found.into(), hint: hint.into() }
}

/// What cannot happen with files of any content.
pub(crate) fn bug(place: impl std::fmt::Display, error: &impl std::fmt::Display) -> Error {
    invalid(place, "arrow to go along", error.to_string(), "report this as a bug")
}
