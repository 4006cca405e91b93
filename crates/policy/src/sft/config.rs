//! The settings of an SFT stage.

use std::num::NonZero;

use lm::{Activations, AdamWConfig, AllBlocks, AllLinear, Blocks, LoraConfig, Schedule, Targets, count};
use problem::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use text::OverLong;

use crate::settings::Settings;

/// Whose responses a model learns from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Those of all users: one adapter, which becomes part of the base.
    Global,
    /// The user's own: an adapter each, from which DPO can start.
    PerUser,
}

/// The name of a global model.
pub const EVERYONE: &str = "everyone";

/// The settings of An SFT stage: `idiolect config` shows them with their defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SftConfig {
    /// Whose responses a model learns from.
    pub scope: Scope,
    /// Rank, scale, layers.
    pub lora: LoraConfig,
    /// Peak learning rate, schedule, clip: each model's own.
    pub optimizer: AdamWConfig,
    /// Responses in a batch, of each model.
    pub batch_answers: NonZero<usize>,
    /// Training ends after so many passes over a model's responses ...
    pub max_epochs: NonZero<usize>,
    /// ... or with the last batch that fits into so many tokens, for each model.
    pub token_budget: usize,
    /// Tokens of prompt and response.
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

impl Default for SftConfig {
    fn default() -> Self {
        let lora = LoraConfig::of_last_blocks(8, 16.0, 1);
        Self {
            scope: Scope::Global,
            lora: LoraConfig {
                targets: Targets::All(AllLinear::AllLinear),
                blocks: Blocks::All(AllBlocks::All),
                ..lora
            },
            optimizer: AdamWConfig { schedule: Schedule::Cosine, ..AdamWConfig::with_rate(2e-4, 0.1) },
            batch_answers: count(16),
            max_epochs: count(1),
            token_budget: 10_000_000,
            max_row_tokens: 1024,
            over_long: OverLong::Error,
            micro_batch_tokens: count(4096),
            activations: Activations::Keep,
            save_every_steps: count(10),
        }
    }
}

impl SftConfig {
    /// The names of the models: one for all users, or one for each.
    pub(crate) fn models(&self, users: &[String]) -> Vec<String> {
        match self.scope {
            Scope::Global => vec![EVERYONE.into()],
            Scope::PerUser => users.to_vec(),
        }
    }

    /// Refuses numbers that mean nothing in the training of `models`.
    ///
    /// # Errors
    /// The first of them, with the key's name.
    pub fn check(&self, models: &[String]) -> Result<()> {
        let settings = Settings { stage: "sft" };
        settings.some_users(models)?;
        self.lora.check("sft, `lora`")?;
        self.optimizer.check("sft, `optimizer`")?;
        settings.token_budget("token_budget", self.token_budget, models.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A change, and the key that it makes wrong.
    type Case<C> = (fn(&mut C), &'static str);

    #[test]
    fn issue_22_numbers_that_mean_nothing_are_refused_with_the_keys_name() {
        let fine = SftConfig::default();
        let models = ["ann", "bob"].map(String::from);
        fine.check(&models).unwrap();
        let cases: [Case<SftConfig>; 6] = [
            (|c| c.optimizer.learning_rate = -1e-3, "sft, `optimizer`, `learning_rate`"),
            (|c| c.optimizer.betas = [0.9, 1.0], "sft, `optimizer`, `betas`"),
            (|c| c.lora.alpha = -1.0, "sft, `lora`, `alpha`"),
            (|c| c.lora.dropout = 1.0, "sft, `lora`, `dropout`"),
            (|c| c.token_budget = 0, "sft, `token_budget`"),
            (|c| c.token_budget = usize::MAX, "sft, `token_budget`"),
        ];
        for (change, key) in cases {
            let mut config = fine.clone();
            change(&mut config);
            let error = config.check(&models).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{key}: expected ")), "{key}: {error}");
        }
    }
}
