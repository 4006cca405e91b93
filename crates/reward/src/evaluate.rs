//! Held-out accuracy of each user, with an interval, beside the simplest baseline.

use std::collections::BTreeMap;

use data::{Split, Vote};
use estimate::{Interval, clustered_mean};
use lm::{Lm, Prefix};
use run::Run;
use serde::{Deserialize, Serialize};
use text::Tokenizer;

use crate::{Result, RewardConfig, RewardModel, Texts};

/// One user's accuracy on decided votes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UserAccuracy {
    /// The user.
    pub user: String,
    /// Decided votes of the split.
    pub votes: usize,
    /// Share of votes in which the chosen answer has the higher reward, with a 95% interval clustered by prompt.
    pub accuracy: Interval,
    /// The same for "the longer answer is better".
    pub longer: f64,
}

/// All users' accuracies on one split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// `dev` or `test`.
    pub split: String,
    /// Plain mean over users.
    pub mean_accuracy: f64,
    /// Users without a decided vote in the split are left out.
    pub users: Vec<UserAccuracy>,
    /// Rows left out or changed.
    pub rows: lm::RowCounts,
}

/// Scores the decided votes of `split`.
pub fn evaluate(
    model: &RewardModel,
    lm: &Lm,
    tokenizer: &Tokenizer,
    votes: &[Vote],
    split: Split,
    config: &RewardConfig,
    run: &Run,
) -> Result<Evaluation> {
    let votes: Vec<&Vote> = votes.iter().filter(|v| v.split == split && !v.tie).collect();
    let texts = Texts::new(tokenizer, votes, config.max_row_tokens, config.over_long)?;
    let votes = &texts.votes;
    let prefix = Prefix::new(lm, texts.rows.clone(), model.bank.first_block(), |_| ());
    let mut users = Vec::new();
    for (u, user) in model.users.iter().enumerate() {
        let own: Vec<usize> = (0..votes.len()).filter(|v| votes[*v].user_id == *user).collect();
        let rows: Vec<usize> = own.iter().flat_map(|v| [texts.pairs[*v].0, texts.pairs[*v].1]).collect();
        let scores = model.score(lm, &prefix, &rows, u);
        let mut by_prompt: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
        let mut longer = 0.0;
        for (v, pair) in own.iter().zip(scores.chunks(2)) {
            let vote = votes[*v];
            let cluster = by_prompt.entry(vote.prompt.last().map_or("", |m| &m.content)).or_default();
            cluster.0 += half_for_equal(f64::from(pair[0]), f64::from(pair[1]));
            cluster.1 += 1;
            longer += half_for_equal(vote.chosen.len() as f64, vote.rejected.len() as f64);
        }
        let clusters: Vec<(f64, usize)> = by_prompt.into_values().collect();
        if let Some(accuracy) = clustered_mean(&clusters, &mut run.rng(&["bootstrap", split.name(), user])) {
            let longer = longer / own.len() as f64;
            users.push(UserAccuracy { user: user.clone(), votes: own.len(), accuracy, longer });
        }
    }
    let mean_accuracy = users.iter().map(|u| u.accuracy.mean).sum::<f64>() / users.len().max(1) as f64;
    Ok(Evaluation { split: split.name().into(), mean_accuracy, rows: texts.counts, users })
}

fn half_for_equal(chosen: f64, rejected: f64) -> f64 {
    if chosen > rejected { 1.0 } else { f64::from(u8::from(chosen == rejected)) / 2.0 }
}
