//! A reward stage, as written in `configs/reward/*.toml`.

use std::num::NonZero;

use lm::{Activations, AdamWConfig, LoraConfig, Pooling, Sharing};
use serde::{Deserialize, Serialize};
use text::OverLong;

/// Which factors are personal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Personal down-projections, shared up-projections and head (P-ShareLoRA's better choice; its section D.3).
    PShareLora,
    /// Everything shared: the ordinary reward model.
    LoraGlobal,
    /// Everything personal, head included: a model each.
    LoraLocal,
}

impl Variant {
    /// Who owns (down, up, head).
    pub(crate) fn sharing(self) -> (Sharing, Sharing, Sharing) {
        match self {
            Self::PShareLora => (Sharing::Personal, Sharing::Shared, Sharing::Shared),
            Self::LoraGlobal => (Sharing::Shared, Sharing::Shared, Sharing::Shared),
            Self::LoraLocal => (Sharing::Personal, Sharing::Personal, Sharing::Personal),
        }
    }
}

/// How to fit a reward model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardConfig {
    /// Which factors are personal.
    pub variant: Variant,
    /// Which hidden states the head reads.
    pub pooling: Pooling,
    /// The head's start, relative to a deviation of `1 / sqrt(E + 1)`.
    pub head_scale: f64,
    /// Rank, scale, layers.
    pub lora: LoraConfig,
    /// Peak learning rate, schedule, clip.
    pub optimizer: AdamWConfig,
    /// Votes in a batch; users are mixed.
    pub batch_votes: NonZero<usize>,
    /// Training ends after so many passes over the votes ...
    pub max_epochs: NonZero<usize>,
    /// ... or with the last batch that fits into so many tokens (both rows of every vote).
    pub token_budget: usize,
    /// Share of the steps that train one global adapter before it is copied to the users (variant WU; 0 is SI).
    pub warm_up_share: f64,
    /// Tokens of prompt and answer.
    pub max_row_tokens: usize,
    /// What becomes of a longer row.
    pub over_long: OverLong,
    /// A batch is computed in parts of so many tokens; the result does not change.
    pub micro_batch_tokens: NonZero<usize>,
    /// What a part keeps for its backward pass.
    pub activations: Activations,
    /// Steps between two checkpoints.
    pub save_every_steps: NonZero<usize>,
}
