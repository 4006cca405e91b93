//! `idiolect data stats`: counts of a source, and how far users agree.

use std::path::PathBuf;

use clap::Args;
use data::{Check, CheckOptions};
use problem::Result;

use super::source::{SourceArgs, counts, tell_columns};
use crate::table::print;

#[derive(Args)]
pub(crate) struct StatsArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// The folder to write
    #[arg(long)]
    out: PathBuf,
}

impl StatsArgs {
    pub(crate) fn execute(&self) -> Result<()> {
        stats(self)
    }
}

fn stats(args: &StatsArgs) -> Result<()> {
    let card = args.source.card()?;
    let options = CheckOptions { threads: args.source.threads, ..CheckOptions::default() };
    let check = data::check(&card, &args.source.sources, &options, &std::env::temp_dir())?;
    tell_columns(&check.column_notes, &check.unused_columns);
    fs_err::create_dir_all(&args.out)?;
    run::write_json(&args.out.join("stats.json"), &check)?;
    let bins = votes_per_user(&check);
    let svg = report::bar_plot(&format!("{}: votes per user", card.name), "votes", "users", &bins)?;
    run::write_atomic(&args.out.join("votes.svg"), svg.as_bytes())?;
    print(&counts(&check))?;
    tracing::info!("wrote {}", args.out.join("stats.json").display());
    tracing::info!("wrote {}", args.out.join("votes.svg").display());
    Ok(())
}

/// Users by number of votes, in bins that double.
fn votes_per_user(check: &Check) -> Vec<(String, f64)> {
    let most = check.users.values().map(|u| u.votes).max().unwrap_or(1);
    let last = most.ilog2() as usize;
    let mut bins: Vec<(String, f64)> = (0..=last)
        .map(|b| {
            let (from, to) = (1usize << b, (1usize << (b + 1)) - 1);
            (if from == to { from.to_string() } else { format!("{from}-{to}") }, 0.0)
        })
        .collect();
    for user in check.users.values().filter(|u| u.votes > 0) {
        bins[user.votes.ilog2() as usize].1 += 1.0;
    }
    bins
}
