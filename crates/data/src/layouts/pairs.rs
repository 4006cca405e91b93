//! A better and a worse answer: TRL's shapes and HH-RLHF.

use problem::Result;

use crate::columns::Talks;
use crate::draft::{Choice, Draft, Emit, Flaw, Turns};
use crate::layouts::bound::{Bound, Extras, Own, RowUsers};
use crate::layouts::implicit;
use crate::{Card, Layout};

pub(super) const HH: [&str; 2] = ["chosen", "rejected"];

pub(super) fn drafts(card: &Card, bound: &Bound, extras: &Extras, emit: &mut Emit) -> Result<()> {
    let Layout::Pairs { user_id: _, prompt, chosen, rejected } = &card.layout else {
        unreachable!("the dispatch looked")
    };
    let users = RowUsers::bind(card, bound)?;
    let prompts = prompt.as_deref().map(|n| bound.talks(n)).transpose()?;
    let (better, worse) = (bound.talks(chosen)?, bound.talks(rejected)?);
    for row in 0..bound.batch.num_rows() {
        let draft = (|| {
            let user = users.get(row)?;
            let (better, worse) = ((&better, chosen.as_str()), (&worse, rejected.as_str()));
            let Some(prompts) = &prompts else {
                let (turns, better, worse) = implicit::split(row, better, worse)?;
                return extras.draft(row, user, turns, better, worse, Choice::Unordered, Own::default());
            };
            let prompt = prompts.get(row, "user")?;
            pair(row, user, prompt, better, worse, extras)
        })();
        emit(row, draft)?;
    }
    Ok(())
}

/// HH-RLHF's transcripts.
pub(super) fn hh(card: &Card, bound: &Bound, extras: &Extras, emit: &mut Emit) -> Result<()> {
    let users = RowUsers::bind(card, bound)?;
    let (better, worse) = (bound.texts("chosen")?, bound.texts("rejected")?);
    for row in 0..bound.batch.num_rows() {
        let draft = (|| {
            let user = users.get(row)?;
            let better = better.get(row).ok_or_else(|| Flaw::null("chosen"))?;
            let worse = worse.get(row).ok_or_else(|| Flaw::null("rejected"))?;
            let (better, worse) = (implicit::transcript(better, "chosen")?, implicit::transcript(worse, "rejected")?);
            let (turns, better, worse) = implicit::of_messages(better, worse, "chosen")?;
            extras.draft(row, user, turns, better, worse, Choice::Unordered, Own::default())
        })();
        emit(row, draft)?;
    }
    Ok(())
}

fn pair<'a>(
    row: usize,
    user: &'a str,
    prompt: Turns<'a>,
    (better, better_name): (&'a Talks, &str),
    (worse, worse_name): (&'a Talks, &str),
    extras: &'a Extras,
) -> Result<Draft<'a>, Flaw> {
    let (better, worse) = (better.get(row, "assistant")?, worse.get(row, "assistant")?);
    // Some writers repeat the prompt in front of the answer's message.
    let single = |mut turns: Turns<'a>, name: &str| {
        let answer = turns.pop();
        match answer {
            Some((_, text)) if turns.is_empty() || turns == prompt => Ok(text),
            _ => Err(Flaw {
                kind: "an answer of several messages",
                column: name.into(),
                expected: "one message, or the prompt's messages and one more".into(),
                found: format!("{} messages", turns.len() + usize::from(answer.is_some())),
                hint: "leave `prompt` out of the card if both columns hold whole conversations",
            }),
        }
    };
    let (better, worse) = (single(better, better_name)?, single(worse, worse_name)?);
    extras.draft(row, user, prompt, better, worse, Choice::Unordered, Own::default())
}
