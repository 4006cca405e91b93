//! Statistics that need no language model: style features of a text, simulated raters with a known truth, bootstrap
//! intervals (one- and two-way), calibration, shrinkage over users, win rates.
//!
//! ```
//! use estimate::{Feature, Scaler};
//! let texts = ["You can do it, and you will.", "Rain falls.", "It is the rain."];
//! let features = [Feature::SecondPerson, Feature::Comma];
//! let scaler = Scaler::fit(&features, &texts);
//! assert!(scaler.scores(texts[0])[0] > scaler.scores(texts[1])[0]);
//! ```

mod ask;
mod baselines;
mod bootstrap;
mod calibration;
mod contextual;
mod dense;
mod features;
mod lab_loco;
mod lab_pessimism;
mod lab_rfm;
mod lbfgs;
mod likelihood;
mod logistic;
mod many;
mod newcomers;
mod pessimism;
mod rater;
mod rotation;
mod scorer;
mod shrink;
mod slope;
mod style;
mod taste;
mod tastes;
mod two_way;
mod win;

pub use ask::{Criterion, Question, ask};
pub use baselines::{Mixture, Network, Simplex, calibrated};
pub use bootstrap::{Interval, clustered, clustered_mean};
pub use calibration::{Bin, Calibration, calibration};
pub use contextual::{Comparisons, Contexts, ContextualFit, LowRank, truncated};
pub use features::{EmbeddedVotes, FeaturesFit, RewardFeatures};
pub use lab_loco::{Deployment, LocoLab, LocoRow};
pub use lab_pessimism::{PessimismLab, PessimismRow, tilted};
pub use lab_rfm::{RfmLab, RfmRow, Served};
pub use lbfgs::{Minimum, Stop, minimise};
pub use logistic::{Logistic, Prior, logistic, logistic_from};
pub use many::modes;
pub use newcomers::{EmbeddedVote, NewcomerRow, NewcomerStudy, components};
pub use pessimism::{Ellipsoid, Radius};
pub use rater::{Choice, agreement_scale, truth, vote};
pub use rotation::Rotation;
pub use scorer::{Scorer, most_careful};
pub use shrink::{Population, Shrunk, shrink};
pub use slope::Slope;
pub use style::{CLIP, Feature, Scaler};
pub use taste::{Judgements, Taste};
pub use tastes::{Tastes, TastesFit};
pub use two_way::{Cell, Each, two_way_mean};
pub use win::{Contest, distinct_n, length_controlled, win_rate};
