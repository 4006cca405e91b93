//! The settings of a DPO stage.

use std::collections::BTreeMap;
use std::num::NonZero;

use lm::{Activations, AdamWConfig, LoraConfig, count};
use problem::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use text::OverLong;

use crate::maths::pair_losses::{PairLoss, PairObjective};
use crate::model::{Personal, Start};
use crate::settings::{Settings, is_default};

/// The settings of A DPO stage: `idiolect config` shows them with their defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// Weight of the chosen response's negative log-likelihood a token.
    #[serde(default, skip_serializing_if = "is_default")]
    pub nll: f64,
    /// What counts of a log-probability beyond the length of the shorter response: length-desensitised DPO (Liu et al. 2024); 1 is plain DPO.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ld_alpha: Option<f64>,
    /// Pairs of each user in a batch.
    pub batch_pairs: NonZero<usize>,
    /// Training ends after so many passes over a user's pairs ...
    pub max_epochs: NonZero<usize>,
    /// ... or with the user's last batch that fits into so many tokens (both rows of every pair).
    pub token_budget_per_user: usize,
    /// Tokens of prompt and response.
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

impl Default for DpoConfig {
    fn default() -> Self {
        Self {
            lora: LoraConfig::of_last_blocks(8, 16.0, 6),
            personal: Personal::default(),
            start: Start::Base,
            optimizer: AdamWConfig::with_rate(2e-3, 0.1),
            beta: 0.1,
            loss: PairLoss::default(),
            label_smoothing: 0.0,
            nll: 0.0,
            ld_alpha: None,
            batch_pairs: count(4),
            max_epochs: count(1),
            token_budget_per_user: 1_000_000,
            max_row_tokens: 1024,
            over_long: OverLong::Error,
            micro_batch_tokens: count(4096),
            activations: Activations::Keep,
            save_every_steps: count(10),
            users_at_once: None,
            user: BTreeMap::new(),
        }
    }
}

/// What a user has of their own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    ///
    /// # Errors
    /// The first of them, with the key's name.
    pub fn check(&self, users: &[String]) -> Result<()> {
        let settings = Settings { stage: "dpo" };
        settings.some_users(users)?;
        self.lora.check("dpo, `lora`")?;
        self.optimizer.check("dpo, `optimizer`")?;
        if let Some((key, expected, found)) = self.objective().problem() {
            return Err(settings.wrong(key, expected, found));
        }
        settings.positive("beta", self.beta)?;
        self.ld_alpha.map_or(Ok(()), |alpha| settings.share("ld_alpha", alpha))?;
        settings.token_budget("token_budget_per_user", self.token_budget_per_user, users.len())?;
        settings.known_users(self.user.keys(), users)?;
        for (user, DpoOwn { learning_rate, beta, steps: _ }) in &self.user {
            let key = |name: &str| format!("user.{user}.{name}");
            learning_rate.map_or(Ok(()), |rate| settings.at_least_0(&key("learning_rate"), rate))?;
            beta.map_or(Ok(()), |beta| settings.positive(&key("beta"), beta))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A change, and the key that it makes wrong.
    type Case<C> = (fn(&mut C), &'static str);

    #[test]
    fn issue_22_numbers_that_mean_nothing_are_refused_with_the_keys_name() {
        let mut fine = DpoConfig::default();
        fine.user.insert("ann".into(), DpoOwn { learning_rate: Some(1e-3), beta: Some(0.2), steps: None });
        let users = ["ann", "bob"].map(String::from);
        fine.check(&users).unwrap();
        let cases: [Case<DpoConfig>; 16] = [
            (|c| c.optimizer.learning_rate = -1e-3, "dpo, `optimizer`, `learning_rate`"),
            (|c| c.optimizer.warmup_ratio = 1.5, "dpo, `optimizer`, `warmup_ratio`"),
            (|c| c.lora.targets = lm::Targets::Names(vec![]), "dpo, `lora`, `targets`"),
            (|c| c.beta = 0.0, "dpo, `beta`"),
            (|c| c.beta = f64::NAN, "dpo, `beta`"),
            (|c| c.label_smoothing = 0.5, "dpo, `label_smoothing`"),
            (|c| c.nll = -1.0, "dpo, `nll`"),
            (|c| c.loss = PairLoss::Simpo { gamma: -0.1 }, "dpo, `loss.simpo.gamma`"),
            (|c| c.ld_alpha = Some(1.1), "dpo, `ld_alpha`"),
            (|c| c.token_budget_per_user = 0, "dpo, `token_budget_per_user`"),
            (|c| c.token_budget_per_user = usize::MAX, "dpo, `token_budget_per_user`"),
            (|c| own(c).learning_rate = Some(-1e-3), "dpo, `user.ann.learning_rate`"),
            (|c| own(c).learning_rate = Some(f64::INFINITY), "dpo, `user.ann.learning_rate`"),
            (|c| own(c).beta = Some(-0.1), "dpo, `user.ann.beta`"),
            (|c| own(c).beta = Some(f64::NAN), "dpo, `user.ann.beta`"),
            (|c| _ = c.user.insert("eve".into(), DpoOwn::default()), "dpo, `user`"),
        ];
        for (change, key) in cases {
            let mut config = fine.clone();
            change(&mut config);
            let error = config.check(&users).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{key}: expected ")), "{key}: {error}");
        }
    }

    fn own(config: &mut DpoConfig) -> &mut DpoOwn {
        config.user.entry("ann".into()).or_default()
    }
}
