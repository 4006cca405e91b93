//! The settings of a PPO stage.

use std::collections::BTreeMap;
use std::num::NonZero;

use lm::{Activations, AdamWConfig, LoraConfig, Schedule, count};
use problem::{Problem, Result, invalid};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use text::OverLong;

use crate::maths::kl::{KlControl, KlEstimator, MAX_ERROR};
use crate::model::{Personal, Start};
use crate::ppo::guard::Guard;
use crate::ppo::own::Own;
use crate::settings::{Settings, is_default};

/// The settings of A PPO stage: `idiolect config` shows them with their defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PpoConfig {
    /// What a response is compared with.
    pub method: Method,
    /// For whom policies are trained.
    #[serde(default, skip_serializing_if = "is_default")]
    pub whose: Whose,
    /// Where policies start; also the reference.
    pub start: Start,
    /// Rank, scale, layers: of the policy and of the critic.
    pub lora: LoraConfig,
    /// Which halves of an adapter are a user's own; critics' always are.
    #[serde(default, skip_serializing_if = "is_default")]
    pub personal: Personal,
    /// Of the policy: each user's own.
    pub optimizer: AdamWConfig,
    /// Rounds of sampling and training, of each user; those in which critics alone learn included.
    pub steps: NonZero<usize>,
    /// Prompts of each user in a round.
    pub prompts_per_step: NonZero<usize>,
    /// Responses to each of them.
    pub samples_per_prompt: NonZero<usize>,
    /// Responses are cut after so many tokens.
    pub max_new_tokens: NonZero<usize>,
    /// In sampling, and in every forward pass that gives log-probabilities.
    pub temperature: f64,
    /// Rows, prompts and cache of the decoder have fixed shapes, so that a user's responses do not depend on who else is there by a single
    /// bit. Slower.
    #[serde(default)]
    pub fixed_shapes: bool,
    /// Responses that are decoded together.
    pub rollout_rows: NonZero<usize>,
    /// Passes over a round's responses.
    pub epochs: NonZero<usize>,
    /// Updates in a pass.
    pub minibatches: NonZero<usize>,
    /// How far a probability ratio may move.
    pub clip: f64,
    /// Advantages of a user's round are scaled to mean 0 and variance 1.
    pub whiten_advantages: bool,
    /// A user's round ends when the mean of `(log ratio)^2 / 2` of an update is above this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_stop: Option<f64>,
    /// A user whose divergence from the reference, nats per response, is above this in a round is quarantined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_kl: Option<f64>,
    /// The divergence in the reward.
    pub kl: KlTerm,
    /// The rest of the reward.
    pub reward: RewardTerms,
    /// What no policy is to say; `"off"` only explicitly.
    pub guard: Guard,
    /// Tokens of prompt and response.
    pub max_row_tokens: usize,
    /// What becomes of a prompt that leaves no room for a response.
    pub over_long: OverLong,
    /// A batch is computed in parts of so many tokens; the result does not change.
    pub micro_batch_tokens: NonZero<usize>,
    /// What a part keeps for its backward pass.
    pub activations: Activations,
    /// Rounds between two checkpoints.
    pub save_every_steps: NonZero<usize>,
    /// So many users train at one time; the others wait until one is through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users_at_once: Option<NonZero<usize>>,
    /// What is another user's own, by user id.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub user: BTreeMap<String, OwnSettings>,
}

impl Default for PpoConfig {
    fn default() -> Self {
        Self {
            method: Method::Ppo(CriticConfig::default()),
            whose: Whose::default(),
            start: Start::Base,
            lora: LoraConfig::of_last_blocks(8, 16.0, 6),
            personal: Personal::default(),
            optimizer: AdamWConfig { epsilon: 1e-5, ..AdamWConfig::with_rate(5e-3, 0.05) },
            steps: count(50),
            prompts_per_step: count(8),
            samples_per_prompt: count(2),
            max_new_tokens: count(128),
            temperature: 1.0,
            fixed_shapes: false,
            rollout_rows: count(96),
            epochs: count(2),
            minibatches: count(2),
            clip: 0.2,
            whiten_advantages: true,
            kl_stop: None,
            max_kl: None,
            kl: KlTerm { estimator: KlEstimator::default(), control: KlControl::Fixed { beta: 0.1 } },
            reward: RewardTerms {
                calibration_samples_per_prompt: count(2),
                clip: 5.0,
                missing_end_penalty: 1.0,
                caution: 0.0,
            },
            guard: Guard::On { blocked: vec![], least_words: 8 },
            max_row_tokens: 1024,
            over_long: OverLong::Error,
            micro_batch_tokens: count(4096),
            activations: Activations::Keep,
            save_every_steps: count(5),
            users_at_once: None,
            user: BTreeMap::new(),
        }
    }
}

