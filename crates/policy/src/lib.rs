//! One policy per user on one frozen base.
//!
//! [`train_sft`] teaches a plain base what people prefer, for all of them or for each. [`rank_pairs`] makes a user's preference pairs from samples that the user's reward model has scored;
//! [`vote_pairs`] takes them from the votes. [`train_dpo`] is DPO for all users side by side: each has factors, gradient
//! norm, step count and learning-rate schedule of their own, so training together gives what training alone gives.

mod dpo;
mod error;
mod losses;
mod model;
mod pairs;
mod sft;

pub use dpo::{DpoConfig, DpoReport, Start, UserReport, train as train_dpo};
pub use error::{Error, Result};
pub use losses::{PairLogps, PairLoss, PairObjective};
pub use model::Policies;
pub use pairs::{Pair, PairCounts, rank_pairs, read_pairs, vote_pairs, write_pairs};
pub use sft::{EVERYONE, Scope, SftConfig, SftModelReport, SftReport, train as train_sft};
