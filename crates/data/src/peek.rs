//! A first look at a source: which common shape its columns have, and its first votes.

use std::ops::ControlFlow;

use problem::{Result, invalid};
use text::Message;

use crate::sources::resolve;
use crate::units::open;
use crate::walk::Source;
use crate::{Card, Layout, OneOrMore, Split, Vote};

/// Names under which sources keep a user's id.
const USERS: [&str; 8] =
    ["user_id", "worker", "annotator_id", "rater_id", "labeler_index", "rater", "annotator", "judge"];

/// The card of a source whose columns have one of the common shapes, and in words what was taken for what.
///
/// # Errors
/// Columns of no known shape; they are listed.
pub fn recognise(sources: &[String]) -> Result<(Card, String)> {
    let file = resolve(sources)?
        .files
        .into_iter()
        .next()
        .ok_or_else(|| invalid(sources.join(", "), "at least one file", "none", "name files, folders or globs"))?;
    let name = file.name.to_string();
    let columns = open(file)?.columns;
    let has = |wanted: &[&str]| wanted.iter().all(|w| columns.iter().any(|c| c == w));
    let user = || USERS.iter().find(|u| has(&[**u])).map(|u| (*u).to_owned());
    let canonical = has(&["user_id", "prompt", "chosen", "rejected", "tie", "chosen_first", "split", "source_row"]);
    let layout = if canonical {
        Layout::Canonical
    } else if has(&["info", "summaries", "choice", "worker"]) {
        Layout::Tldr
    } else if has(&["conversation_history", "user_id"]) {
        Layout::Prism
    } else if has(&["prompt", "response", "helpfulness", "correctness", "coherence", "complexity", "verbosity"]) {
        Layout::Helpsteer2
    } else if has(&["instruction", "completions"]) {
        Layout::Ultrafeedback
    } else if has(&["conversation_a", "conversation_b", "winner", "judge"]) {
        Layout::Arena
    } else if has(&["prompt", "response_1", "response_2"]) {
        Layout::Personalllm
    } else if has(&["completion_a", "completion_b", "normal_worker_annotations"]) {
        Layout::Multipref
    } else if has(&["instruction", "chosen", "rejected"]) {
        Layout::Alpaca
    } else if has(&["conversations", "chosen", "rejected"]) {
        Layout::Sharegpt
    } else if has(&["prompt", "response_a", "response_b", "label"])
        && let Some(user_id) = user()
    {
        Layout::Votes {
            user_id,
            prompt: "prompt".into(),
            response_a: "response_a".into(),
            response_b: "response_b".into(),
            label: "label".into(),
            label_a: "a".into(),
            label_b: "b".into(),
            label_tie: OneOrMore::One("tie".into()),
        }
    } else if has(&["chosen", "rejected"]) {
        let prompt = has(&["prompt"]).then(|| "prompt".to_owned());
        Layout::Pairs { user_id: user(), prompt, chosen: "chosen".into(), rejected: "rejected".into() }
    } else {
        return Err(invalid(
            name,
            "columns of a common shape",
            columns.join(", "),
            "write a card that says which column means what: datasets/llmfao/card.toml is an example",
        ));
    };
    let layout_text = toml::to_string(&layout)
        .map_err(|e| problem::bug(&name, "a layout that can be written as TOML", e.to_string()))?;
    let why = format!("the columns of {name} are taken as: {}", layout_text.trim().replace('\n', ", "));
    let card = Card {
        name: name.rsplit('/').next().unwrap_or(&name).to_owned(),
        source: name,
        licence: "not said".into(),
        citation: None,
        sha256: std::collections::BTreeMap::new(),
        layout,
        columns: crate::Columns { split: canonical.then(|| "split".to_owned()), ..crate::Columns::default() },
        users: None,
    };
    Ok((card, why))
}

/// The first votes of a source, or of one of its users, as they would be ingested; all count as `train`.
pub fn first_votes(card: &Card, sources: &[String], count: usize, user: Option<&str>) -> Result<Vec<Vote>> {
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
    Ok(votes)
}