/// For whom policies are trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Whose {
    /// The users of the reward model.
    #[default]
    Users,
    /// Its reward features, each wanted for itself: a basis from which every user's policy is combined ([`crate::Policies::combined`]).
    Features(Combination),
}

/// How users' policies come from those of reward features.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Combination {
    /// The nearest adapters of this rank; without it they are exact, at the basis's rank times the features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<NonZero<usize>>,
    /// How far users' policies go: 1 is as far as the basis's.
    #[serde(default = "one")]
    pub strength: f64,
}

fn one() -> f64 {
    1.0
}

/// What a response is compared with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Method {
    /// A critic's expectation (Schulman et al. 2017; Huang et al. 2024).
    Ppo(CriticConfig),
    /// The mean of the other responses to the prompt (Ahmadian et al. 2024).
    Rloo,
    /// Mean and deviation of the responses to the prompt (Shao et al. 2024), the divergence in the reward as everywhere here.
    Grpo,
}

/// A critic: an adapter and a value head on the same base, each user's own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CriticConfig {
    /// Of adapter and head.
    pub optimizer: AdamWConfig,
    /// Discount of a token.
    pub gamma: f32,
    /// Of generalised advantage estimation.
    pub lambda: f32,
    /// How far a value may move.
    pub value_clip: f64,
    /// Rewards of a user's round are scaled to variance 1, the mean kept.
    pub whiten_rewards: bool,
    /// Rounds in which the critic alone learns, the first ones. The policy's learning rate and an adaptive weight of the divergence begin after them.
    pub warmup_steps: usize,
}

impl Default for CriticConfig {
    fn default() -> Self {
        Self {
            optimizer: AdamWConfig { schedule: Schedule::Constant, epsilon: 1e-5, ..AdamWConfig::with_rate(3e-3, 0.0) },
            gamma: 1.0,
            lambda: 0.95,
            value_clip: 0.2,
            whiten_rewards: false,
            warmup_steps: 2,
        }
    }
}

/// The divergence from the reference, a token at a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KlTerm {
    /// How it is estimated.
    #[serde(default)]
    pub estimator: KlEstimator,
    /// Its weight.
    pub control: KlControl,
}

/// What is made of a reward model's scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RewardTerms {
    /// Of the reference's responses, so many to each prompt are scored first: each user's scores are shifted and scaled to mean 0 and variance 1
    /// on them. The reference is the base, or with `start = "sft"` each user's own policy as it starts.
    pub calibration_samples_per_prompt: NonZero<usize>,
    /// Calibrated scores are clipped to this distance from 0.
    pub clip: f64,
    /// A response that did not stop by itself loses so much, in deviations of the user's rewards. TRL: `missing_eos_penalty`, 1.0 in its examples.
    pub missing_end_penalty: f64,
    /// So many standard errors are taken off every score: pessimism. 0 asks for none.
    pub caution: f64,
}

/// What a user has of their own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OwnSettings {
    /// In place of the policy optimiser's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// In place of the first weight of the divergence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// In place of the target of an adaptive weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_target: Option<f64>,
    /// In place of `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<NonZero<usize>>,
}

impl PpoConfig {
    /// The critic's settings, if the method has one.
    pub(crate) fn critic(&self) -> Option<&CriticConfig> {
        match &self.method {
            Method::Ppo(critic) => Some(critic),
            Method::Rloo | Method::Grpo => None,
        }
    }

