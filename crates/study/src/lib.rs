//! Simulated raters whose truth is known, and what that truth says of trained policies.
//!
//! [`simulate()`] samples answers of the base, gives every rater a fixed taste for style features, and writes their votes
//! as a source file. [`evaluate()`] samples every user's model on prompts that no stage has seen and measures, by the
//! truth, whether it moved towards its user.

mod curve;
mod evaluate;
mod rater;
mod results;
mod sampling;
mod simulate;
mod style;

pub use curve::{CurvePoint, curve};
pub use evaluate::{Asked, EvaluateConfig, EvaluationSplit, Judge, Own, evaluate, evaluate_by, prompt_list};
pub use rater::{Choice, agreement_scale, truth, vote};
pub use results::{Drift, ModelReport, Report, UserReport};
pub use sampling::{SamplingConfig, sample};
pub use simulate::{Prompts, Rates, SimulateConfig, SimulationReport, Truth, VotesPerUser, simulate};
pub use style::{CLIP, Feature, Scaler};
