//! Rewards on frozen features, without a language model: reward features of embeddings, a user's preference weights and how they vary
//! between users, low-rank contextual rewards, what to ask next, and how far an estimate can be believed.
//!
//! ```
//! use estimate::{Judgements, Taste};
//! use nalgebra::DVector;
//!
//! // Before any vote the weights are uncertain around zero; ten votes for the first feature move them.
//! let prior = stats::Prior::ridge(1.0, DVector::zeros(2));
//! let mut votes = Judgements::new(2);
//! (0..10).for_each(|_| votes.push(&[1.0, 0.0], 1.0, 1.0));
//! let known = Taste::of(&prior, &votes);
//! assert!(known.mean[0] > 1.0 && known.mean[1] == 0.0);
//! ```

mod ask;
mod ball;
mod comparisons;
mod components;
mod contextual;
mod dense;
mod features;
mod likelihood;
mod many;
mod pessimism;
mod rotation;
mod scorer;
mod taste;
mod tastes;

pub use ask::{Criterion, Question, ask};
pub use ball::{Pessimism, Spread};
pub use comparisons::{Comparisons, Contexts};
pub use components::components;
pub use contextual::{ContextualFit, LowRank, truncated};
pub use features::{EmbeddedVotes, FeaturesFit, RewardFeatures, dot};
pub use many::modes;
pub use pessimism::{Ellipsoid, Radius};
pub use rotation::Rotation;
pub use scorer::{Scorer, most_careful};
pub use taste::{Judgements, Taste};
pub use tastes::{Tastes, TastesFit};
