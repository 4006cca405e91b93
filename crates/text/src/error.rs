//! What can go wrong between text and token ids.

use std::path::PathBuf;

/// This crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure, with the place where it happened; [`Error::hint`] is the remedy, printed on a line of its own.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read; the message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A file is not what its name promises.
    #[error("{path}: expected {expected}, found {found}")]
    File {
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A plain base.
    #[error("{}: expected a chat template in chat_template.jinja or tokenizer_config.json, found none", .0.display())]
    NoTemplate(PathBuf),
    /// The chat template refused the conversation or is not valid.
    #[error("chat template: {0}")]
    Template(String),
    /// The tokenizer library failed on a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// Two beginning-of-sequence tokens in a row: template and tokenizer both added one.
    #[error("a prompt starts with the token `{0}` twice")]
    DoubleBos(String),
    /// A row that is longer than its limit.
    #[error("a row: expected at most {max_tokens} tokens, found {tokens} ({answer} of them the answer's)")]
    OverLong {
        /// Of prompt and answer.
        tokens: usize,
        /// Of the answer.
        answer: usize,
        /// The limit.
        max_tokens: usize,
    },
    /// An answer that has no token of its own.
    #[error("an answer is empty after tokenisation (prompt: `{0}`)")]
    EmptyAnswer(String),
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Io(error) => file_hint(error),
            Self::Tokenizer(_) => None,
            Self::File { .. } => Some("import or download the model again".into()),
            Self::NoTemplate(_) => {
                Some("name a Jinja file under `chat_template` in the import stage's config, and fine-tune on it (stage `sft`)".into())
            }
            Self::Template(_) => Some("check the roles of the messages against the model's chat_template.jinja".into()),
            Self::DoubleBos(_) => Some("remove the BOS from the chat template or from the prompt".into()),
            Self::OverLong { .. } => {
                Some("raise `max_row_tokens`, or set `over_long` to \"drop\" or \"truncate-prompt-left\"".into())
            }
            Self::EmptyAnswer(_) => Some("drop the row".into()),
        }
    }
}

/// Advice where the user's file is at fault rather than the disk.
fn file_hint(error: &std::io::Error) -> Option<String> {
    use std::io::ErrorKind::{IsADirectory, NotADirectory, NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | PermissionDenied | IsADirectory | NotADirectory)
        .then(|| "check that the path is right and can be read".into())
}
