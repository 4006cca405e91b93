//! Real preference files in, the canonical table out.
//!
//! A data set is described by its [`Card`]; [`ingest()`] reads the Parquet file that the card speaks of, checks every row,
//! splits by prompt, and gives votes with a [`Report`] of all that was kept, dropped and why.
//!
//! ```no_run
//! # fn main() -> Result<(), data::Error> {
//! let card = data::Card::read("datasets/simulated/card.toml".as_ref())?;
//! let selection = data::Selection { min_votes: 20, split: data::SplitRule::Column, strict: false };
//! let (votes, report) = data::ingest(&card, "votes.parquet".as_ref(), &selection, 7)?;
//! println!("{} votes kept of {}", votes.len(), report.rows);
//! # Ok(()) }
//! ```

mod card;
mod error;
mod ingest;
mod split;
mod table;
mod votes;

pub use card::{Card, Layout};
pub use error::{Error, Result};
pub use ingest::{Report, Selection, ingest};
pub use split::{Split, SplitRule};
pub use table::{Column, Table, read_table, write_table};
pub use votes::{Vote, read_votes, user_ids, write_votes};