    pub(crate) fn own(&self, user: &str) -> Result<Own> {
        let theirs = self.user.get(user).cloned().unwrap_or_default();
        let optimizer = AdamWConfig {
            learning_rate: theirs.learning_rate.unwrap_or(self.optimizer.learning_rate),
            ..self.optimizer.clone()
        };
        let control = match (self.kl.control, theirs.kl_target) {
            (KlControl::Fixed { beta }, None) => KlControl::Fixed { beta: theirs.beta.unwrap_or(beta) },
            (KlControl::Fixed { .. }, Some(target)) => {
                let expected = "no `kl_target` where the weight is fixed";
                return Err(wrong(format!("`user.{user}.kl_target`"), expected, target, "make `kl.control` adaptive"));
            }
            (KlControl::Adaptive { beta, target, horizon }, own) => {
                KlControl::Adaptive { beta: theirs.beta.unwrap_or(beta), target: own.unwrap_or(target), horizon }
            }
        };
        Ok(Own { optimizer, control, steps: theirs.steps.unwrap_or(self.steps).get() })
    }

    /// Refuses numbers that mean nothing, and settings of users who are not there.
    ///
    /// # Errors
    /// The first of them, with the key's name.
    pub fn check(&self, users: &[String]) -> Result<()> {
        SETTINGS.some_users(users)?;
        self.lora.check("ppo, `lora`")?;
        self.optimizer.check("ppo, `optimizer`")?;
        SETTINGS.positive("temperature", self.temperature)?;
        SETTINGS.positive("clip", self.clip)?;
        SETTINGS.positive("reward.clip", self.reward.clip)?;
        SETTINGS.at_least_0("reward.missing_end_penalty", self.reward.missing_end_penalty)?;
        SETTINGS.at_least_0("reward.caution", self.reward.caution)?;
        if let Whose::Features(Combination { strength, .. }) = self.whose {
            SETTINGS.positive("whose.features.strength", strength)?;
        }
        self.kl_stop.map_or(Ok(()), |limit| SETTINGS.positive("kl_stop", limit))?;
        self.max_kl.map_or(Ok(()), |limit| SETTINGS.positive("max_kl", limit))?;
        if self.lora.dropout > 0.0 {
            let hint = "a policy that drops numbers is not the one that was sampled";
            return Err(wrong("`lora.dropout`", "0", self.lora.dropout, hint));
        }
        self.check_round(users.len())?;
        self.check_method()?;
        self.check_control()?;
        SETTINGS.known_users(self.user.keys(), users)?;
        for (user, own) in &self.user {
            let OwnSettings { learning_rate, beta, kl_target, steps: _ } = own;
            let key = |name: &str| format!("user.{user}.{name}");
            learning_rate.map_or(Ok(()), |rate| SETTINGS.at_least_0(&key("learning_rate"), rate))?;
            beta.map_or(Ok(()), |beta| SETTINGS.at_least_0(&key("beta"), beta))?;
            kl_target.map_or(Ok(()), |target| SETTINGS.positive(&key("kl_target"), target))?;
            self.own(user)?;
        }
        self.guard.check("ppo")
    }

    /// Responses of a user's round.
    fn responses(&self) -> Result<usize> {
        let (prompts, samples) = (self.prompts_per_step.get(), self.samples_per_prompt.get());
        let expected = "a number that can be multiplied by `samples_per_prompt`";
        prompts.checked_mul(samples).ok_or_else(|| SETTINGS.wrong("prompts_per_step", expected, prompts))
    }

    fn check_round(&self, users: usize) -> Result<()> {
        let responses = self.responses()?;
        if self.minibatches.get() > responses {
            let expected = format!("at most the {responses} responses of a user's round");
            return Err(wrong("`minibatches`", expected, self.minibatches, "each update needs a response"));
        }
        let steps = self.user.values().filter_map(|own| own.steps).max().map_or(self.steps, |own| own.max(self.steps));
        let all = [responses, self.max_row_tokens, self.epochs.get(), users.max(1)];
        if all.iter().try_fold(steps.get(), |product, n| product.checked_mul(*n)).is_none() {
            let expected = "so few rounds that the tokens of all users' responses can be counted";
            return Err(SETTINGS.wrong("steps", expected, steps));
        }
        let response = self.max_new_tokens.get().saturating_add(1);
        if response >= self.max_row_tokens {
            let expected = format!("more than the {response} tokens of a response with its end (`max_new_tokens` + 1)");
            let hint = "a prompt needs some too: raise `max_row_tokens`, or lower `max_new_tokens`";
            return Err(wrong("`max_row_tokens`", expected, self.max_row_tokens, hint));
        }
        Ok(())
    }

