//! Simulated annotators whose preferences are known, and what these say of trained policies.
//!
//! [`simulate()`] samples responses of the base, gives every annotator fixed preference weights on style features ([`Feature`]), and writes
//! their votes as a source file. [`evaluate()`] samples every user's model on prompts that no stage has seen and measures, by the
//! truth, whether it moved towards its user.

mod curve;
mod evaluate;
mod limits;
mod rater;
mod results;
mod sampling;
mod simulate;
mod style;
mod truth;

pub use curve::{CurvePoint, curve};
pub use evaluate::{Asked, EvaluateConfig, EvaluationSplit, Judge, Own, evaluate, evaluate_by, prompt_list};
pub use rater::{Choice, agreement_scale, truth, vote};
pub use results::{Drift, ModelReport, Report, UserReport};
pub use sampling::{SamplingConfig, refuse_long, sample};
pub use simulate::{SimulateConfig, SimulationReport, VotesPerUser, simulate};
pub use style::{CLIP, Feature, Scaler};
pub use truth::{Prompts, Rates, Truth};
