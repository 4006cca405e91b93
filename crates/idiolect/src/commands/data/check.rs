//! `idiolect data check`: what is wrong or odd in a source, row by row.

use std::path::PathBuf;

use clap::Args;
use data::{Check, CheckOptions, Level};
use problem::{Result, mistake};
use text::Tokenizer;

use super::source::{SourceArgs, counts, percent};
use crate::table::print;

#[derive(Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// A folder with tokenizer.json and chat template: rows longer than --max-tokens are told
    #[arg(long)]
    tokenizer: Option<PathBuf>,
    /// Tokens of prompt and answer
    #[arg(long, default_value_t = 1024)]
    max_tokens: usize,
    /// Users with fewer decided votes are told
    #[arg(long, default_value_t = 20)]
    min_votes: usize,
    /// Users in the table; the JSON holds all
    #[arg(long, default_value_t = 10)]
    top: usize,
    /// Also write everything here, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Warnings are errors: exit code 2
    #[arg(long)]
    strict: bool,
}

impl CheckArgs {
    pub(crate) fn execute(&self) -> Result<()> {
        check(self)
    }
}

fn check(args: &CheckArgs) -> Result<()> {
    let card = args.source.card()?;
    let tokenizer = args.tokenizer.as_deref().map(Tokenizer::from_folder).transpose()?;
    let tokens = tokenizer.as_ref().map(|t| (t, args.max_tokens));
    let options = CheckOptions { min_votes: args.min_votes, tokens, threads: args.source.threads };
    let check = data::check(&card, &args.source.sources, &options, &std::env::temp_dir())?;
    if let Some(path) = &args.json {
        run::write_json(path, &check)?;
    }
    print(&counts(&check))?;
    if !check.remarks.is_empty() {
        print("")?;
    }
    for remark in &check.remarks {
        print(&format!("- {remark}"))?;
    }
    let findings: Vec<Vec<String>> = check
        .findings
        .iter()
        .map(|f| {
            let level = if f.level == Level::Error { "error" } else { "warning" };
            vec![level.into(), f.kind.clone(), f.count.to_string(), f.users.to_string(), f.first.join(", ")]
        })
        .collect();
    print("")?;
    if findings.is_empty() {
        print("Nothing wrong found.")?;
    } else {
        print(&report::markdown(&["level", "finding", "count", "users", "first"], &findings))?;
    }
    if !check.unused_columns.is_empty() {
        print("")?;
        print(&format!("Columns that are not used: {}", check.unused_columns.join(", ")))?;
    }
    print("")?;
    print(&users(&check, args.top))?;
    if check.has(Level::Error) || (args.strict && check.has(Level::Warning)) {
        let worst = check.findings.first().map_or(String::new(), |f| format!("{} of `{}`", f.count, f.kind));
        let hint = "mend the rows named above, or let ingestion drop them: `bad_rows = \"drop\"`";
        return Err(mistake(format!("{}: expected no findings, found {worst}", args.source.sources.join(", ")), hint));
    }
    Ok(())
}

/// The users with the most votes.
fn users(check: &Check, top: usize) -> String {
    let mut ranked: Vec<_> = check.users.iter().collect();
    ranked.sort_by_key(|(name, u)| (std::cmp::Reverse(u.votes), *name));
    let rows: Vec<Vec<String>> = ranked
        .iter()
        .take(top)
        .map(|(name, u)| {
            let findings: Vec<String> = u.findings.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
            vec![
                name.escape_debug().to_string(),
                u.votes.to_string(),
                percent(u.ties, u.votes),
                percent(u.for_first, u.ordered),
                percent(u.for_longer, u.unequal),
                findings.join(", "),
            ]
        })
        .collect();
    let text = report::markdown(&["user", "votes", "ties", "for the first", "for the longer", "findings"], &rows);
    let more = check.users.len().saturating_sub(top);
    if more > 0 { format!("{text}... and {more} more users: --top, or --json FILE") } else { text }
}
