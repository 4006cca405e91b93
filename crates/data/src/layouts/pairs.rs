//! A better and a worse answer: TRL's shapes, HH-RLHF, and LLaMA-Factory's two.

use problem::Result;
use smallvec::smallvec;

use crate::Layout;
use crate::columns::{Talks, field};
use crate::draft::{Choice, Draft, Emit, Flaw, Turns};
use crate::layouts::bound::{Bound, EVERYONE, Extras, Own};

pub(super) const HH: [&str; 2] = ["chosen", "rejected"];
pub(super) const ALPACA: [&str; 4] = ["instruction", "input", "chosen", "rejected"];
pub(super) const SHAREGPT: [&str; 5] =
    ["conversations", "chosen.from", "chosen.value", "rejected.from", "rejected.value"];

pub(super) fn drafts(layout: &Layout, bound: &Bound, extras: &Extras, emit: &mut Emit) -> Result<()> {
    match layout {
        Layout::Pairs { user_id, prompt, chosen, rejected } => {
            let users = user_id.as_deref().map(|n| bound.texts(n)).transpose()?;
            let prompts = prompt.as_deref().map(|n| bound.talks(n)).transpose()?;
            let (better, worse) = (bound.talks(chosen)?, bound.talks(rejected)?);
            for row in 0..bound.batch.num_rows() {
                let draft = (|| {
                    let user = match &users {
                        Some(users) => {
                            users.get(row).ok_or_else(|| Flaw::null(user_id.as_deref().unwrap_or_default()))?
                        }
                        None => EVERYONE,
                    };
                    let prompt = match &prompts {
                        Some(prompts) => Some(prompts.get(row, "user")?),
                        None => None,
                    };
                    pair(row, user, prompt, (&better, chosen), (&worse, rejected), extras)
                })();
                emit(row, draft)?;
            }
            Ok(())
        }
        Layout::Hh => {
            let (better, worse) = (bound.texts("chosen")?, bound.texts("rejected")?);
            for row in 0..bound.batch.num_rows() {
                let draft = (|| {
                    let better = better.get(row).ok_or_else(|| Flaw::null("chosen"))?;
                    let worse = worse.get(row).ok_or_else(|| Flaw::null("rejected"))?;
                    let (better, worse) = (dialogue(better, "chosen")?, dialogue(worse, "rejected")?);
                    let (turns, better, worse) = shared(better, worse, "chosen")?;
                    extras.draft(row, EVERYONE, turns, better, worse, Choice::Unordered, Own::default())
                })();
                emit(row, draft)?;
            }
            Ok(())
        }
        Layout::Alpaca => {
            let (instructions, better, worse) =
                (bound.texts("instruction")?, bound.texts("chosen")?, bound.texts("rejected")?);
            let inputs = bound.batch.column_by_name("input").map(|_| bound.texts("input")).transpose()?;
            for row in 0..bound.batch.num_rows() {
                let instruction = instructions.get(row);
                let input = inputs.as_ref().and_then(|c| c.get(row)).filter(|i| !i.is_empty());
                let prompt = match (instruction, input) {
                    (Some(instruction), Some(input)) => format!("{instruction}\n{input}"),
                    (Some(instruction), None) => instruction.to_owned(),
                    (None, _) => String::new(),
                };
                let draft = (|| {
                    instruction.ok_or_else(|| Flaw::null("instruction"))?;
                    let better = better.get(row).ok_or_else(|| Flaw::null("chosen"))?;
                    let worse = worse.get(row).ok_or_else(|| Flaw::null("rejected"))?;
                    extras.draft(
                        row,
                        EVERYONE,
                        smallvec![("user", prompt.as_str())],
                        better,
                        worse,
                        Choice::Unordered,
                        Own::default(),
                    )
                })();
                emit(row, draft)?;
            }
            Ok(())
        }
        Layout::Sharegpt => {
            let turns = bound.talks("conversations")?;
            let answer = |name: &str| {
                let path = format!("{name}.value");
                crate::columns::Texts::bind(
                    &field(&bound.array(name)?, "value", bound.place, name)?,
                    bound.place,
                    &path,
                )
            };
            let (better, worse) = (answer("chosen")?, answer("rejected")?);
            for row in 0..bound.batch.num_rows() {
                let draft = (|| {
                    let turns = turns.get(row, "user")?;
                    let better = better.get(row).ok_or_else(|| Flaw::null("chosen"))?;
                    let worse = worse.get(row).ok_or_else(|| Flaw::null("rejected"))?;
                    extras.draft(row, EVERYONE, turns, better, worse, Choice::Unordered, Own::default())
                })();
                emit(row, draft)?;
            }
            Ok(())
        }
        _ => unreachable!("the dispatch looked"),
    }
}

