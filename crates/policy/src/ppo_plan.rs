//! Who is asked what in which round, and in which order a round's answers are learnt from: decided by user, round and seed alone.

use std::collections::BTreeMap;

use lm::RowCounts;
use rand::seq::SliceRandom;
use run::Run;
use text::{Fitted, Message, Row, Tokenizer};

use crate::Result;
use crate::ppo_config::{PpoConfig, invalid};
use crate::rollouts::Rollout;

/// Prompts as tokens, and as they were.
pub(crate) type Questions<'a> = (Vec<Vec<i64>>, Vec<&'a [Message]>);

/// Prompts as tokens, each with room for an answer.
pub(crate) fn tokenised<'a>(
    config: &PpoConfig,
    tokenizer: &Tokenizer,
    prompts: &'a [Vec<Message>],
) -> Result<(Questions<'a>, RowCounts)> {
    let mut counts = RowCounts::default();
    let (mut out, mut kept) = (Vec::new(), Vec::new());
    let room = config.max_row_tokens.saturating_sub(config.max_new_tokens.get() + 1); // and the stop token
    for prompt in prompts {
        let ids = tokenizer.prompt(prompt)?;
        let row = Row { answer_start: ids.len(), ids, straddles: false };
        // A prompt that is cut keeps its end.
        let fitted = match config.over_long {
            text::OverLong::TruncatePromptLeft if room > 0 && row.ids.len() > room => {
                counts.truncated += 1;
                Fitted::Whole(Row {
                    ids: row.ids[row.ids.len() - room..].to_vec(),
                    answer_start: room,
                    straddles: false,
                })
            }
            policy => row.fit(room, policy)?,
        };
        match fitted {
            Fitted::Whole(row) | Fitted::Truncated(row) => {
                out.push(row.ids);
                kept.push(prompt.as_slice());
            }
            Fitted::Dropped => counts.dropped += 1,
        }
    }
    if out.is_empty() {
        let expected = format!("prompts of at most {room} tokens");
        return Err(invalid("prompts", expected, "none", "raise `max_row_tokens`"));
    }
    Ok(((out, kept), counts))
}

/// The prompts of a user's round: a stream of whole passes, each in an order of its own.
pub(crate) fn questions_of(
    config: &PpoConfig,
    run: &Run,
    user: &str,
    step: usize,
    questions: &[Vec<i64>],
) -> Vec<usize> {
    let count = config.prompts_per_step.get();
    let mut orders: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let pick = |i: usize| {
        let (epoch, at) = (i / questions.len(), i % questions.len());
        let order = orders.entry(epoch).or_insert_with(|| {
            let mut order: Vec<usize> = (0..questions.len()).collect();
            order.shuffle(&mut run.rng(&["prompts", user, &epoch.to_string()]));
            order
        });
        order[at]
    };
    (step * count..(step + 1) * count).map(pick).collect()
}

pub(crate) fn seeds(config: &PpoConfig, run: &Run, user: &str, step: usize, prompt: usize) -> Vec<[u8; 32]> {
    let (step, prompt) = (step.to_string(), prompt.to_string());
    let seed = |n: usize| run::derive(run.seed(), &["ppo", "answer", user, &step, &prompt, &n.to_string()]);
    (0..config.samples_per_prompt.get()).map(seed).collect()
}

/// A pass over a round in minibatches, each with a share of every user's answers. Answers to one prompt stay together where they can.
pub(crate) fn minibatches(
    config: &PpoConfig,
    run: &Run,
    users: &[String],
    steps: &[usize],
    rollouts: &[Rollout],
    epoch: usize,
) -> Vec<Vec<usize>> {
    let count = config.minibatches.get();
    let mut out = vec![Vec::new(); count];
    for (u, user) in users.iter().enumerate() {
        let own: Vec<usize> = (0..rollouts.len()).filter(|r| rollouts[*r].user == u).collect();
        let mut prompts: Vec<usize> = own.iter().map(|r| rollouts[*r].prompt).collect();
        prompts.dedup();
        prompts.shuffle(&mut run.rng(&["minibatches", user, &steps[u].to_string(), &epoch.to_string()]));
        let order: Vec<usize> =
            prompts.iter().flat_map(|p| own.iter().copied().filter(|r| rollouts[*r].prompt == *p)).collect();
        for (i, row) in order.iter().enumerate() {
            out[i * count / order.len()].push(*row);
        }
    }
    out
}
