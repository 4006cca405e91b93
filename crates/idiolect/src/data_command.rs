//! `idiolect data`: check a source, look at its rows, count it, ingest it.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use data::{Card, Check, CheckOptions, Level, Selection, SplitRule};
use problem::{Result, mistake};
use text::{Ending, Message, Tokenizer};

use crate::described::described;
use crate::table::print;

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

#[derive(Args)]
struct SourceArgs {
    /// Files, folders, globs, hf://datasets/..., s3://, gs://, az://, http(s):// (`just build-full`)
    #[arg(required = true)]
    sources: Vec<String>,
    /// The data set's card; without it the columns say which of the common shapes it is
    #[arg(long)]
    card: Option<PathBuf>,
    /// Threads [default: all cores]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    threads: usize,
}

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

#[derive(Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// A folder with tokenizer.json and chat template
    #[arg(long)]
    tokenizer: PathBuf,
    /// How many votes
    #[arg(long, default_value_t = 3)]
    rows: usize,
    /// Only this user's
    #[arg(long)]
    user: Option<String>,
}

#[derive(Args)]
pub(crate) struct StatsArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// The folder to write
    #[arg(long)]
    out: PathBuf,
}

#[derive(Args)]
pub(crate) struct IngestArgs {
    #[command(flatten)]
    source: SourceArgs,
    /// The Parquet file to write; must not exist
    #[arg(long)]
    out: PathBuf,
    /// The selection, as in configs/data/*.toml: `min_votes = 20\nsplit = { by = "time", dev = 0.1, test = 0.2 }`
    #[arg(long, value_name = "TOML")]
    selection: Option<String>,
    /// Decides splits and samples
    #[arg(long, default_value_t = 7)]
    seed: u64,
}

#[derive(Args)]
pub(crate) struct TokeniseArgs {
    /// A table that `idiolect data ingest` or the stage `data` wrote
    table: PathBuf,
    /// A folder with tokenizer.json and chat template
    #[arg(long)]
    tokenizer: PathBuf,
    /// The Arrow file to write; must not exist
    #[arg(long)]
    out: PathBuf,
    /// Threads [default: all cores]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    threads: usize,
}

impl SourceArgs {
    fn card(&self) -> Result<Card> {
        if let Some(path) = &self.card {
            return Card::read(path);
        }
        let (card, why) = data::recognise(&self.sources)?;
        tracing::info!("no --card: {why}");
        Ok(card)
    }
}

impl DataCommand {
    pub(crate) fn execute(self) -> Result<()> {
        match self {
            Self::Check(args) => check(&args),
            Self::Show(args) => show(&args),
            Self::Stats(args) => stats(&args),
            Self::Ingest(args) => ingest(&args),
            Self::Tokenise(args) => tokenise(&args),
        }
    }
}

fn percent(part: usize, of: usize) -> String {
    if of == 0 { "-".into() } else { format!("{:.1}%", 100.0 * part as f64 / of as f64) }
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
    print("")?;
    print(&users(&check, args.top))?;
    if check.has(Level::Error) || (args.strict && check.has(Level::Warning)) {
        let worst = check.findings.first().map_or(String::new(), |f| format!("{} of `{}`", f.count, f.kind));
        let hint = "mend the rows named above, or let ingestion drop them: `bad_rows = \"drop\"`";
        return Err(mistake(format!("{}: expected no findings, found {worst}", args.source.sources.join(", ")), hint));
    }
    Ok(())
}