fn pair<'a>(
    row: usize,
    user: &'a str,
    prompt: Option<Turns<'a>>,
    (better, better_name): (&'a Talks, &str),
    (worse, worse_name): (&'a Talks, &str),
    extras: &'a Extras,
) -> Result<Draft<'a>, Flaw> {
    let (better, worse) = (better.get(row, "assistant")?, worse.get(row, "assistant")?);
    let Some(prompt) = prompt else {
        let (turns, better, worse) = shared(better, worse, better_name)?;
        return extras.draft(row, user, turns, better, worse, Choice::Unordered, Own::default());
    };
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

/// Two conversations that differ in their last message only: what they share, and the two last messages.
fn shared<'a>(
    mut better: Turns<'a>,
    mut worse: Turns<'a>,
    column: &str,
) -> Result<(Turns<'a>, &'a str, &'a str), Flaw> {
    let wrong = |found: String| Flaw {
        kind: "no shared prompt",
        column: column.into(),
        expected: "two conversations that differ in their last message only".into(),
        found,
        hint: "name a prompt column in the card, or drop the row",
    };
    let (last, other) = (better.pop(), worse.pop());
    let (Some((role, last)), Some((other_role, other))) = (last, other) else {
        return Err(wrong("an empty conversation".into()));
    };
    if role == "user" || other_role == "user" {
        return Err(wrong("a last message of the user".into()));
    }
    if better.is_empty() {
        return Err(wrong("a single message".into()));
    }
    if better != worse {
        let at = better.iter().zip(&worse).take_while(|(a, b)| a == b).count();
        return Err(wrong(format!("conversations that part at message {}", at + 1)));
    }
    Ok((better, last, other))
}

/// The messages of a text that marks its turns with `\n\nHuman:` and `\n\nAssistant:`.
fn dialogue<'a>(text: &'a str, column: &str) -> Result<Turns<'a>, Flaw> {
    const MARKS: [(&str, &str); 2] = [("\n\nHuman:", "user"), ("\n\nAssistant:", "assistant")];
    let next = |from: usize| {
        let found = MARKS.iter().filter_map(|(m, role)| text[from..].find(m).map(|at| (from + at, m.len(), *role)));
        found.min_by_key(|(at, _, _)| *at)
    };
    let mut turns = Turns::new();
    let mut here = next(0).filter(|(at, _, _)| text[..*at].trim().is_empty()).ok_or_else(|| Flaw {
        kind: "no marked turns",
        column: column.into(),
        expected: "a text that begins with `\\n\\nHuman:`".into(),
        found: format!("`{}`", text.chars().take(40).collect::<String>()),
        hint: "is this HH-RLHF? layout `pairs` reads plain answers",
    })?;
    loop {
        let (at, mark, role) = here;
        let after = next(at + mark);
        turns.push((role, text[at + mark..after.map_or(text.len(), |(end, _, _)| end)].trim()));
        match after {
            Some(found) => here = found,
            None => return Ok(turns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dialogue_is_cut_at_its_marks() {
        let text = "\n\nHuman: hi\n\nthere\n\nAssistant: hello\n\nHuman: and?\n\nAssistant: bye ";
        let turns = dialogue(text, "chosen").unwrap();
        assert_eq!(
            turns.as_slice(),
            [("user", "hi\n\nthere"), ("assistant", "hello"), ("user", "and?"), ("assistant", "bye")]
        );
        assert_eq!(dialogue("plain", "chosen").unwrap_err().kind, "no marked turns");
        let other =
            dialogue("\n\nHuman: hi\n\nthere\n\nAssistant: hello\n\nHuman: and?\n\nAssistant: no", "c").unwrap();
        let (prompt, better, worse) = shared(turns.clone(), other, "chosen").unwrap();
        assert_eq!((prompt.len(), better, worse), (3, "bye", "no"));
        let parted = dialogue("\n\nHuman: ho\n\nAssistant: hello\n\nHuman: and?\n\nAssistant: no", "c").unwrap();
        assert!(shared(turns, parted, "chosen").unwrap_err().found.contains("part at message 1"));
    }
}
