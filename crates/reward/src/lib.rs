//! Personalised reward models: parameters mostly shared, partly personal, learnt from pooled votes.
//!
//! [`fit()`] is P-ShareLoRA (arXiv 2503.19201): a personal down-projection for every user, one up-projection and one
//! scalar head for all, warmed up from a global adapter. LoRA-global, LoRA-local and Share Rep are the same loop with other
//! [`Variant`]s. [`predict()`] says what a model thinks of each vote (how good that is, the crate `eval` says); [`welcome`] fits users who come
//! later.

mod config;
mod embeddings;
mod fit;
mod fit_report;
mod habits;
mod learner;
mod model;
mod newcomers;
mod objective;
mod people;
mod pessimism;
mod plan;
mod predict;
mod pull;
mod rated;
mod reader;
mod schedule;
mod scorers;
mod step;
mod texts;
mod watch;

pub use config::{EarlyStopping, Factors, Kept, Personal, Phase, RewardConfig, Role, Structure, Variant};
pub use embeddings::{Embedded, embed};
pub use fit::fit;
pub use fit_report::FitReport;
pub use model::RewardModel;
pub use newcomers::welcome;
pub use objective::{Judged, Lapse, Objective, Ties, Weighting, outcomes};
pub use people::{People, taste_people};
pub use predict::{Scored, predict};
pub use rated::Errors;
pub use reader::{Reader, Text};
pub use scorers::{ByFactors, ByTaste};
use texts::Texts;
pub use texts::refuse_long;
