//! What a fit was made of.

use std::collections::BTreeMap;

use lm::{Quarantine, RowCounts};
use serde::{Deserialize, Serialize};

use crate::config::Factors;
use crate::plan::Plan;

/// What a fit was made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FitReport {
    /// Training votes that the objective speaks of.
    pub votes: usize,
    /// Of these, ties.
    pub ties: usize,
    /// Training votes that are ties and were left out.
    pub ties_left_out: usize,
    /// Training votes of weight 0, which count nothing.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub without_weight: usize,
    /// Distinct texts among them.
    pub texts: usize,
    /// Rows left out or changed.
    pub rows: RowCounts,
    /// Optimiser steps.
    pub steps: usize,
    /// Of these, steps with one adapter for all.
    pub global_steps: usize,
    /// The step whose parameters were kept, where `dev` decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_step: Option<usize>,
    /// Tokens of all rows in all planned batches.
    pub tokens: usize,
    /// Mean loss over the last tenth of the steps.
    pub final_loss: f64,
    /// Users whose training was stopped, by id, and why. They are not in the model. The stage's summary has them at its top.
    #[serde(skip)]
    pub quarantined: BTreeMap<String, String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl FitReport {
    /// Of a fit whose steps had these mean losses; none where all users of a step were in quarantine.
    pub(crate) fn of(plan: &Plan, losses: &[Option<f64>], best_step: Option<usize>, quarantine: &Quarantine) -> Self {
        let losses: Vec<f64> = losses.iter().flatten().copied().collect();
        let tail = &losses[losses.len() - losses.len().div_ceil(10)..];
        let (steps, texts) = (&plan.steps, &plan.texts);
        let of_phase = |p: usize| steps.ends[p] - if p == 0 { 0 } else { steps.ends[p - 1] };
        let global = (0..steps.phases.len()).filter(|p| steps.phases[*p].factors == Factors::Global);
        Self {
            votes: texts.votes.len(),
            ties: texts.votes.iter().filter(|v| v.tie).count(),
            ties_left_out: plan.ties_left_out,
            without_weight: plan.without_weight,
            texts: texts.rows.len(),
            rows: texts.counts,
            steps: losses.len(),
            global_steps: global.map(of_phase).sum(),
            best_step,
            tokens: steps.tokens,
            final_loss: tail.iter().sum::<f64>() / tail.len().max(1) as f64,
            quarantined: quarantine.by_id(plan.users),
        }
    }
}
