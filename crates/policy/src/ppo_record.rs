//! What is kept of PPO's rounds: to go on from, to report, to read.

use std::collections::BTreeMap;

use lm::RowCounts;
use problem::Result;
use run::Run;
use serde::{Deserialize, Serialize};
use serde_json::json;
use text::Message;

use crate::ppo_rewards::Scale;
use crate::ppo_update::Seen;

/// One user's training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PpoUserReport {
    /// Rounds.
    pub steps: usize,
    /// Answers.
    pub episodes: usize,
    /// Sampled tokens.
    pub tokens: usize,
    /// Mean calibrated score of an answer over the first tenth of the rounds.
    pub first_score: f64,
    /// The same over the last tenth.
    pub final_score: f64,
    /// Divergence from the reference over the last tenth, nats an answer.
    pub final_kl: f64,
    /// The divergence's last weight.
    pub beta: f64,
    /// Answers that the guard did not let pass.
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
    /// users' policies learnt for the first time: 0 where the same passes give the same bits.
    pub first_update_difference: f64,
    /// Mean over rounds of the mean difference between a token's log-probability in the decoder and in the training pass.
    pub rollout_difference: f64,
    /// Scales of rewards, by user id.
    pub scales: BTreeMap<String, Scale>,
    /// Prompts that were used, and those left out or cut.
    pub prompts: usize,
    /// See there.
    pub rows: RowCounts,
}

/// What is kept of one user's round.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Past {
    pub(crate) episodes: usize,
    pub(crate) tokens: usize,
    pub(crate) score: f64,
    pub(crate) kl: f64,
    pub(crate) guarded: usize,
    pub(crate) rollout_difference: f64,
}

/// Where a user is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Learner {
    pub(crate) beta: f64,
    pub(crate) past: Vec<Past>, // of every round
    pub(crate) quarantined: Option<String>,
}

/// Everything of a checkpoint but tensors.
#[derive(Serialize, Deserialize)]
pub(crate) struct Standing {
    pub(crate) tick: usize,
    pub(crate) learners: Vec<Learner>,
    pub(crate) first_update_difference: f64,
}

/// An answer, for whoever wants to read or judge it later: a row of `rollouts.parquet`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Said {
    pub(crate) user: usize,
    pub(crate) step: usize,
    pub(crate) prompt: usize,
    pub(crate) text: String,
    pub(crate) finished: bool,
    pub(crate) score: f32,
    pub(crate) kl: f32,
}

/// What is seen of a user over a round's updates.
#[derive(Debug, Default)]
pub(crate) struct Updates {
    pub(crate) policy: Vec<Seen>,
    pub(crate) critic: Vec<Seen>,
    pub(crate) norms: Vec<f64>,
}

impl Updates {
    /// Adds TRL's metrics to a user's line.
    pub(crate) fn describe(&self, line: &mut serde_json::Value) {
        let mean = |all: &[Seen], f: fn(&Seen) -> f64| all.iter().map(f).sum::<f64>() / all.len() as f64;
        if !self.policy.is_empty() {
            let ratio = mean(&self.policy, |s| s.ratio);
            line["loss/policy_avg"] = json!(mean(&self.policy, |s| s.loss));
            line["policy/approxkl_avg"] = json!(mean(&self.policy, |s| s.approx_kl));
            line["policy/clipfrac_avg"] = json!(mean(&self.policy, |s| s.clipped));
            line["policy/entropy_avg"] = json!(mean(&self.policy, |s| s.entropy));
            line["val/ratio"] = json!(ratio);
            line["val/ratio_var"] = json!(mean(&self.policy, |s| s.ratio_square) - ratio * ratio);
            line["grad_norm"] = json!(self.norms.iter().sum::<f64>() / self.norms.len() as f64);
            line["updates"] = json!(self.policy.len());
        }
        if !self.critic.is_empty() {
            line["loss/value_avg"] = json!(mean(&self.critic, |s| s.loss));
            line["val/clipfrac_avg"] = json!(mean(&self.critic, |s| s.clipped));
        }
    }
}

pub(crate) fn quarantine(learner: &mut Learner, why: String) {
    learner.quarantined.get_or_insert(why);
}

pub(crate) fn write_said(run: &Run, said: &[Said], prompts: &[&[Message]], users: &[String]) -> Result<()> {
    use data::Column;
    let text = |f: &dyn Fn(&Said) -> String| Column::Text(said.iter().map(f).collect());
    let real = |f: &dyn Fn(&Said) -> f32| Column::Real(said.iter().map(|s| f64::from(f(s))).collect());
    data::write_table(
        &run.path("rollouts.parquet"),
        &[
            ("user_id", text(&|s| users[s.user].clone())),
            ("step", Column::Integer(said.iter().map(|s| s.step as i64).collect())),
            ("prompt", text(&|s| serde_json::to_string(prompts[s.prompt]).expect("plain data"))),
            ("answer", text(&|s| s.text.clone())),
            ("finished", Column::Boolean(said.iter().map(|s| s.finished).collect())),
            ("score", real(&|s| s.score)),
            ("kl", real(&|s| s.kl)),
        ],
    )
}

pub(crate) fn report(
    standing: &Standing,
    scales: &[Scale],
    users: &[String],
    prompts: usize,
    rows: RowCounts,
) -> PpoReport {
    let mut report = PpoReport {
        users: BTreeMap::new(),
        quarantined: BTreeMap::new(),
        tokens: standing.learners.iter().flat_map(|l| &l.past).map(|p| p.tokens).sum(),
        first_update_difference: standing.first_update_difference,
        rollout_difference: 0.0,
        scales: users.iter().cloned().zip(scales.iter().copied()).collect(),
        prompts,
        rows,
    };
    let rounds: Vec<f64> = standing.learners.iter().flat_map(|l| &l.past).map(|p| p.rollout_difference).collect();
    report.rollout_difference = rounds.iter().sum::<f64>() / rounds.len().max(1) as f64;
    for (user, Learner { beta, past, quarantined }) in users.iter().zip(&standing.learners) {
        if let Some(why) = quarantined {
            report.quarantined.insert(user.clone(), why.clone());
            continue;
        }
        let tenth = past.len().div_ceil(10);
        let mean = |some: &[Past], f: fn(&Past) -> f64| some.iter().map(f).sum::<f64>() / some.len() as f64;
        let (first, last) = (&past[..tenth], &past[past.len() - tenth..]);
        report.users.insert(
            user.clone(),
            PpoUserReport {
                steps: past.len(),
                episodes: past.iter().map(|p| p.episodes).sum(),
                tokens: past.iter().map(|p| p.tokens).sum(),
                first_score: mean(first, |p| p.score),
                final_score: mean(last, |p| p.score),
                final_kl: mean(last, |p| p.kl),
                beta: *beta,
                guarded: past.iter().map(|p| p.guarded).sum(),
            },
        );
    }
    report
}
