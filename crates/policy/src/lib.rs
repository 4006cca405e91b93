//! One policy per user on one frozen base.
//!
//! [`train_sft`] teaches a plain base what people prefer, for all of them or for each. [`rank_pairs`] makes a user's preference pairs from samples that the user's reward model has scored;
//! [`vote_pairs`] takes them from the votes. [`train_dpo`] is DPO for all users side by side: each has factors, gradient
//! norm, step count and learning-rate schedule of their own, so training together gives what training alone gives. [`train_ppo`] does the same
//! for PPO, RLOO and GRPO: answers of every user's policy, scored by the user's reward model.

mod advantages;
mod combine;
mod dpo;
mod dpo_config;
mod dpo_record;
mod dpo_rows;
mod guard;
mod kl;
mod losses;
mod model;
mod pairs;
mod ppo;
mod ppo_config;
mod ppo_plan;
mod ppo_record;
mod ppo_rewards;
mod ppo_update;
mod rollouts;
mod sft;
mod surrogate;

pub use advantages::{gae, group_relative, leave_one_out, whiten};
pub use combine::taste_weights;
pub use dpo::train as train_dpo;
pub use dpo_config::{DpoConfig, DpoOwn, Start};
pub use dpo_record::{DpoReport, UserReport, WorstDecile};
pub use guard::Guard;
pub use kl::{KlControl, KlEstimator};
pub use losses::{PairLogps, PairLoss, PairObjective};
pub use model::{Personal, Policies};
pub use pairs::{Pair, PairCounts, Weighting, certainty, rank_pairs, read_pairs, vote_pairs, write_pairs};
pub use ppo::train as train_ppo;
pub use ppo_config::{Combination, CriticConfig, KlTerm, Method, OwnSettings, PpoConfig, RewardTerms, Whose};
pub use ppo_record::{PpoReport, PpoUserReport};
pub use ppo_rewards::{Rewards, Scale};
pub use rollouts::{Ask, Rollout, roll_out};
pub use sft::{EVERYONE, Scope, SftConfig, SftModelReport, SftReport, train as train_sft};
pub use surrogate::{Sampled, value_losses};