fn counts(check: &Check) -> String {
    let t = &check.total;
    let agreement = &check.agreement;
    let number = |x: Option<f64>| x.map_or("-".into(), |x| format!("{x:.3}"));
    let position = check.position.map_or("order unknown".into(), |(share, p)| {
        let p = if p < 1e-4 { "< 0.0001".to_owned() } else { format!("{p:.4}") };
        format!("{:.1}% of {} (p of a fair coin {p})", share * 100.0, t.ordered)
    });
    let rows: Vec<Vec<String>> = [
        ("files", check.files.to_string()),
        ("rows", check.rows.to_string()),
        ("votes", check.votes.to_string()),
        ("users", check.users.len().to_string()),
        ("distinct prompts", check.prompts.to_string()),
        ("distinct answers", check.answers.to_string()),
        ("ties", format!("{} ({})", t.ties, percent(t.ties, t.votes))),
        ("for the answer shown first", position),
        ("for the longer answer", format!("{} of {}", percent(t.for_longer, t.unequal), t.unequal)),
        ("pairs judged by several users", format!("{} ({} votes)", agreement.pairs, agreement.votes)),
        ("agreement of two users' votes", number(agreement.observed)),
        ("Krippendorff's alpha", number(agreement.alpha)),
        ("with the others' majority", number(agreement.with_majority)),
    ]
    .into_iter()
    .map(|(name, value)| vec![name.to_owned(), value])
    .collect();
    report::markdown(&["", ""], &rows)
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

fn show(args: &ShowArgs) -> Result<()> {
    let card = args.source.card()?;
    let tokenizer = Tokenizer::from_folder(&args.tokenizer)?;
    let votes = data::first_votes(&card, &args.source.sources, args.rows, args.user.as_deref())?;
    if votes.is_empty() {
        let found = args.user.as_ref().map_or("none".into(), |u| format!("none of user `{u}`"));
        return Err(mistake(format!("expected votes, found {found}"), "look at `idiolect data check`"));
    }
    for vote in votes {
        let verdict = if vote.tie { "tie" } else { "decided" };
        print(&format!("── {} · user {} · {verdict}", vote.source_row, vote.user_id.escape_debug()))?;
        for (name, answer) in [("chosen", &vote.chosen), ("rejected", &vote.rejected)] {
            print(&shown(&tokenizer, &vote.prompt, name, answer)?)?;
        }
    }
    Ok(())
}

/// One row as the model sees it.
fn shown(tokenizer: &Tokenizer, prompt: &[Message], name: &str, answer: &str) -> Result<String> {
    let row = tokenizer.row(prompt, answer, Ending::Finished)?;
    let (before, after) = row.ids.split_at(row.answer_start);
    let straddles = if row.straddles { ", its first token begins inside the prompt" } else { "" };
    Ok(format!(
        "{name}: {} tokens of prompt, {} of answer{straddles}\n{}⟦{}⟧\n",
        before.len(),
        after.len(),
        tokenizer.decode_all(before)?,
        tokenizer.decode_all(after)?
    ))
}

fn stats(args: &StatsArgs) -> Result<()> {
    let card = args.source.card()?;
    let options = CheckOptions { threads: args.source.threads, ..CheckOptions::default() };
    let check = data::check(&card, &args.source.sources, &options, &std::env::temp_dir())?;
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

fn ingest(args: &IngestArgs) -> Result<()> {
    refuse_existing(&args.out)?;
    let card = args.source.card()?;
    let selection = match &args.selection {
        Some(text) => selection(text)?,
        None => Selection::all(SplitRule::Prompt { dev: 0.1, test: 0.2 }),
    };
    let report = data::ingest_on(&card, &args.source.sources, &selection, args.seed, &args.out, args.source.threads)?;
    run::write_json(&args.out.with_extension("report.json"), &report)?;
    print(&described(&report))?;
    Ok(())
}

fn tokenise(args: &TokeniseArgs) -> Result<()> {
    refuse_existing(&args.out)?;
    let tokenizer = Tokenizer::from_folder(&args.tokenizer)?;
    let data::TokenReport { texts, distinct, tokens, longest } =
        data::tokenise(&args.table, &tokenizer, &args.out, args.threads)?;
    print(&format!("{distinct} distinct of {texts} texts, {tokens} tokens, the longest {longest}"))?;
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
        mistake(format!("--selection: expected keys as in configs/data/*.toml, found: {e}"), "see docs/data.md")
    })
}

pub(crate) fn refuse_existing(out: &Path) -> Result<()> {
    if out.exists() {
        let message = format!("{}: expected a new file, found one that exists", out.display());
        return Err(mistake(message, "name another file"));
    }
    Ok(())
}
