//! One policy per user on one frozen base.
//!
//! [`rank_pairs`] makes a user's preference pairs from samples that the user's reward model has scored;
//! [`vote_pairs`] takes them from the votes. [`train`] is DPO for all users side by side: each has factors, gradient
//! norm, step count and learning-rate schedule of their own, so training together gives what training alone gives.

mod dpo;
mod error;
mod model;
mod pairs;

pub use dpo::{DpoConfig, DpoReport, UserReport, dpo_loss, dpo_margin, train};
pub use error::{Error, Result};
pub use model::Policies;
pub use pairs::{Pair, PairCounts, rank_pairs, read_pairs, vote_pairs, write_pairs};
