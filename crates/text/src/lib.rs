//! Text in, token ids out, and back.
//!
//! [`Tokenizer`] is a published `tokenizer.json` together with its chat template. It renders a conversation, finds the
//! boundary between prompt and answer **from one tokenisation, by character offsets**, and decodes samples. Rendering
//! never adds special tokens on top of those that the template wrote, so a BOS is never doubled.
//!
//! ```no_run
//! # fn main() -> problem::Result<()> {
//! let tokenizer = text::Tokenizer::from_folder("checkpoints/quickstart/import".as_ref())?;
//! let row = tokenizer.row(&[text::Message::user("Name a fruit.")], "A pear.", text::Ending::Finished)?;
//! assert!(row.answer_start < row.ids.len());
//! # Ok(()) }
//! ```

mod chat;
mod chat_json;
mod chat_limits;
mod row_counts;
mod tokenizer;
mod vocabulary;

pub use chat::{ChatTemplate, Message, Rendered};
pub use chrono::NaiveDate;
pub use row_counts::RowCounts;
pub use tokenizer::{Answer, Ending, Fitted, KnownRows, OverLong, Row, Tokenizer, context_hint};
pub use vocabulary::Vocabulary;
