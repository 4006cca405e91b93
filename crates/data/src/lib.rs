//! Real preference files in, the canonical table out.
//!
//! A data set is described by its [`Card`]; [`ingest()`] reads the files that the card speaks of (Parquet, Arrow, JSON, CSV; local
//! or behind an address), checks every row, splits without leaks, and writes the canonical table with a [`Report`] of all
//! that was kept, dropped and why, in memory that does not grow with the texts. [`check()`] says what is wrong or odd before anything is
//! made of it, [`tokenise`] makes every distinct text's tokens once, [`write_users`] turns a survey into named numbers.
//!
//! ```no_run
//! # fn main() -> problem::Result<()> {
//! let card = data::Card::read("datasets/llmfao/card.toml".as_ref())?;
//! let split = data::SplitRule::Prompt { dev: 0.1, test: 0.2 };
//! let selection = data::Selection { min_votes: 20, ..data::Selection::all(split) };
//! let report = data::ingest(&card, &["votes.parquet".to_owned()], &selection, 7, "table.parquet".as_ref())?;
//! println!("{} votes kept of {}", report.kept, report.votes);
//! let votes = data::read_votes("table.parquet".as_ref())?;
//! # Ok(()) }
//! ```

mod canonical;
mod card;
mod check;
mod columns;
mod csv;
mod csv_records;
mod decode;
mod draft;
mod hub;
mod ingest;
mod input;
mod json;
mod jsonline;
mod judgements;
mod layouts;
mod leakage;
mod literals;
mod location;
mod partitions;
mod peek;
mod pins;
mod plan;
mod readings;
mod recognise;
#[cfg_attr(not(feature = "clouds"), path = "no_remote.rs")]
mod remote;
mod roles;
mod select;
mod selection;
mod shape;
mod sources;
mod spill;
mod split;
mod table;
mod times;
mod tokens;
mod trust;
mod units;
mod unread;
mod users;
mod users_card;
mod varieties;
mod votes;
mod walk;

pub use card::{Card, Columns, Layout, OneOrMore};
pub use check::{Check, CheckOptions, Finding, Level, UserCheck, check};
pub use hub::{HubKind, Snapshot, hub_problem, is_commit, offline};
pub use ingest::{ingest, ingest_on};
pub use judgements::Agreement;
pub use leakage::Leakage;
pub use location::{is_remote, local_files};
pub use peek::first_votes;
pub use pins::{Pinned, identities_of, pin, pinned_to};
pub use recognise::recognise;
pub use selection::{BadRows, Duplicates, Report, Selection};
pub use split::{Split, SplitRule, Whole};
pub use table::{Column, Table, read_table, write_table};
pub use tokens::{TokenCache, TokenReport, tokenise};
pub use unread::ColumnNotes;
pub use users::{Standard, Users, UsersReport, read_users, write_users};
pub use users_card::UsersCard;
pub use votes::{Vote, read_votes, user_ids, write_votes};
