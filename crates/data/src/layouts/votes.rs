//! Two answers as shown and a label.

use problem::Result;

use crate::draft::{Choice, Emit, Flaw};
use crate::layouts::bound::{Bound, Extras, Own, RowUsers};
use crate::{Card, Layout};

pub(super) fn drafts(card: &Card, bound: &Bound, extras: &Extras, emit: &mut Emit) -> Result<()> {
    let Layout::Votes { user_id: _, prompt, response_a, response_b, label, label_a, label_b, label_tie } = &card.layout
    else {
        unreachable!("the dispatch looked")
    };
    let (users, prompts) = (RowUsers::bind(card, bound)?, bound.talks(prompt)?);
    let (first, second, labels) = (bound.texts(response_a)?, bound.texts(response_b)?, bound.texts(label)?);
    let ties = label_tie.all();
    for row in 0..bound.batch.num_rows() {
        let draft = (|| {
            let user = users.get(row)?;
            let first = first.get(row).ok_or_else(|| Flaw::null(response_a))?;
            let second = second.get(row).ok_or_else(|| Flaw::null(response_b))?;
            let value = labels.get(row).ok_or_else(|| Flaw::null(label))?;
            let choice = match value {
                v if v == label_a => Choice::First,
                v if v == label_b => Choice::Second,
                v if ties.iter().any(|t| t == v) => Choice::Tie,
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
            let turns = prompts.get(row, "user").ok_or_else(|| Flaw::null(prompt))?;
            extras.draft(row, user, turns, first, second, choice, Own::default())
        })();
        emit(row, draft)?;
    }
    Ok(())
}
