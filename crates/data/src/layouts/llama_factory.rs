//! LLaMA-Factory's two shapes for rankings.

use arrow::array::{Array, ArrayRef, new_null_array};
use arrow::datatypes::DataType;
use problem::Result;

use crate::Card;
use crate::columns::{Lists, Talks, Texts};
use crate::draft::{Choice, Emit, Flaw, Turns};
use crate::layouts::bound::{Bound, Extras, Own, RowUsers, brief, put_system_first};

/// Columns that every source of the shape has, and those that it may have.
pub(super) const ALPACA: [&str; 3] = ["instruction", "chosen", "rejected"];
pub(super) const ALPACA_OPTIONAL: [&str; 3] = ["input", "system", "history"];
pub(super) const SHAREGPT: [&str; 3] = ["conversations", "chosen", "rejected"];
pub(super) const SHAREGPT_OPTIONAL: [&str; 1] = ["system"];

/// A column that a source may have.
fn optional(bound: &Bound, name: &str) -> Result<Option<Texts>> {
    bound.batch.column_by_name(name).map(|_| bound.texts(name)).transpose()
}

/// The prompt is the earlier rounds in `history`, then `instruction` and `input`, with a line end between them; `system` stands
/// in front of all.
pub(super) fn alpaca(card: &Card, bound: &Bound, extras: &Extras, emit: &mut Emit) -> Result<()> {
    let users = RowUsers::bind(card, bound)?;
    let (instructions, better, worse) = (bound.texts("instruction")?, bound.texts("chosen")?, bound.texts("rejected")?);
    let (inputs, systems) = (optional(bound, "input")?, own_system(card, bound)?);
    let history = bound.batch.column_by_name("history").map(|_| History::bind(bound)).transpose()?;
    for row in 0..bound.batch.num_rows() {
        let instruction = instructions.get(row);
        let input = inputs.as_ref().and_then(|c| c.get(row)).filter(|i| !i.is_empty());
        let prompt: Vec<&str> = instruction.filter(|i| !i.is_empty()).into_iter().chain(input).collect();
        let prompt = prompt.join("\n");
        let draft = (|| {
            let user = users.get(row)?;
            instruction.ok_or_else(|| Flaw::null("instruction"))?;
            let better = better.get(row).ok_or_else(|| Flaw::null("chosen"))?;
            let worse = worse.get(row).ok_or_else(|| Flaw::null("rejected"))?;
            let mut turns = history.as_ref().map(|h| h.get(row)).transpose()?.unwrap_or_default();
            turns.push(("user", prompt.as_str()));
            with_system(systems.as_ref(), row, &mut turns)?;
            extras.draft(row, user, turns, better, worse, Choice::Unordered, Own::default())
        })();
        emit(row, draft)?;
    }
    Ok(())
}

/// `conversations` is the prompt, with `system` in front; `chosen` and `rejected` are one message each.
pub(super) fn sharegpt(card: &Card, bound: &Bound, extras: &Extras, emit: &mut Emit) -> Result<()> {
    let users = RowUsers::bind(card, bound)?;
    let conversations = bound.talks("conversations")?;
    let (better, worse, systems) = (bound.talks("chosen")?, bound.talks("rejected")?, own_system(card, bound)?);
    for row in 0..bound.batch.num_rows() {
        let draft = (|| {
            let user = users.get(row)?;
            let mut turns = conversations.get(row, "user")?;
            let (better, worse) = (answer(&better, row, "chosen")?, answer(&worse, row, "rejected")?);
            with_system(systems.as_ref(), row, &mut turns)?;
            extras.draft(row, user, turns, better, worse, Choice::Unordered, Own::default())
        })();
        emit(row, draft)?;
    }
    Ok(())
}

/// The column `system`, unless the card names a column with system instructions, this or another: it is put in front then.
fn own_system(card: &Card, bound: &Bound) -> Result<Option<Texts>> {
    if card.columns.system.is_some() { Ok(None) } else { optional(bound, "system") }
}

fn with_system<'a>(systems: Option<&'a Texts>, row: usize, turns: &mut Turns<'a>) -> Result<(), Flaw> {
    match systems.and_then(|s| s.get(row)).filter(|s| !s.is_empty()) {
        Some(system) => put_system_first(system, turns, "system"),
        None => Ok(()),
    }
}

/// The one message of the assistant in a column.
fn answer<'a>(talks: &'a Talks, row: usize, column: &str) -> Result<&'a str, Flaw> {
    let turns = talks.get(row, "assistant")?;
    match turns.as_slice() {
        [("assistant", text)] => Ok(text),
        other => Err(Flaw {
            kind: "not one message of the assistant",
            column: column.into(),
            expected: "one message from `gpt`".into(),
            found: match other {
                [(role, _)] => format!("one from `{role}`"),
                _ => format!("{} messages", other.len()),
            },
            hint: "drop the row, or set `bad_rows = \"drop\"`",
        }),
    }
}

/// Earlier rounds of a conversation: `[[what the user said, what the model said], ...]`.
enum History {
    Rounds {
        rounds: Lists,
        sides: Lists,
        texts: Texts,
    },
    /// A column of texts: blank ones and `[]` are no rounds, and any other is a flaw.
    Texts(Texts),
}

impl History {
    fn bind(bound: &Bound) -> Result<Self> {
        let column = bound.array("history")?;
        if let Ok(texts) = bound.texts("history") {
            return Ok(Self::Texts(texts));
        }
        let rounds = Lists::bind(&column, bound.place, "history")?;
        // Where all lists of a batch are empty, what would be in them was anyone's guess.
        let inner =
            |array: &ArrayRef| if array.is_empty() { new_null_array(&DataType::Null, 0) } else { array.clone() };
        let sides = Lists::bind(&inner(&rounds.values), bound.place, "history")?;
        let texts = Texts::bind(&inner(&sides.values), bound.place, "history")?;
        Ok(Self::Rounds { rounds, sides, texts })
    }

    fn get(&self, row: usize) -> Result<Turns<'_>, Flaw> {
        let wrong = |found: String| Flaw {
            kind: "no round of a history",
            expected: "rounds of two texts, what the user said and what the model said".into(),
            found,
            ..Flaw::null("history")
        };
        let mut turns = Turns::new();
        let (rounds, sides, texts) = match self {
            Self::Texts(texts) => match texts.get(row).map(str::trim) {
                None | Some("" | "[]") => return Ok(turns),
                Some(text) => return Err(wrong(format!("the text `{}`", brief(text)))),
            },
            Self::Rounds { rounds, sides, texts } => (rounds, sides, texts),
        };
        for round in rounds.get(row).unwrap_or(0..0) {
            let sides = sides.get(round).ok_or_else(|| wrong("null".into()))?;
            if sides.len() != 2 {
                return Err(wrong(format!("{} texts", sides.len())));
            }
            let text = |i: usize| texts.get(i).ok_or_else(|| wrong("null".into()));
            turns.push(("user", text(sides.start)?));
            turns.push(("assistant", text(sides.start + 1)?));
        }
        Ok(turns)
    }
}
