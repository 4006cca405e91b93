//! PRISM (Kirk et al. 2024), `conversations`: in every turn a participant scores several models' answers from 1 to 100.

use problem::Result;

use crate::columns::{Reals, Texts, field};
use crate::draft::{Emit, Flaw, Turns};
use crate::layouts::bound::{Bound, Extras, Own, every_two, named};

pub(super) const PATHS: [&str; 6] = [
    "user_id",
    "conversation_history.turn",
    "conversation_history.role",
    "conversation_history.content",
    "conversation_history.score",
    "conversation_history.if_chosen",
];

pub(super) fn drafts(bound: &Bound, extras: &Extras, emit: &mut Emit) -> Result<()> {
    let users = bound.texts("user_id")?;
    let history = bound.lists("conversation_history")?;
    let part = |name: &str| field(&history.values, name, bound.place, "conversation_history");
    let text = |name: &str| Texts::bind(&part(name)?, bound.place, &format!("conversation_history.{name}"));
    let (roles, contents) = (text("role")?, text("content")?);
    let turns = Reals::bind(&part("turn")?, bound.place, "conversation_history.turn")?;
    let scores = Reals::bind(&part("score")?, bound.place, "conversation_history.score")?;
    let chosen = part("if_chosen")?;
    let chosen = |i: usize| arrow::array::AsArray::as_boolean_opt(&chosen).is_some_and(|c| c.value(i));
    for row in 0..bound.batch.num_rows() {
        let read = (|| {
            let user = users.get(row).ok_or_else(|| Flaw::null("user_id")).and_then(|user| named(user, "user_id"))?;
            Ok((user, history.get(row).ok_or_else(|| Flaw::null("conversation_history"))?))
        })();
        let (user, messages) = match read {
            Ok(read) => read,
            Err(flaw) => {
                emit(row, Err(flaw))?;
                continue;
            }
        };
        let read = |column: &Reals| messages.clone().map(|i| column.get(i)).collect::<Result<Vec<Option<f64>>, Flaw>>();
        let (turns, scores) = match (read(&turns), read(&scores)) {
            (Ok(turns), Ok(scores)) => (turns, scores),
            (Err(flaw), _) | (_, Err(flaw)) => {
                emit(row, Err(flaw))?;
                continue;
            }
        };
        let first = messages.start;
        // The conversation so far: what the user said and, of each turn, the answer they went on with.
        let mut prompt = Turns::new();
        let mut at = messages.start;
        while at < messages.end {
            let turn = turns[at - first];
            let end = (at..messages.end).find(|i| turns[*i - first] != turn).unwrap_or(messages.end);
            let of = |role: &'static str| (at..end).filter(|i| roles.get(*i) == Some(role)).collect::<Vec<_>>();
            prompt.extend(of("user").iter().filter_map(|i| contents.get(*i)).map(|text| ("user", text)));
            let answers = of("model");
            // An answer without a score was not shown to the end, or not rated.
            let rated: Vec<usize> = answers
                .iter()
                .copied()
                .filter(|i| scores[*i - first].is_some() && contents.get(*i).is_some())
                .collect();
            let numbers: Vec<f64> = rated.iter().filter_map(|i| scores[*i - first]).collect();
            for (one, other, choice, gap) in every_two(&numbers) {
                let own = Own {
                    weight: 1.0 / (rated.len() - 1) as f32,
                    margin: Some(gap),
                    timestamp: None,
                    ..Own::default()
                };
                let text = |i: usize| contents.get(rated[i]).unwrap_or_default();
                emit(row, extras.draft(row, user, prompt.clone(), text(one), text(other), choice, own))?;
            }
            let kept = answers.iter().find(|i| chosen(**i)).and_then(|i| contents.get(*i));
            prompt.extend(kept.map(|text| ("assistant", text)));
            at = end;
        }
    }
    Ok(())
}
