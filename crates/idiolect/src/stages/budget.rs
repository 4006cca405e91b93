//! How many tokens a stage may take, before it runs.

use lm::Blocks;

/// The most tokens that a stage may take.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Budget {
    /// Decoded one after the other.
    pub(crate) sampled: usize,
    /// Run forward and back.
    pub(crate) trained: usize,
    /// `trained` times the share of the model's blocks that are adapted.
    pub(crate) weighted: f64,
}

impl Budget {
    pub(crate) fn sampling(sampled: usize) -> Self {
        Self { sampled, ..Self::default() }
    }

    /// Training of adapters on some of a base's blocks.
    pub(crate) fn training(trained: usize, adapted: &Blocks, sizes: &Sizes) -> Self {
        let share = adapted.count(sizes.blocks) as f64 / sizes.blocks.max(1) as f64;
        Self { sampled: 0, trained, weighted: trained as f64 * share }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.sampled = self.sampled.saturating_add(other.sampled);
        self.trained = self.trained.saturating_add(other.trained);
        self.weighted += other.weighted;
    }
}

/// What budgets depend on besides a stage's own settings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sizes {
    /// The prompts of the simulation, if there is one.
    pub(crate) prompts: Option<study::Prompts>,
    /// Users of the votes.
    pub(crate) users: usize,
    /// Distinct prompts of training votes.
    pub(crate) training_prompts: usize,
    /// Blocks of the base.
    pub(crate) blocks: usize,
    /// Tokens of one pass over all users' pairs, where they are known.
    pub(crate) pair_tokens: Option<usize>,
}

impl Sizes {
    /// How many prompts a list of the simulation has.
    pub(crate) fn simulated(&self, list: fn(&study::Prompts) -> &Vec<String>) -> usize {
        self.prompts.as_ref().map_or(0, |prompts| list(prompts).len())
    }
}

/// Saturating product: a budget that overflows is more than anybody has.
pub(crate) fn product(factors: &[usize]) -> usize {
    factors.iter().fold(1, |all, factor| all.saturating_mul(*factor))
}
