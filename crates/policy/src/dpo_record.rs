//! What is seen of DPO's pairs and kept of its steps.

use std::collections::BTreeMap;

use lm::{RowCounts, Tensor};
use serde::{Deserialize, Serialize};
use tch::Kind;

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
}

/// Where a user is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Learner {
    /// Loss and accuracy of every step.
    pub(crate) past: Vec<(f64, f64)>,
    pub(crate) quarantined: Option<String>,
}

/// Everything of a checkpoint but tensors.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Standing {
    pub(crate) tick: usize,
    pub(crate) learners: Vec<Learner>,
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

/// What is seen of a pair in a step.
#[derive(Clone, Debug, Default)]
pub(crate) struct PairMetrics {
    pub(crate) loss: f64,
    pub(crate) accuracy: f64,
    pub(crate) chosen: f64,
    pub(crate) rejected: f64,
    pub(crate) logp_chosen: f64,
    pub(crate) logp_rejected: f64,
}

impl PairMetrics {
    pub(crate) fn of(each: &Tensor, rewards: &Tensor, logp: &Tensor) -> Vec<Self> {
        let list = |t: &Tensor| Vec::<f64>::try_from(t.detach().to_kind(Kind::Double).reshape(-1)).expect("a list");
        let (loss, margin) = (list(each), list(&(rewards.get(0) - rewards.get(1))));
        let (chosen, rejected) = (list(&rewards.get(0)), list(&rewards.get(1)));
        let (logp_chosen, logp_rejected) = (list(&logp.get(0)), list(&logp.get(1)));
        let pair = |i: usize| Self {
            loss: loss[i],
            accuracy: f64::from(u8::from(margin[i] > 0.0)),
            chosen: chosen[i],
            rejected: rejected[i],
            logp_chosen: logp_chosen[i],
            logp_rejected: logp_rejected[i],
        };
        (0..loss.len()).map(pair).collect()
    }

    pub(crate) fn mean<'a>(pairs: impl Iterator<Item = &'a Self>) -> Option<Self> {
        let all: Vec<&Self> = pairs.collect();
        let mean = |f: fn(&Self) -> f64| all.iter().map(|m| f(m)).sum::<f64>() / all.len() as f64;
        (!all.is_empty()).then(|| Self {
            loss: mean(|m| m.loss),
            accuracy: mean(|m| m.accuracy),
            chosen: mean(|m| m.chosen),
            rejected: mean(|m| m.rejected),
            logp_chosen: mean(|m| m.logp_chosen),
            logp_rejected: mean(|m| m.logp_rejected),
        })
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
