//! Text in, token ids out, and back.
//!
//! [`Tokenizer`] is a published `tokenizer.json` together with its chat template. A row is **what the template renders** of a conversation
//! with its response, up to the token that ends the turn; the boundary between prompt and answer is found from one tokenisation, by
//! character offsets. Rendering never adds special tokens on top of those that the template wrote, so a BOS is never doubled.
//!
//! The spelling of a special token inside a text is that token, as by default in transformers (`split_special_tokens=False`), unless the folder's
//! `tokenizer_config.json` sets `split_special_tokens`. [`Tokenizer::special_tokens_in`] finds such texts.
//!
//! ```no_run
//! # fn main() -> problem::Result<()> {
//! let tokenizer = text::Tokenizer::from_folder("checkpoints/quickstart/import".as_ref())?;
//! let row = tokenizer.row(&[text::Message::user("Name a fruit.")], "A pear.", text::Ending::Finished)?;
//! assert!(row.answer_start < row.ids.len());
//! # Ok(()) }
//! ```

mod added;
mod chat;
mod chat_json;
mod chat_limits;
mod row;
mod row_counts;
mod sentencepiece;
mod tokenizer;
mod turn;
mod vocabulary;

pub use chat::{ChatTemplate, Message, Rendered};
pub use chrono::NaiveDate;
pub use row::{Answer, Ending, Fitted, OverLong, Row};
pub use row_counts::RowCounts;
pub use tokenizer::{KnownRows, Tokenizer, context_hint};
pub use vocabulary::Vocabulary;