    fn check_method(&self) -> Result<()> {
        match &self.method {
            Method::Ppo(critic) => {
                critic.optimizer.check("ppo, `method.ppo.optimizer`")?;
                let least =
                    self.user.values().filter_map(|own| own.steps).min().map_or(self.steps, |own| own.min(self.steps));
                if critic.warmup_steps >= least.get() {
                    let expected =
                        format!("fewer than the {least} rounds of a user (`steps`), since policies learn after them");
                    return Err(SETTINGS.wrong("method.ppo.warmup_steps", expected, critic.warmup_steps));
                }
                SETTINGS.positive("method.ppo.value_clip", critic.value_clip)?;
                SETTINGS.share("method.ppo.gamma", f64::from(critic.gamma))?;
                SETTINGS.share("method.ppo.lambda", f64::from(critic.lambda))
            }
            Method::Rloo | Method::Grpo if self.samples_per_prompt.get() < 2 => {
                let hint = "rloo and grpo compare responses to one prompt";
                Err(wrong("`samples_per_prompt`", "at least 2", 1, hint))
            }
            Method::Rloo | Method::Grpo => Ok(()),
        }
    }

    fn check_control(&self) -> Result<()> {
        SETTINGS.at_least_0("kl.control beta", self.kl.control.start())?;
        let KlControl::Adaptive { beta: _, target, horizon } = self.kl.control else {
            return Ok(());
        };
        SETTINGS.positive("kl.control target", target)?;
        SETTINGS.positive("kl.control horizon", horizon)?;
        // A round multiplies the coefficient by at least 1 - .2 n / horizon, which must stay positive.
        let least = MAX_ERROR * self.responses()? as f64;
        if horizon <= least {
            let expected = format!("more than {least}, {MAX_ERROR} of the responses of a user's round");
            let hint = "with a shorter horizon a round can turn the KL coefficient negative";
            return Err(wrong("`kl.control horizon`", expected, horizon, hint));
        }
        Ok(())
    }
}

const SETTINGS: Settings = Settings { stage: "ppo" };

