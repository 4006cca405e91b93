//! Who is asked what in which round, and in which order a round's responses are learnt from: decided by user, round and seed alone.

use std::collections::BTreeMap;

use lm::{Present, RowCounts, UserIndex};
use problem::Result;
use rand::seq::SliceRandom;
use run::Run;
use text::{Fitted, Message, Row, Tokenizer};

use crate::ppo::config::{PpoConfig, wrong};
use crate::ppo::rollouts::{Ask, Rollout, by_user};

/// Prompts as tokens, and as they were.
pub(crate) type Questions<'a> = (Vec<Vec<i64>>, Vec<&'a [Message]>);

/// Prompts as tokens, each with room for a response.
pub(crate) fn tokenised<'a>(
    config: &PpoConfig,
    tokenizer: &Tokenizer,
    prompts: &'a [Vec<Message>],
) -> Result<(Questions<'a>, RowCounts)> {
    let mut counts = RowCounts::default();
    let (mut out, mut kept) = (Vec::new(), Vec::new());
    let room = tokenizer.most_tokens(config.max_row_tokens).saturating_sub(config.max_new_tokens.get() + 1); // and the stop token
    if room == 0 {
        let most = tokenizer.most_tokens(config.max_row_tokens);
        let expected = format!("fewer than {} tokens, so that a prompt has room", most.saturating_sub(1));
        return Err(wrong("`max_new_tokens`", expected, config.max_new_tokens, &text::context_hint(most)));
    }
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
            policy => {
                let hint = format!("{} are a response's with its end", config.max_new_tokens.get() + 1);
                let most = tokenizer.most_tokens(config.max_row_tokens);
                let limit = format!("; a row has at most {most} tokens, of which {hint}");
                row.fit(room, policy).map_err(|e| {
                    let said = e.hint().unwrap_or_default().to_owned();
                    if most < config.max_row_tokens {
                        e.with_hint(text::context_hint(most) + &limit)
                    } else {
                        e.with_hint(said + &limit)
                    }
                })?
            }
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
        return Err(wrong("prompts", expected, "none", "raise `max_row_tokens`"));
    }
    Ok(((out, kept), counts))
}

/// What the `active` users are asked in the round that is each one's own next: `steps` are the rounds that each user of the table has taken.
pub(crate) fn ask(
    config: &PpoConfig,
    run: &Run,
    users: &[String],
    active: &Present,
    steps: &[usize],
    questions: &[Vec<i64>],
) -> Vec<Ask> {
    let of_user = |(_, user): (_, UserIndex)| {
        let turns = questions_of(config, run, &users[user.0], steps[user.0], questions);
        turns.into_iter().map(move |(turn, prompt)| (user, turn, prompt)).collect::<Vec<_>>()
    };
    let ask = |(user, turn, prompt): (UserIndex, usize, usize)| Ask {
        user,
        prompt,
        turn,
        ids: questions[prompt].clone(),
        seeds: seeds(config, run, &users[user.0], turn),
    };
    active.iter().flat_map(of_user).map(ask).collect()
}

/// Turns and prompts of a user's round: a stream of whole passes, each in an order of its own.
fn questions_of(config: &PpoConfig, run: &Run, user: &str, step: usize, questions: &[Vec<i64>]) -> Vec<(usize, usize)> {
    let count = config.prompts_per_step.get();
    let mut orders: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let pick = |i: usize| {
        let (epoch, at) = (i / questions.len(), i % questions.len());
        let order = orders.entry(epoch).or_insert_with(|| {
            let mut order: Vec<usize> = (0..questions.len()).collect();
            order.shuffle(&mut run.rng(&["prompts", user, &epoch.to_string()]));
            order
        });
        (i, order[at])
    };
    (step * count..(step + 1) * count).map(pick).collect()
}

fn seeds(config: &PpoConfig, run: &Run, user: &str, turn: usize) -> Vec<[u8; 32]> {
    let turn = turn.to_string();
    let seed = |n: usize| run::derive(run.seed(), &["ppo", "answer", user, &turn, &n.to_string()]);
    (0..config.samples_per_prompt.get()).map(seed).collect()
}

/// A pass over a round in minibatches, each with a share of every user's responses. Responses to one turn stay together where they can.
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
    for (user, own) in by_user(rollouts) {
        let mut turns: Vec<(usize, Vec<usize>)> = Vec::new(); // responses of one turn follow each other
        for row in own {
            match turns.last_mut() {
                Some((turn, rows)) if *turn == rollouts[row].turn => rows.push(row),
                _ => turns.push((rollouts[row].turn, vec![row])),
            }
        }
        turns.shuffle(&mut run.rng(&["minibatches", &users[user.0], &steps[user.0].to_string(), &epoch.to_string()]));
        let order: Vec<usize> = turns.into_iter().flat_map(|(_, rows)| rows).collect();
        for (i, row) in order.iter().enumerate() {
            out[i * count / order.len()].push(*row);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use lm::TokenRow;

    #[test]
    fn every_response_is_in_one_minibatch_also_where_a_prompt_comes_twice() {
        let config = PpoConfig::default();
        let config =
            PpoConfig { prompts_per_step: 4.try_into().unwrap(), minibatches: 3.try_into().unwrap(), ..config };
        let dir = tempfile::tempdir().unwrap();
        let identity = run::Identity::new("ppo", 1, serde_json::json!({}), 3);
        let run = Run::begin(&dir.path().join("ppo"), identity, run::Environment::new()).unwrap();
        let (users, questions) = (["ann".to_owned(), "bob".to_owned()], vec![vec![1i64]; 3]);
        let mut rollouts = Vec::new();
        for (user, name) in UserIndex::all(users.len()).zip(&users) {
            for (turn, prompt) in questions_of(&config, &run, name, 1, &questions) {
                assert_eq!(seeds(&config, &run, name, turn).len(), 2);
                let row = TokenRow { ids: vec![1, 2], answer_start: 1 };
                let one =
                    Rollout { user, prompt, turn, row, sampled: 1, finished: true, text: String::new(), logp: vec![] };
                rollouts.extend([one.clone(), one]);
            }
        }
        let twice = (0..3).any(|p| rollouts.iter().filter(|r| r.user == UserIndex(0) && r.prompt == p).count() == 4);
        assert!(twice, "four turns over three prompts");
        for epoch in 0..3 {
            let batches = minibatches(&config, &run, &users, &[1, 1], &rollouts, epoch);
            let mut all = batches.concat();
            all.sort_unstable();
            assert_eq!(all, (0..16).collect::<Vec<_>>());
            assert!(batches.iter().all(|b| b.len() == 4 || b.len() == 6), "{batches:?}");
        }
        // Whole passes: the three prompts of the second are all there.
        let mut second: Vec<usize> =
            (0..3).flat_map(|s| questions_of(&config, &run, "ann", s, &questions)).map(|q| q.1).collect();
        second = second[3..6].to_vec();
        second.sort_unstable();
        assert_eq!(second, [0, 1, 2]);
    }
}
