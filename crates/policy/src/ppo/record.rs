//! What is kept of PPO's rounds: to go on from, to report, to read.

use std::collections::BTreeMap;

use lm::{Quarantine, RowCounts, UserIndex};
use problem::Result;
use run::Run;
use serde::{Deserialize, Serialize};
use text::Message;

use crate::ppo::scale::{MaybeScale, Scale};

/// One user's training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PpoUserReport {
    /// Rounds.
    pub steps: usize,
    /// Responses.
    pub episodes: usize,
    /// Sampled tokens.
    pub tokens: usize,
    /// Mean calibrated score of a response over the first tenth of the rounds.
    pub first_score: f64,
    /// The same over the last tenth.
    pub final_score: f64,
    /// Divergence from the reference over the last tenth, nats per response.
    pub final_kl: f64,
    /// The divergence's last weight.
    pub beta: f64,
    /// Responses that the guard did not let pass.
    pub guarded: usize,
}

/// What training was made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PpoReport {
    /// By user id; without those in quarantine.
    pub users: BTreeMap<String, PpoUserReport>,
    /// Users whose training was stopped, and why. Their policies are not written.
    pub quarantined: BTreeMap<String, String>,
    /// Sampled tokens of all users.
    pub tokens: usize,
    /// The largest difference between a log-probability at a round's beginning and in its first update, over the rounds in which
    /// users' policies learnt for the first time: 0 where the same passes give the same bits. A user with a larger one than .1 is in quarantine, and not
    /// counted.
    pub first_update_difference: f64,
    /// Mean over rounds of the mean difference between a token's log-probability in the decoder and in the training pass.
    pub rollout_difference: f64,
    /// Scales of rewards, by user id; without users who have none.
    pub scales: BTreeMap<String, Scale>,
    /// Prompts that were used, and those left out or cut.
    pub prompts: usize,
    /// See there.
    pub rows: RowCounts,
}

/// What is kept of one user's round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RoundRecord {
    /// The step of the loop.
    pub(crate) tick: usize,
    /// Sampled tokens.
    pub(crate) tokens: usize,
    /// Mean score of a response.
    pub(crate) score: f64,
    /// Mean divergence from the reference, nats per response.
    pub(crate) kl: f64,
    /// Responses that the guard did not let pass.
    pub(crate) guarded: usize,
    /// Mean difference between a token's log-probability in the decoder and in the training pass.
    pub(crate) rollout_difference: f64,
    /// See [`PpoReport::first_update_difference`]; 0 but in the round in which the user's policy learns for the first time.
    pub(crate) first_update_difference: f64,
    /// The KL coefficient of the next round.
    pub(crate) beta: f64,
    pub(crate) responses: Vec<Response>,
}

/// A response, for whoever wants to read or judge it later: a row of `rollouts.parquet`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Response {
    pub(crate) prompt: usize,
    pub(crate) text: String,
    pub(crate) finished: bool,
    pub(crate) score: f32,
    pub(crate) kl: f32,
}

/// Writes `rollouts.parquet`: the responses of all rounds as they were sampled, users in order within a round.
pub(crate) fn write_responses(
    run: &Run,
    past: &[Vec<RoundRecord>],
    prompts: &[&[Message]],
    users: &[String],
) -> Result<()> {
    use data::Column;
    let rounds = |user: UserIndex| past[user.0].iter().enumerate().map(move |(step, round)| (round.tick, user, step));
    let mut order: Vec<(usize, UserIndex, usize)> = UserIndex::all(users.len()).flat_map(rounds).collect();
    order.sort_unstable();
    let responses = |(_, user, step): &(usize, UserIndex, usize)| {
        let (user, step) = (*user, *step);
        past[user.0][step].responses.iter().map(move |response| (user, step, response))
    };
    let rows: Vec<(UserIndex, usize, &Response)> = order.iter().flat_map(responses).collect();
    let text = |f: &dyn Fn(&Response) -> String| Column::Text(rows.iter().map(|(_, _, r)| f(r)).collect());
    let real = |f: &dyn Fn(&Response) -> f32| Column::Real(rows.iter().map(|(_, _, r)| f64::from(f(r))).collect());
    data::write_table(
        &run.path("rollouts.parquet"),
        &[
            ("user_id", Column::Text(rows.iter().map(|(user, _, _)| users[user.0].clone()).collect())),
            ("step", Column::Integer(rows.iter().map(|(_, step, _)| *step as i64).collect())),
            ("prompt", text(&|r| serde_json::to_string(prompts[r.prompt]).expect("plain data"))),
            ("answer", text(&|r| r.text.clone())),
            ("finished", Column::Boolean(rows.iter().map(|(_, _, r)| r.finished).collect())),
            ("score", real(&|r| r.score)),
            ("kl", real(&|r| r.kl)),
        ],
    )
}

/// The report of a training that is through.
pub(crate) fn report(
    users: &[String],
    past: &[Vec<RoundRecord>],
    quarantine: &Quarantine,
    scales: &[MaybeScale],
    prompts: usize,
    rows: RowCounts,
) -> PpoReport {
    let rounds = || past.iter().flatten();
    let differences: Vec<f64> = rounds().map(|r| r.rollout_difference).collect();
    let scale = |(user, scale): (&String, &MaybeScale)| Some((user.clone(), *scale.as_ref().ok()?));
    let healthy = quarantine.healthy(users.len());
    PpoReport {
        users: healthy.into_iter().map(|user| (users[user.0].clone(), of_user(&past[user.0]))).collect(),
        quarantined: quarantine.by_id(users),
        tokens: rounds().map(|r| r.tokens).sum(),
        first_update_difference: rounds().map(|r| r.first_update_difference).fold(0.0, f64::max),
        rollout_difference: differences.iter().sum::<f64>() / differences.len().max(1) as f64,
        scales: users.iter().zip(scales).filter_map(scale).collect(),
        prompts,
        rows,
    }
}

fn of_user(past: &[RoundRecord]) -> PpoUserReport {
    let tenth = past.len().div_ceil(10);
    let mean = |some: &[RoundRecord], f: fn(&RoundRecord) -> f64| some.iter().map(f).sum::<f64>() / some.len() as f64;
    let (first, last) = (&past[..tenth], &past[past.len() - tenth..]);
    PpoUserReport {
        steps: past.len(),
        episodes: past.iter().map(|r| r.responses.len()).sum(),
        tokens: past.iter().map(|r| r.tokens).sum(),
        first_score: mean(first, |r| r.score),
        final_score: mean(last, |r| r.score),
        final_kl: mean(last, |r| r.kl),
        beta: past.last().map_or(0.0, |r| r.beta),
        guarded: past.iter().map(|r| r.guarded).sum(),
    }
}
