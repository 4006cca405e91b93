//! What is seen of DPO's pairs and kept of its steps.

use std::collections::BTreeMap;

use lm::{RowCounts, UserIndex};
use problem::Result;
use run::Run;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::dpo::rows::Planned;
use crate::dpo::update::{PairMetrics, Taken};
use crate::learners::{Learners, Turn};
use crate::settings::is_default;

/// One user's training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UserReport {
    /// Pairs to learn from.
    pub pairs: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Tokens of all rows in all batches.
    pub tokens: usize,
    /// Mean loss over the last tenth of the steps.
    pub final_loss: f64,
    /// Share of pairs with a positive margin over the same steps.
    pub final_accuracy: f64,
}

/// Means over the tenth of the users, at least one, for whom it is worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorstDecile {
    /// How many users.
    pub users: usize,
    /// Of those with the largest: their final loss.
    pub final_loss: f64,
    /// Of those with the smallest: their final accuracy.
    pub final_accuracy: f64,
}

/// What training was made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DpoReport {
    /// By user id; without those in quarantine.
    pub users: BTreeMap<String, UserReport>,
    /// Users whose training was stopped or could not begin, and why. Their policies are not written.
    pub quarantined: BTreeMap<String, String>,
    /// The users who fared worst.
    pub worst_decile: WorstDecile,
    /// Tokens over all users.
    pub tokens: usize,
    /// Rows left out or changed.
    pub rows: RowCounts,
    /// Pairs of weight 0, which count nothing.
    #[serde(default, skip_serializing_if = "is_default")]
    pub without_weight: usize,
}

/// What is kept of a user's step: loss and accuracy.
pub(crate) type Step = (f64, f64);

/// Keeps a step, logs it, and gives the mean loss of its pairs.
pub(crate) fn record(
    turn: &Turn,
    taken: &Taken,
    users: &[String],
    learners: &mut Learners<Step>,
    run: &mut Run,
) -> Result<f64> {
    let mut of_users: Vec<Vec<&PairMetrics>> = vec![Vec::new(); turn.present.len()];
    turn.items.iter().zip(&taken.pairs).for_each(|((place, _), metrics)| of_users[place.0].push(metrics));
    let mut line = json!({"step": learners.tick});
    let mut steps: Vec<Step> = Vec::new();
    for (place, user) in turn.present.iter() {
        let m = PairMetrics::mean(&of_users[place.0]);
        steps.push((m.loss, m.accuracy));
        learners.keep(user, (m.loss, m.accuracy));
        line[format!("user/{}", users[user.0])] = json!({
            "loss": m.loss, "rewards/chosen": m.chosen, "rewards/rejected": m.rejected,
            "rewards/accuracies": m.accuracy, "rewards/margins": m.chosen - m.rejected,
            "logps/chosen": m.logp_chosen, "logps/rejected": m.logp_rejected,
            "grad_norm": taken.norms[place.0], "learning_rate": taken.rates[place.0].1});
    }
    line["worst_decile/loss"] = json!(worst_tenth(steps.iter().map(|s| s.0), true));
    line["worst_decile/rewards/accuracies"] = json!(worst_tenth(steps.iter().map(|s| s.1), false));
    run.log(&line)?;
    Ok(taken.pairs.iter().map(|m| m.loss).sum::<f64>() / taken.pairs.len() as f64)
}

/// The report of a training that is through.
pub(crate) fn report(users: &[String], planned: &Planned, learners: &Learners<Step>) -> DpoReport {
    let mut report = DpoReport {
        users: BTreeMap::new(),
        quarantined: learners.quarantine.by_id(users),
        worst_decile: WorstDecile::default(),
        tokens: 0,
        rows: planned.counts,
        without_weight: planned.without_weight.iter().sum(),
    };
    for (u, (past, plan)) in learners.past.iter().zip(&planned.plans).enumerate() {
        let tokens: usize = plan.batches[..past.len()].iter().flatten().map(|pair| planned.tokens(*pair)).sum();
        report.tokens += tokens;
        if learners.quarantine.holds(UserIndex(u)) {
            continue;
        }
        let tail = &past[past.len() - past.len().div_ceil(10)..];
        let mean = |f: fn(&Step) -> f64| tail.iter().map(f).sum::<f64>() / tail.len() as f64;
        let (final_loss, final_accuracy) = (mean(|m| m.0), mean(|m| m.1));
        let entry = UserReport { pairs: planned.own[u], steps: past.len(), tokens, final_loss, final_accuracy };
        report.users.insert(users[u].clone(), entry);
    }
    report.worst_decile = WorstDecile::of(&report.users);
    report
}

/// The mean of the worst tenth of `values`, at least one; `worst_is_large` says which end that is.
pub(crate) fn worst_tenth(values: impl Iterator<Item = f64>, worst_is_large: bool) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    if worst_is_large {
        values.reverse();
    }
    let count = values.len().div_ceil(10);
    values[..count].iter().sum::<f64>() / count.max(1) as f64
}

impl WorstDecile {
    pub(crate) fn of(users: &BTreeMap<String, UserReport>) -> Self {
        Self {
            users: users.len().div_ceil(10),
            final_loss: worst_tenth(users.values().map(|u| u.final_loss), true),
            final_accuracy: worst_tenth(users.values().map(|u| u.final_accuracy), false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_tenth_has_at_least_one() {
        assert_eq!(worst_tenth([3.0, 1.0, 2.0].into_iter(), true), 3.0);
        assert_eq!(worst_tenth((0..20).map(f64::from), false), 0.5);
        assert_eq!(worst_tenth(std::iter::empty(), true), 0.0);
    }
}
