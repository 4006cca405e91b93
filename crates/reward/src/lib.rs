//! Personalised reward models: parameters mostly shared, partly personal, learnt from pooled votes.
//!
//! [`fit()`] is P-ShareLoRA (arXiv 2503.19201): a personal down-projection for every user, one up-projection and one
//! scalar head for all, warmed up from a global adapter. LoRA-global and LoRA-local are the same loop with other
//! [`Variant`]s. [`evaluate()`] gives each user's held-out accuracy with an interval.

mod config;
mod evaluate;
mod fit;
mod model;
mod texts;

pub use config::{RewardConfig, Variant};
pub use evaluate::{Evaluation, UserAccuracy, evaluate};
pub use fit::{FitReport, fit};
pub use lm::{Error, Result}; // nothing goes wrong here that has no place there
pub use model::RewardModel;
use texts::Texts;
