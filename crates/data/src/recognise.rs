//! Which of the common shapes a source's columns have, where no card says it.

use std::collections::BTreeMap;

use problem::{Result, invalid};

use crate::card::{Card, Columns, Layout, OneOrMore, Users};
use crate::roles::{prompt_column, user_column};
use crate::sources::resolve;
use crate::walk::open_all;

/// The card of a source whose columns have one of the common shapes, and in words what was taken for what. The columns of all files
/// are looked at.
///
/// # Errors
/// Columns of no known shape; they are listed.
pub fn recognise(sources: &[String]) -> Result<(Card, String)> {
    let files = open_all(resolve(sources)?.files, 0)?;
    let name = sources.join(", ");
    let mut columns: Vec<String> = Vec::new();
    for column in files.iter().flat_map(|file| &file.columns) {
        if !columns.contains(column) {
            columns.push(column.clone());
        }
    }
    let Some(layout) = published(&columns).or_else(|| general(&columns)) else {
        return Err(invalid(name, "columns of a common shape", columns.join(", "), hint(&columns)));
    };
    if let (Users::Layout, Some(user)) = (layout.users(), user_column(&columns).filter(|_| layout != Layout::Multipref))
    {
        let found = format!("such columns, and the column `{user}` besides");
        let hint = format!(
            "say in a card which it is: `kind = \"{}\"` under [layout] leaves `{user}` aside, `kind = \"rankings\"` or \"votes\" reads it",
            kind(&layout)?
        );
        return Err(invalid(name, "users, or columns that stand for users", found, hint));
    }
    let split = (layout == Layout::Canonical).then(|| "split".to_owned());
    // The names that the canonical table gives them.
    let names = ["chosen_finished", "rejected_finished"];
    let pairs = matches!(layout, Layout::Pairs { .. }) && has(&columns, &names);
    let finished = pairs.then(|| names.map(str::to_owned));
    let why = format!("the columns of {name} are taken as: {}", text(&layout)?.trim().replace('\n', ", "));
    let card = Card {
        name: name.rsplit('/').next().unwrap_or(&name).to_owned(),
        source: name,
        licence: "not said".into(),
        citation: None,
        sha256: BTreeMap::new(),
        one_user: None,
        layout,
        columns: Columns { split, finished, ..Columns::default() },
        users: None,
    };
    Ok((card, why))
}

fn text(layout: &Layout) -> Result<String> {
    toml::to_string(layout).map_err(|e| problem::bug("a layout", "a layout that can be written as TOML", e.to_string()))
}

fn kind(layout: &Layout) -> Result<String> {
    let text = text(layout)?;
    Ok(text.lines().next().and_then(|l| l.split('"').nth(1)).unwrap_or_default().to_owned())
}

fn has(columns: &[String], wanted: &[&str]) -> bool {
    wanted.iter().all(|w| columns.iter().any(|c| c == w))
}

/// Shapes that data sets were published with, told by columns that no other has.
fn published(columns: &[String]) -> Option<Layout> {
    let has = |wanted: &[&str]| has(columns, wanted);
    let user_id = || user_column(columns).cloned();
    Some(if has(&["user_id", "prompt", "chosen", "rejected", "tie", "chosen_first", "split", "source_row"]) {
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
    } else if has(&["instruction", "chosen", "rejected"]) && !has(&["prompt"]) {
        Layout::Alpaca { user_id: user_id() }
    } else if has(&["conversations", "chosen", "rejected"]) && !has(&["prompt"]) {
        Layout::Sharegpt { user_id: user_id() }
    } else {
        return None;
    })
}

/// Columns of rankings: the responses, and the numbers with what is better in them.
const RESPONSES: [&str; 4] = ["responses", "completions", "answers", "candidates"];
const NUMBERS: [(&str, bool); 6] =
    [("scores", true), ("ratings", true), ("rewards", true), ("ranks", false), ("ranking", false), ("rank", false)];

/// Shapes whose columns have no fixed names: told by common ones, where only one column can be meant.
fn general(columns: &[String]) -> Option<Layout> {
    let user_id = user_column(columns).cloned();
    let prompt = prompt_column(columns).cloned();
    if has(columns, &["response_a", "response_b", "label"]) {
        return Some(Layout::Votes {
            user_id,
            prompt: prompt?,
            response_a: "response_a".into(),
            response_b: "response_b".into(),
            label: "label".into(),
            label_a: "a".into(),
            label_b: "b".into(),
            label_tie: OneOrMore::One("tie".into()),
        });
    }
    if has(columns, &["chosen", "rejected"]) {
        return Some(Layout::Pairs { user_id, prompt, chosen: "chosen".into(), rejected: "rejected".into() });
    }
    let mut responses = RESPONSES.iter().filter(|name| has(columns, &[name]));
    let mut numbers = NUMBERS.iter().filter(|(name, _)| has(columns, &[name]));
    match (responses.next(), responses.next(), numbers.next(), numbers.next()) {
        (Some(responses), None, Some((scores, higher_is_better)), None) => Some(Layout::Rankings {
            user_id,
            prompt: prompt?,
            responses: (*responses).into(),
            scores: (*scores).into(),
            higher_is_better: *higher_is_better,
        }),
        _ => None,
    }
}

/// What to write in a card for columns of no common shape.
fn hint(columns: &[String]) -> String {
    let user = user_column(columns).map_or("...", String::as_str);
    let prompt = prompt_column(columns).map_or("...", String::as_str);
    let rated = columns.iter().find(|c| ["rating", "score", "stars", "rank"].contains(&c.to_lowercase().as_str()));
    let layout = match rated {
        Some(rating) => format!(
            "kind = \"ratings\", user_id = {user:?}, item = (the rated text), rating = {rating:?}, prompt = (what the texts are responses to), min_gap = 1.0"
        ),
        None if columns
            .iter()
            .any(|c| c.contains("responses") || c.contains("completions") || c.contains("answers")) =>
        {
            format!(
                "kind = \"rankings\", user_id = {user:?}, prompt = {prompt:?}, responses = \"...\", scores = \"...\", higher_is_better = true"
            )
        }
        None => format!(
            "kind = \"votes\", user_id = {user:?}, prompt = {prompt:?}, response_a = \"...\", response_b = \"...\", label = \"...\", \
             label_a = \"...\", label_b = \"...\", label_tie = \"...\" (or kind = \"pairs\" with chosen and rejected)"
        ),
    };
    format!(
        "give --card FILE with a card that says which column means what, with name, source and licence, and under [layout]: {layout}; \
         datasets/llmfao/card.toml is an example"
    )
}
