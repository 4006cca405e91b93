//! One file per family of layouts: a source's batch of rows in, judgements out.

mod arena;
mod attributes;
mod bound;
mod canonical;
mod implicit;
mod llama_factory;
mod multipref;
mod pairs;
mod prism;
mod rankings;
mod ratings;
mod tldr;
mod votes;

use problem::Result;

use crate::card::{Card, Columns, Layout};
use crate::draft::Emit;

use bound::Extras;
pub(crate) use bound::{Bound, missing};

/// What a layout remembers from one batch of a file to the next.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) helpsteer: Option<attributes::Half>,
    pub(crate) ratings: ratings::Memory,
}

/// Paths of the columns that a card's layout reads, with dots for fields (also of structs in lists). `known` are the source's
/// columns.
pub(crate) fn paths(card: &Card, known: &[String]) -> Vec<String> {
    let own: Vec<String> = match &card.layout {
        Layout::Votes { user_id, prompt, response_a, response_b, label, .. } => {
            user_id.iter().chain([prompt, response_a, response_b, label]).cloned().collect()
        }
        Layout::Pairs { user_id, prompt, chosen, rejected } => {
            let named = user_id.iter().chain(prompt).chain([chosen, rejected]);
            named.cloned().collect()
        }
        Layout::Rankings { user_id, prompt, responses, scores, .. } => {
            user_id.iter().chain([prompt, responses, scores]).cloned().collect()
        }
        Layout::Ratings { user_id, item, rating, .. } => [user_id, item, rating].map(String::clone).to_vec(),
        Layout::Canonical => canonical::paths(known),
        Layout::Hh { user_id } => with_users(user_id.as_ref(), &pairs::HH),
        Layout::Tldr => tldr::PATHS.map(str::to_owned).to_vec(),
        Layout::Prism => prism::PATHS.map(str::to_owned).to_vec(),
        Layout::Helpsteer2 => attributes::HELPSTEER2.map(str::to_owned).to_vec(),
        Layout::Ultrafeedback => attributes::ultrafeedback_paths(),
        Layout::Arena => arena::PATHS.map(str::to_owned).to_vec(),
        Layout::Personalllm => rankings::personalllm_paths(known),
        Layout::Multipref => multipref::paths(),
        Layout::Alpaca { user_id } => with_users(user_id.as_ref(), &llama_factory::ALPACA),
        Layout::Sharegpt { user_id } => with_users(user_id.as_ref(), &llama_factory::SHAREGPT),
    };
    let Columns {
        system,
        split,
        split_names: _,
        split_files: _,
        timestamp,
        group,
        group_until: _,
        weight,
        margin,
        finished,
    } = &card.columns;
    let extra =
        [system, split, timestamp, group, weight, margin].into_iter().flatten().chain(finished.iter().flatten());
    let there = |name: &&&str| known.iter().any(|k| k == **name);
    let optional = optional(&card.layout).iter().filter(there).map(|name| (*name).to_owned());
    own.into_iter().chain(extra.cloned()).chain(optional).collect()
}

fn with_users(user_id: Option<&String>, fixed: &[&str]) -> Vec<String> {
    user_id.into_iter().cloned().chain(fixed.iter().map(|name| (*name).to_owned())).collect()
}

/// Columns that a layout reads where a file has them, and does without where it has not.
pub(crate) fn optional(layout: &Layout) -> &'static [&'static str] {
    match layout {
        Layout::Alpaca { .. } => &llama_factory::ALPACA_OPTIONAL,
        Layout::Sharegpt { .. } => &llama_factory::SHAREGPT_OPTIONAL,
        _ => &[],
    }
}

/// Must a file's rows be read in order, from the first?
pub(crate) fn in_order(layout: &Layout) -> bool {
    matches!(layout, Layout::Helpsteer2 | Layout::Ratings { .. })
}

/// The judgements of a batch, in the order of its rows.
pub(crate) fn drafts(card: &Card, bound: &Bound, seed: u64, memory: &mut Memory, emit: &mut Emit) -> Result<()> {
    let extras = Extras::bind(&card.columns, bound)?;
    match &card.layout {
        Layout::Canonical => canonical::drafts(bound, &extras, emit),
        Layout::Votes { .. } => votes::drafts(card, bound, &extras, emit),
        Layout::Pairs { .. } => pairs::drafts(card, bound, &extras, emit),
        Layout::Hh { .. } => pairs::hh(card, bound, &extras, emit),
        Layout::Alpaca { .. } => llama_factory::alpaca(card, bound, &extras, emit),
        Layout::Sharegpt { .. } => llama_factory::sharegpt(card, bound, &extras, emit),
        Layout::Rankings { .. } => rankings::drafts(card, bound, &extras, emit),
        Layout::Personalllm => rankings::personalllm(bound, &extras, emit),
        Layout::Ratings { .. } => ratings::drafts(&card.layout, bound, &extras, seed, &mut memory.ratings, emit),
        Layout::Tldr => tldr::drafts(bound, &extras, emit),
        Layout::Prism => prism::drafts(bound, &extras, emit),
        Layout::Helpsteer2 => attributes::helpsteer2(bound, &extras, seed, &mut memory.helpsteer, emit),
        Layout::Ultrafeedback => attributes::ultrafeedback(bound, &extras, emit),
        Layout::Arena => arena::drafts(bound, &extras, emit),
        Layout::Multipref => multipref::drafts(bound, &extras, emit),
    }
}

/// What is left when a file ends.
pub(crate) fn finish(card: &Card, seed: u64, memory: &mut Memory, emit: &mut Emit) -> Result<()> {
    match &card.layout {
        Layout::Ratings { .. } => ratings::finish(&card.layout, seed, &mut memory.ratings, emit),
        Layout::Helpsteer2 => attributes::unpaired(memory.helpsteer.take().as_ref(), emit),
        _ => Ok(()),
    }
}
