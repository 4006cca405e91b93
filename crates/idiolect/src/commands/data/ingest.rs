//! `idiolect data ingest`: a source as the preference table, split.

use std::path::PathBuf;

use clap::Args;
use data::{Selection, SplitRule};
use problem::{Result, mistake};

use super::source::{SourceArgs, tell_columns};
use crate::described::described;
use crate::new_folder::refuse_file;
use crate::table::print;

#[derive(Args)]
pub(crate) struct IngestArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// The Parquet file to write; must not exist
    #[arg(long)]
    out: PathBuf,
    /// The selection, as `idiolect config data` shows it: `min_votes = 20\nsplit = { by = "time", dev = 0.1, test = 0.2 }`
    #[arg(long, value_name = "TOML")]
    selection: Option<String>,
    /// All votes are this user's: for a source without a column of users
    #[arg(long, value_name = "USER")]
    one_user: Option<String>,
    /// Decides splits and samples
    #[arg(long, default_value_t = 7)]
    seed: u64,
}

impl IngestArgs {
    pub(crate) fn execute(&self) -> Result<()> {
        ingest(self)
    }
}

fn ingest(args: &IngestArgs) -> Result<()> {
    refuse_file(&args.out)?;
    let card = match &args.one_user {
        Some(user) => args.source.card()?.with_one_user(user)?,
        None => args.source.card()?,
    };
    let selection = match &args.selection {
        Some(text) => selection(text)?,
        None => Selection::all(SplitRule::Prompt { dev: 0.1, test: 0.2 }),
    };
    let report = data::ingest_on(&card, &args.source.sources, &selection, args.seed, &args.out, args.source.threads)?;
    run::write_json(&args.out.with_extension("report.json"), &report)?;
    tell_columns(&report.column_notes, &report.unused_columns);
    report.remarks.iter().for_each(|remark| tracing::info!("{remark}"));
    print(&described(&report))?;
    Ok(())
}

/// A selection; what is left out is as `Selection::all` has it.
fn selection(text: &str) -> Result<Selection> {
    let parse = || -> Result<Selection, toml::de::Error> {
        let mut table: toml::Table = toml::from_str(text)?;
        table.entry("min_votes").or_insert(0.into());
        table.entry("strict").or_insert(false.into());
        table.try_into()
    };
    parse().map_err(|e| {
        mistake(
            format!("--selection: expected keys as `idiolect config data` shows them, found: {e}"),
            "see docs/data.md",
        )
    })
}
