//! Two answers as shown and a label.

use arrow::compute::cast;
use arrow::datatypes::DataType;
use problem::Result;

use crate::columns::Texts;
use crate::draft::{Choice, Emit, Flaw, Turns};
use crate::layouts::bound::{Bound, Extras, Own, RowUsers};
use crate::{Card, Layout};

pub(super) fn drafts(card: &Card, bound: &Bound, extras: &Extras, emit: &mut Emit) -> Result<()> {
    let Layout::Votes { user_id: _, prompt, response_a, response_b, label, label_a, label_b, label_tie } = &card.layout
    else {
        unreachable!("the dispatch looked")
    };
    let (users, prompts) = (RowUsers::bind(card, bound)?, bound.talks(prompt)?);
    let (first, second, labels) = (bound.talks(response_a)?, bound.talks(response_b)?, labels(bound, label)?);
    let ties = label_tie.all();
    for row in 0..bound.batch.num_rows() {
        let draft = (|| {
            let user = users.get(row)?;
            let first = single_text(first.get(row, "assistant")?, response_a)?;
            let second = single_text(second.get(row, "assistant")?, response_b)?;
            let value = labels.get(row).ok_or_else(|| Flaw::null(label))?;
            let choice = match value {
                v if v == label_a => Choice::First,
                v if v == label_b => Choice::Second,
                v if ties.iter().any(|t| t == v) => Choice::Tie,
                v if same_value(v, label_a) => Choice::First,
                v if same_value(v, label_b) => Choice::Second,
                v if ties.iter().any(|t| same_value(v, t)) => Choice::Tie,
                other => {
                    let ties: Vec<String> = ties.iter().map(|t| format!("`{t}`")).collect();
                    return Err(Flaw {
                        kind: "unknown label",
                        column: label.clone(),
                        expected: format!("`{label_a}`, `{label_b}` or {}", ties.join(" or ")),
                        found: format!("`{other}`"),
                        hint: "set label_a, label_b and label_tie in the data set's card",
                    });
                }
            };
            let turns = prompts.get(row, "user")?;
            extras.draft(row, user, turns, first, second, choice, Own::default())
        })();
        emit(row, draft)?;
    }
    Ok(())
}

/// The text of a response, which is one message.
fn single_text<'a>(mut turns: Turns<'a>, column: &str) -> Result<&'a str, Flaw> {
    let last = turns.pop();
    let (Some((_, text)), true) = (last, turns.is_empty()) else {
        return Err(Flaw {
            kind: "an answer of several messages",
            column: column.into(),
            expected: "one message".into(),
            found: format!("{} messages", turns.len() + usize::from(last.is_some())),
            hint: "keep the response alone, and put the messages before it into the prompt",
        });
    };
    Ok(text)
}

/// Is a label the card's in another spelling: `1.0` for `1` (pandas writes so where a column has gaps), `True` for `true`?
fn same_value(label: &str, of_card: &str) -> bool {
    let truth = |text: &str| text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("false");
    let (label, of_card) = (label.trim(), of_card.trim());
    match (label.parse::<f64>(), of_card.parse::<f64>()) {
        (Ok(label), Ok(of_card)) => label == of_card,
        _ => truth(label) && label.eq_ignore_ascii_case(of_card),
    }
}

/// A column of labels: texts, whole numbers, or true, false and real numbers as they are written.
fn labels(bound: &Bound, label: &str) -> Result<Texts> {
    let array = bound.array(label)?;
    let written = match array.data_type() {
        DataType::Boolean | DataType::Float32 | DataType::Float64 => cast(&array, &DataType::Utf8).unwrap_or(array),
        _ => array,
    };
    Texts::bind(&written, bound.place, label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_in_another_spelling_are_the_same() {
        for (label, of_card) in
            [("1.0", "1"), ("1", "1.0"), ("-1", "-1.00"), ("True", "true"), ("FALSE", "False"), (" 2 ", "2")]
        {
            assert!(same_value(label, of_card), "{label}");
        }
        for (label, of_card) in [("1", "10"), ("true", "1"), ("A", "a"), ("nan", "nan"), ("", "")] {
            assert!(!same_value(label, of_card), "{label}");
        }
    }
}
