//! What can go wrong in writing and reading back.

/// This crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure, with the place where it happened; [`Error::hint`] is the remedy, printed on a line of its own.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or a result is not as it must be.
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
    /// From the model.
    #[error(transparent)]
    Lm(#[from] lm::Error),
    /// From tokenizer or template.
    #[error(transparent)]
    Text(#[from] text::Error),
    /// From the run's folder.
    #[error(transparent)]
    Run(#[from] run::Error),
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Invalid { hint, .. } => Some(hint.clone()),
            Self::Lm(e) => e.hint(),
            Self::Text(e) => e.hint(),
            Self::Run(e) => e.hint(),
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Run(error.into())
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