/// An error of this stage's settings.
pub(crate) fn wrong(
    place: impl std::fmt::Display,
    expected: impl Into<String>,
    found: impl std::fmt::Display,
    hint: &str,
) -> Problem {
    invalid(format!("ppo, {place}"), expected, found.to_string(), hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A change, and the key that it makes wrong.
    type Case<C> = (fn(&mut C), &'static str);

    fn critic(config: &mut PpoConfig) -> &mut CriticConfig {
        match &mut config.method {
            Method::Ppo(critic) => critic,
            Method::Rloo | Method::Grpo => panic!("no critic"),
        }
    }

    fn own(config: &mut PpoConfig) -> &mut OwnSettings {
        config.user.entry("ann".into()).or_default()
    }

    fn adaptive(beta: f64, target: f64, horizon: f64) -> KlControl {
        KlControl::Adaptive { beta, target, horizon }
    }

    fn count(n: usize) -> NonZero<usize> {
        n.try_into().unwrap()
    }

    #[test]
    fn issue_22_numbers_that_mean_nothing_are_refused_with_the_keys_name() {
        let mut fine = PpoConfig::default();
        fine.kl.control = adaptive(0.05, 12.0, 80.0);
        let users = ["ann", "bob"].map(String::from);
        let ann =
            OwnSettings { learning_rate: Some(1e-3), beta: Some(0.0), kl_target: Some(5.0), steps: Some(count(3)) };
        fine.user.insert("ann".into(), ann);
        fine.check(&users).unwrap();
        let cases: [Case<PpoConfig>; 39] = [
            (|c| c.optimizer.learning_rate = -1e-3, "ppo, `optimizer`, `learning_rate`"),
            (|c| c.optimizer.epsilon = 0.0, "ppo, `optimizer`, `epsilon`"),
            (|c| critic(c).optimizer.max_grad_norm = -1.0, "ppo, `method.ppo.optimizer`, `max_grad_norm`"),
            (|c| critic(c).value_clip = 0.0, "ppo, `method.ppo.value_clip`"),
            (|c| critic(c).warmup_steps = 50, "ppo, `method.ppo.warmup_steps`"),
            (|c| critic(c).warmup_steps = 3, "ppo, `method.ppo.warmup_steps`"), // ann has 3 rounds
            (|c| critic(c).gamma = 1.1, "ppo, `method.ppo.gamma`"),
            (|c| critic(c).lambda = f32::NAN, "ppo, `method.ppo.lambda`"),
            (|c| c.lora.alpha = 0.0, "ppo, `lora`, `alpha`"),
            (|c| c.lora.dropout = 0.1, "ppo, `lora.dropout`"),
            (|c| c.temperature = 0.0, "ppo, `temperature`"),
            (|c| c.temperature = f64::INFINITY, "ppo, `temperature`"),
            (|c| c.clip = 0.0, "ppo, `clip`"),
            (|c| c.kl_stop = Some(0.0), "ppo, `kl_stop`"),
            (|c| c.max_kl = Some(-1.0), "ppo, `max_kl`"),
            (|c| c.reward.clip = 0.0, "ppo, `reward.clip`"),
            (|c| c.reward.missing_end_penalty = -0.1, "ppo, `reward.missing_end_penalty`"),
            (|c| c.reward.caution = f64::NAN, "ppo, `reward.caution`"),
            (
                |c| c.whose = Whose::Features(Combination { rank: None, strength: 0.0 }),
                "ppo, `whose.features.strength`",
            ),
            (|c| c.kl.control = KlControl::Fixed { beta: -0.1 }, "ppo, `kl.control beta`"),
            (|c| c.kl.control = adaptive(-0.1, 12.0, 80.0), "ppo, `kl.control beta`"),
            (|c| c.kl.control = adaptive(0.05, 0.0, 80.0), "ppo, `kl.control target`"),
            (|c| c.kl.control = adaptive(0.05, 12.0, 0.0), "ppo, `kl.control horizon`"),
            // 16 responses in a round: 1 - .2 * 16 / 3.2 = 0.
            (|c| c.kl.control = adaptive(0.05, 12.0, 3.2), "ppo, `kl.control horizon`"),
            (|c| c.minibatches = count(17), "ppo, `minibatches`"),
            (|c| c.max_row_tokens = 37, "ppo, `max_row_tokens`"), // 36 new tokens and their end
            (|c| c.max_new_tokens = NonZero::<usize>::MAX, "ppo, `max_row_tokens`"),
            (|c| c.prompts_per_step = NonZero::<usize>::MAX, "ppo, `prompts_per_step`"),
            (|c| c.steps = NonZero::<usize>::MAX, "ppo, `steps`"),
            (|c| own(c).steps = Some(NonZero::<usize>::MAX), "ppo, `steps`"),
            (|c| own(c).learning_rate = Some(-1e-3), "ppo, `user.ann.learning_rate`"),
            (|c| own(c).learning_rate = Some(f64::NAN), "ppo, `user.ann.learning_rate`"),
            (|c| own(c).beta = Some(-0.1), "ppo, `user.ann.beta`"),
            (|c| own(c).kl_target = Some(0.0), "ppo, `user.ann.kl_target`"),
            (|c| own(c).kl_target = Some(-5.0), "ppo, `user.ann.kl_target`"),
            (|c| c.kl.control = KlControl::Fixed { beta: 0.1 }, "ppo, `user.ann.kl_target`"),
            (|c| _ = c.user.insert("eve".into(), OwnSettings::default()), "ppo, `user`"),
            (|c| (c.method, c.samples_per_prompt) = (Method::Rloo, count(1)), "ppo, `samples_per_prompt`"),
            (|c| c.guard = Guard::On { blocked: vec!["!".into()], least_words: 0 }, "ppo, `guard.blocked`"),
        ];
        for (change, key) in cases {
            let mut config = fine.clone();
            change(&mut config);
            let error = config.check(&users).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{key}: expected ")), "{key}: {error}");
        }
    }

    #[test]
    fn issue_23_finishing_has_a_price_by_default() {
        let penalty = PpoConfig::default().reward.missing_end_penalty;
        assert_eq!(penalty, 1.0, "a deviation of the user's rewards");
    }

    #[test]
    fn issue_22_no_horizon_that_is_allowed_turns_the_coefficient_negative() {
        let mut config = PpoConfig::default();
        config.kl.control = adaptive(0.05, 12.0, 3.21);
        config.check(&["ann".to_owned()]).unwrap();
        let next = config.kl.control.next(0.05, 0.0, config.responses().unwrap());
        assert!(next > 0.0, "{next}");
    }
}
