//! Which source a command looks at, and what was counted in it.

use std::path::PathBuf;

use clap::Args;
use data::{Card, Check};
use problem::Result;

#[derive(Args)]
pub(crate) struct SourceArgs {
    /// Files, folders, globs, hf://datasets/..., s3://, gs://, az://, http(s):// (`just build-full`)
    #[arg(required = true)]
    pub(crate) sources: Vec<String>,
    /// The data set's card; without it the columns say which of the common shapes it is
    #[arg(long)]
    card: Option<PathBuf>,
    /// Threads [default: all cores]
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    pub(crate) threads: usize,
}

impl SourceArgs {
    pub(crate) fn card(&self) -> Result<Card> {
        if let Some(path) = &self.card {
            return Card::read(path);
        }
        let (card, why) = data::recognise(&self.sources)?;
        tracing::info!("no --card: {why}");
        Ok(card)
    }
}

/// Warns of columns that may be missed, and names those that nothing reads.
pub(crate) fn tell_columns(notes: &[String], unused: &[String]) {
    for note in notes {
        tracing::warn!("{note}");
    }
    if !unused.is_empty() {
        tracing::info!("columns that are not used: {}", unused.join(", "));
    }
}

pub(crate) fn percent(part: usize, of: usize) -> String {
    if of == 0 { "-".into() } else { format!("{:.1}%", 100.0 * part as f64 / of as f64) }
}

/// The counts of a source, for a reader.
pub(crate) fn counts(check: &Check) -> String {
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
