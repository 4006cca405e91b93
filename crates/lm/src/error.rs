//! What can go wrong between a folder of weights and a number.

/// This crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure, with the place where it happened; [`Error::hint`] is the remedy, printed on a line of its own.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something of the user's is not as it must be.
    #[error("{place}: expected {expected}, found {found}")]
    Invalid {
        /// File, and tensor or field where known.
        place: String,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
        /// The remedy.
        hint: String,
    },
    /// Training left the finite numbers.
    #[error("{place}: {what} is not finite")]
    NotFinite {
        /// Stage, step, users and rows.
        place: String,
        /// Loss or gradient.
        what: String,
    },
    /// A file could not be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// From the run's folder.
    #[error(transparent)]
    Run(#[from] run::Error),
    /// From tokenizer or template.
    #[error(transparent)]
    Text(#[from] text::Error),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Invalid { hint, .. } => Some(hint.clone()),
            Self::NotFinite { .. } => Some("lower the learning rate, or train in float32 (`--dtype float32`)".into()),
            Self::Run(e) => e.hint(),
            Self::Text(e) => e.hint(),
            Self::Io(error) => run::file_hint(error),
            Self::Torch(_) => None,
        }
    }
}

/// Shorthand for [`Error::Invalid`].
pub fn invalid(
    place: impl std::fmt::Display,
    expected: impl Into<String>,
    found: impl Into<String>,
    hint: impl Into<String>,
) -> Error {
    Error::Invalid { place: place.to_string(), expected: expected.into(), found: found.into(), hint: hint.into() }
}
