//! `idiolect data show`: rows as the model sees them.

use std::path::PathBuf;

use clap::Args;
use problem::{Result, mistake};
use text::{Ending, Message, Tokenizer};

use super::source::{SourceArgs, tell_columns};
use crate::table::print;

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

impl ShowArgs {
    pub(crate) fn execute(&self) -> Result<()> {
        show(self)
    }
}

fn show(args: &ShowArgs) -> Result<()> {
    let card = args.source.card()?;
    let tokenizer = Tokenizer::from_folder(&args.tokenizer)?;
    let (votes, notes) = data::first_votes(&card, &args.source.sources, args.rows, args.user.as_deref())?;
    tell_columns(&notes.missed_sentences(), &notes.unused);
    if votes.is_empty() {
        let found = args.user.as_ref().map_or("none".into(), |u| format!("none of user `{u}`"));
        return Err(mistake(format!("expected votes, found {found}"), "look at `idiolect data check`"));
    }
    for vote in votes {
        let verdict = if vote.tie { "tie" } else { "decided" };
        print(&format!("── {} · user {} · {verdict}", vote.source_row, vote.user_id.escape_debug()))?;
        let (chosen, rejected) = (vote.chosen_ending(), vote.rejected_ending());
        for (name, answer, ending) in [("chosen", &vote.chosen, chosen), ("rejected", &vote.rejected, rejected)] {
            let shown = shown(&tokenizer, &vote.prompt, (name, answer), ending);
            print(&shown.map_err(|e| e.within(&vote.source_row))?)?;
        }
    }
    Ok(())
}

/// One row as the model sees it.
fn shown(tokenizer: &Tokenizer, prompt: &[Message], (name, answer): (&str, &str), ending: Ending) -> Result<String> {
    let row = tokenizer.row(prompt, answer, ending)?;
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
