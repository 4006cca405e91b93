//! One policy per user on one frozen base.
//!
//! [`train_sft`] teaches a plain base what users prefer, one model for all of them or one for each. [`rank_pairs`] makes a user's preference pairs
//! from samples that the user's reward model has scored; [`vote_pairs`] takes them from the votes. [`train_dpo`] is DPO for all users side by
//! side: each has factors, gradient norm, step count and learning-rate schedule of their own, so training together gives what training alone
//! gives. [`train_ppo`] does the same for PPO, RLOO and GRPO: responses of every user's policy, scored by the user's reward model.
//!
//! `maths` holds losses, advantages and divergences as pure functions; `sft`, `dpo` and `ppo` a training loop each, in `train.rs`, over phases
//! that are plain functions in the files beside it. What they share is small: where the training of many users is (`learners`), the policies
//! that it starts and ends with (`model`), and how numbers in settings are refused (`settings`). `examples/ppo.rs` is PPO for one user on one
//! page.

mod combine;
mod dpo;
#[cfg(test)]
mod golden;
mod learners;
mod maths;
mod model;
mod pairs;
mod ppo;
mod settings;
mod sft;
#[cfg(test)]
#[path = "../examples/tiny/mod.rs"]
mod tiny;

pub use combine::taste_weights;
pub use dpo::config::{DpoConfig, DpoOwn};
pub use dpo::record::{DpoReport, UserReport, WorstDecile};
pub use dpo::train::train as train_dpo;
pub use maths::advantages::{gae, group_relative, leave_one_out, whiten};
pub use maths::kl::{KlControl, KlEstimator};
pub use maths::pair_losses::{PairLogps, PairLoss, PairObjective};
pub use maths::surrogate::{Sampled, value_losses};
pub use model::{Personal, Policies, Start};
pub use pairs::{Pair, PairCounts, Weighting, certainty, rank_pairs, read_pairs, vote_pairs, write_pairs};
pub use ppo::config::{Combination, CriticConfig, KlTerm, Method, OwnSettings, PpoConfig, RewardTerms, Whose};
pub use ppo::guard::Guard;
pub use ppo::record::{PpoReport, PpoUserReport};
pub use ppo::rollouts::{Ask, Rollout, roll_out};
pub use ppo::scale::Scale;
pub use ppo::score::Rewards;
pub use ppo::train::train as train_ppo;
pub use sft::config::{EVERYONE, Scope, SftConfig};
pub use sft::record::{SftModelReport, SftReport};
pub use sft::train::train as train_sft;
