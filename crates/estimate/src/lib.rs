//! Statistics that need no language model: style features of a text, simulated raters with a known truth, bootstrap
//! intervals, win rates.
//!
//! ```
//! use estimate::{Feature, Scaler};
//! let texts = ["You can do it, and you will.", "Rain falls.", "It is the rain."];
//! let features = [Feature::SecondPerson, Feature::Comma];
//! let scaler = Scaler::fit(&features, &texts);
//! assert!(scaler.scores(texts[0])[0] > scaler.scores(texts[1])[0]);
//! ```

mod bootstrap;
mod rater;
mod style;
mod win;

pub use bootstrap::{Interval, clustered_mean};
pub use rater::{Choice, agreement_scale, truth, vote};
pub use style::{CLIP, Feature, Scaler};
pub use win::{distinct_n, win_rate};
