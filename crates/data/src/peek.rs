//! A first look at a source: its first votes.

use std::ops::ControlFlow;

use problem::Result;
use text::Message;

use crate::walk::Source;
use crate::{Card, ColumnNotes, Split, Vote};

/// The first votes of a source, or of one of its users, as they would be ingested, with what there is to say of its
/// columns; all votes count as `train`.
pub fn first_votes(
    card: &Card,
    sources: &[String],
    count: usize,
    user: Option<&str>,
) -> Result<(Vec<Vote>, ColumnNotes)> {
    let source = Source::open(card, sources, 0, 1)?;
    let mut votes = Vec::new();
    for unit in 0..source.units.len() {
        if votes.len() >= count {
            break;
        }
        source.walk_until(unit, &mut |at, draft| {
            let draft = draft.map_err(|flaw| at.error(flaw))?;
            if user.is_none_or(|u| u == draft.user) {
                let (chosen, rejected) = draft.ranked();
                let [chosen_finished, rejected_finished] = draft.ranked_finished();
                votes.push(Vote {
                    user_id: draft.user.to_string(),
                    prompt: draft
                        .turns
                        .iter()
                        .map(|(role, content)| Message { role: (*role).into(), content: (*content).into() })
                        .collect(),
                    chosen: chosen.into(),
                    rejected: rejected.into(),
                    tie: draft.choice == crate::draft::Choice::Tie,
                    chosen_finished,
                    rejected_finished,
                    chosen_first: draft.chosen_first(),
                    weight: draft.weight,
                    margin: draft.margin,
                    timestamp: draft.timestamp,
                    split: Split::Train,
                    source_row: format!("{}:{}", at.short, at.row),
                });
            }
            Ok(if votes.len() >= count { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
    }
    votes.truncate(count);
    source.remarks().iter().for_each(|remark| tracing::info!("{remark}"));
    Ok((votes, source.notes()))
}
