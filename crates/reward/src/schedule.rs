//! Which votes each step sees, and which phase it belongs to.

use lm::Plan;
use rand::Rng;

use crate::Phase;
use crate::RewardConfig;

/// The steps of a fit.
#[derive(Debug)]
pub(crate) struct Steps {
    /// Votes of every step.
    pub(crate) batches: Vec<Vec<usize>>,
    /// Tokens of all of them.
    pub(crate) tokens: usize,
    /// Phases that have a step.
    pub(crate) phases: Vec<Phase>,
    /// Step behind each phase's last.
    pub(crate) ends: Vec<usize>,
}

impl Steps {
    /// Walks through the phases' epochs of votes `0..votes`, up to the token budget; where the budget is smaller, every phase
    /// keeps its share of the steps.
    pub(crate) fn plan<R: Rng>(
        config: &RewardConfig,
        phases: &[Phase],
        votes: usize,
        tokens_of: impl Fn(usize) -> usize,
        rng: impl Fn(usize) -> R,
    ) -> Self {
        let epochs: f64 = phases.iter().map(|p| p.epochs).sum();
        let all: Vec<usize> = (0..votes).collect();
        let whole = (epochs.ceil().max(1.0) as usize).try_into().expect("at least one");
        let Plan { mut batches, .. } = lm::plan(&all, config.batch_votes, whole, config.token_budget, &tokens_of, rng);
        let wanted = (epochs * votes.div_ceil(config.batch_votes.get()) as f64).round() as usize;
        batches.truncate(wanted.max(1));
        let tokens = batches.iter().flatten().map(|v| tokens_of(*v)).sum();
        let mut behind = 0.0;
        let ends: Vec<usize> = phases
            .iter()
            .map(|p| {
                behind += p.epochs;
                (behind / epochs * batches.len() as f64).round() as usize
            })
            .collect();
        let starts = std::iter::once(0).chain(ends.iter().copied());
        let kept: Vec<bool> = starts.zip(&ends).map(|(from, to)| from < *to).collect();
        let keep = |i: &usize| kept[*i];
        let indices: Vec<usize> = (0..phases.len()).filter(keep).collect();
        Self {
            tokens,
            phases: indices.iter().map(|i| phases[*i].clone()).collect(),
            ends: indices.iter().map(|i| ends[*i]).collect(),
            batches,
        }
    }

    /// The phase of a step.
    pub(crate) fn phase(&self, step: usize) -> usize {
        self.ends.iter().position(|end| step < *end).unwrap_or(self.ends.len().saturating_sub(1))
    }

    /// Is this step a phase's first, and not the first of all?
    pub(crate) fn turns(&self, step: usize) -> bool {
        self.ends[..self.ends.len() - 1].contains(&step)
    }
}
