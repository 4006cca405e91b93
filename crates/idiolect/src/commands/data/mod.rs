//! `idiolect data`: check a source, look at its rows, count it, ingest it.

mod check;
mod ingest;
mod show;
mod source;
mod stats;
mod tokenise;

use clap::Subcommand;
use problem::Result;

use check::CheckArgs;
use ingest::IngestArgs;
use show::ShowArgs;
use stats::StatsArgs;
use tokenise::TokeniseArgs;

#[derive(Subcommand)]
pub(crate) enum DataCommand {
    /// Look for what is wrong or odd in a source, row by row
    Check(CheckArgs),
    /// Print rows as the model sees them: special tokens written out, the answer marked
    Show(ShowArgs),
    /// Count votes, users, prompts and how far people agree; writes stats.json and votes.svg
    Stats(StatsArgs),
    /// Write the canonical table, split, with a report beside it
    Ingest(IngestArgs),
    /// Tokenise every distinct text of a canonical table once, into an Arrow file
    Tokenise(TokeniseArgs),
}

impl DataCommand {
    pub(crate) fn execute(self) -> Result<()> {
        match self {
            Self::Check(args) => args.execute(),
            Self::Show(args) => args.execute(),
            Self::Stats(args) => args.execute(),
            Self::Ingest(args) => args.execute(),
            Self::Tokenise(args) => args.execute(),
        }
    }
}
