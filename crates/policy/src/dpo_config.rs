//! The settings of a DPO stage.

use std::collections::BTreeMap;
use std::num::NonZero;

use lm::{Activations, AdamWConfig, LoraConfig};
use problem::{Result, invalid};
use serde::{Deserialize, Serialize};
use text::OverLong;

use crate::losses::{PairLoss, PairObjective};
use crate::model::Personal;

/// A DPO stage, as written in `configs/dpo/*.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpoConfig {
    /// Rank, scale, layers.
    pub lora: LoraConfig,
    /// Which halves of an adapter are a user's own.
    #[serde(default, skip_serializing_if = "is_default")]
    pub personal: Personal,
    /// Where policies start; also what they are measured against.
    pub start: Start,
    /// Peak learning rate, schedule, clip: each user's own.
    pub optimizer: AdamWConfig,
    /// How far the policy may move from the base: the margin's scale.
    pub beta: f64,
    /// What a pair's margin is turned into.
    #[serde(default, skip_serializing_if = "is_default")]
    pub loss: PairLoss,
    /// Share of pairs taken to be the wrong way round.
    #[serde(default, skip_serializing_if = "is_default")]
    pub label_smoothing: f64,
    /// Weight of the chosen answer's negative log-likelihood a token.
    #[serde(default, skip_serializing_if = "is_default")]
    pub nll: f64,
    /// What counts of a log-probability beyond the length of the shorter answer: length-desensitised DPO (Liu et al. 2024); 1 is plain DPO.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ld_alpha: Option<f64>,
    /// Pairs of each user in a batch.
    pub batch_pairs: NonZero<usize>,
    /// Training ends after so many passes over a user's pairs ...
    pub max_epochs: NonZero<usize>,
    /// ... or with the user's last batch that fits into so many tokens (both rows of every pair).
    pub token_budget_per_user: usize,
    /// Tokens of prompt and answer.
    pub max_row_tokens: usize,
    /// What becomes of a pair with a longer row.
    pub over_long: OverLong,
    /// A batch is computed in parts of so many tokens; the result does not change.
    pub micro_batch_tokens: NonZero<usize>,
    /// What a part keeps for its backward pass.
    pub activations: Activations,
    /// Steps between two checkpoints.
    pub save_every_steps: NonZero<usize>,
    /// So many users train at one time; the others wait until one is through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users_at_once: Option<NonZero<usize>>,
    /// What is another user's own, by user id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub user: BTreeMap<String, DpoOwn>,
}

/// What a user has of their own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpoOwn {
    /// In place of the optimiser's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// In place of `beta`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// Training ends after so many steps, if it has not before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<NonZero<usize>>,
}

/// A setting that is not there is the same as its default, also for who asks whether a stage stands.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Where policies start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// As the base.
    Base,
    /// As the per-user policies of the stage `sft`.
    Sft,
}

impl DpoConfig {
    /// How a user's pairs are learnt from.
    pub(crate) fn objective(&self) -> PairObjective {
        PairObjective { loss: self.loss, label_smoothing: self.label_smoothing, nll: self.nll }
    }

    pub(crate) fn beta_of(&self, user: &str) -> f64 {
        self.user.get(user).and_then(|own| own.beta).unwrap_or(self.beta)
    }

    pub(crate) fn optimizer_of(&self, user: &str) -> AdamWConfig {
        let own = self.user.get(user).and_then(|own| own.learning_rate);
        AdamWConfig { learning_rate: own.unwrap_or(self.optimizer.learning_rate), ..self.optimizer.clone() }
    }

    /// Refuses numbers that mean nothing, and settings of users who are not there.
    pub(crate) fn check(&self, users: &[String]) -> Result<()> {
        let wrong = |key: String, expected: String, found: String| {
            invalid(format!("dpo, `{key}`"), expected, found, "configs/dpo/per-user.toml is an example")
        };
        if let Some((key, expected, found)) = self.objective().problem() {
            return Err(wrong(key.into(), expected.into(), found.to_string()));
        }
        let betas = self.user.iter().filter_map(|(user, own)| Some((format!("user.{user}.beta"), own.beta?)));
        for (key, beta) in std::iter::once(("beta".to_owned(), self.beta)).chain(betas) {
            if !(beta > 0.0 && beta.is_finite()) {
                return Err(wrong(key, "a positive number".into(), beta.to_string()));
            }
        }
        if let Some(alpha) = self.ld_alpha.filter(|a| !(0.0..=1.0).contains(a)) {
            return Err(wrong("ld_alpha".into(), "from 0 to 1".into(), alpha.to_string()));
        }
        if let Some(unknown) = self.user.keys().find(|u| !users.contains(u)) {
            return Err(wrong("user".into(), format!("a user of {}", users.join(", ")), format!("`{unknown}`")));
        }
        Ok(())
    }
}
