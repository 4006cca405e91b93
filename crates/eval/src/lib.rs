//! How good models are at predicting votes, whoever predicted them.
//!
//! A model's [`Prediction`]s of a split are a table, which [`write_predictions`] keeps. [`evaluate()`] says how good they are for every user
//! and in all, with intervals; [`compare()`] which of several methods is better on the votes that all of them predicted, with paired
//! differences and a verdict for every user. What is predicted without a fitted reward is in [`Crowd`] and [`lean`].
//!
//! ```no_run
//! # fn main() -> problem::Result<()> {
//! let votes = eval::read_predictions("checkpoints/compare/reward/predictions-test.parquet".as_ref())?;
//! let users: Vec<String> = votes.iter().map(|p| p.user.clone()).collect();
//! let predictions = eval::Predictions { votes, rows: text::RowCounts::default(), swap: vec![] };
//! println!("{}", eval::evaluate(&predictions, "test", &users, 7).markdown(10));
//! # Ok(()) }
//! ```

mod baselines;
mod compare;
mod comparison;
mod evaluate;
mod evaluation_table;
mod prediction;

pub use baselines::{Crowd, lean, names};
pub use compare::{Method, compare};
pub use comparison::{Comparison, MethodRow, Verdict};
pub use evaluate::{Evaluation, OWN_FIGURES, UserAccuracy, evaluate};
pub use evaluation_table::reliability;
pub use prediction::{Prediction, Predictions, read_predictions, write_predictions};
