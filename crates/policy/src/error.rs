//! What can go wrong in training policies.

/// This crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure, with the place where it happened; [`Error::hint`] is the remedy, printed on a line of its own.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data do not allow training.
    #[error("{place}: expected {expected}, found {found}")]
    Invalid {
        /// File or stage.
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
    /// From a table.
    #[error(transparent)]
    Data(#[from] data::Error),
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Invalid { hint, .. } => Some(hint.clone()),
            Self::Lm(e) => e.hint(),
            Self::Text(e) => e.hint(),
            Self::Run(e) => e.hint(),
            Self::Data(e) => e.hint(),
        }
    }
}
