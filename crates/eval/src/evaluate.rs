//! How good a model is on a split: for each user and in all, with intervals, beside the simplest baselines.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stats::{Calibration, Cell, Each, Interval, calibration, clustered_mean, half_for_equal, two_way_mean};
use text::RowCounts;

use crate::prediction::{Prediction, Predictions};

/// One user's figures on decided votes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UserAccuracy {
    /// The user.
    pub user: String,
    /// Decided votes of the split.
    pub votes: usize,
    /// Share of votes in which the chosen answer has the higher reward, with a 95% interval clustered by prompt.
    pub accuracy: Interval,
    /// Mean of -ln P(chosen), nats.
    pub log_loss: f64,
    /// Mean of (1 - P(chosen))^2.
    pub brier: f64,
    /// Accuracy of "the longer answer is better".
    pub longer: f64,
    /// Mean accuracy of the other users' factors on this user's votes, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swapped: Option<f64>,
}

/// All users' figures on one split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// `dev` or `test`.
    pub split: String,
    /// Decided votes.
    pub votes: usize,
    /// Ties: not in the accuracies.
    pub ties: usize,
    /// Plain mean over users.
    pub mean_accuracy: f64,
    /// The same with a 95% interval over users and prompts.
    pub accuracy: Option<Interval>,
    /// Mean over votes, with its interval.
    pub accuracy_by_vote: Option<Interval>,
    /// Mean accuracy of the tenth of users, at least one, who are served worst (of those with 20 votes, where there are any).
    pub worst_decile: f64,
    /// Standard deviation of accuracies over users.
    pub dispersion: f64,
    /// Log-loss, Brier score and calibration over all votes.
    pub calibration: Option<Calibration>,
    /// Mean over users of "the longer answer is better".
    pub longer: f64,
    /// Over votes: the majority of the other users' votes on the pair, where there is one; and the votes that have one.
    pub majority: Option<(f64, usize)>,
    /// Mean over users of the other users' factors, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swapped: Option<f64>,
    /// Users without a decided vote in the split are left out.
    pub users: Vec<UserAccuracy>,
    /// Rows left out or changed.
    pub rows: RowCounts,
}

/// Votes from which on a user's own figures mean something.
pub const OWN_FIGURES: usize = 20;

/// Prompts from which on they are drawn as clusters; of fewer, pairs of answers are.
const MANY_PROMPTS: usize = 20;

/// Was the chosen answer given the higher reward?
pub(crate) fn right(p: &Prediction) -> f64 {
    half_for_equal(p.margin, 0.0)
}

/// `-ln P(chosen)` of a decided vote, nats.
pub(crate) fn loss(p: &Prediction) -> f64 {
    stats::log_loss(p.probability)
}

/// Numbers names in order of appearance.
pub(crate) struct Numbers<'a>(BTreeMap<&'a str, usize>);

impl<'a> Numbers<'a> {
    pub(crate) fn new() -> Self {
        Self(BTreeMap::new())
    }

    pub(crate) fn of(&mut self, name: &'a str) -> usize {
        let next = self.0.len();
        *self.0.entry(name).or_insert(next)
    }
}

/// What is drawn together beside users: prompts, or pairs where prompts are few.
pub(crate) fn item_of(votes: &[&Prediction]) -> fn(&Prediction) -> &str {
    let prompts: std::collections::BTreeSet<&str> = votes.iter().map(|p| p.prompt.as_str()).collect();
    if prompts.len() >= MANY_PROMPTS { |p| &p.prompt } else { |p| &p.pair }
}

/// Mean of the lowest tenth, at least one.
pub(crate) fn worst_decile(mut accuracies: Vec<f64>) -> f64 {
    accuracies.sort_by(f64::total_cmp);
    let tenth = accuracies.len().div_ceil(10);
    accuracies[..tenth].iter().fold(0.0, |a, b| a + b) / tenth.max(1) as f64
}

pub(crate) fn deviation(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    if values.len() < 2 { 0.0 } else { (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt() }
}

/// Judges predictions of one split; `users` are the model's, `seed` draws the bootstraps.
pub fn evaluate(predictions: &Predictions, split: &str, users: &[String], seed: u64) -> Evaluation {
    let decided: Vec<&Prediction> = predictions.votes.iter().filter(|p| !p.tie).collect();
    let mut by_user: BTreeMap<&str, Vec<&Prediction>> = BTreeMap::new();
    decided.iter().for_each(|p| by_user.entry(&p.user).or_default().push(p));
    let mut swapped: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    for (_, on, _, accuracy) in predictions.swap.iter().filter(|(of, on, _, _)| of != on) {
        let entry = swapped.entry(&users[*on]).or_default();
        *entry = (entry.0 + accuracy, entry.1 + 1.0);
    }
    let mean = |values: &[&Prediction], f: &dyn Fn(&Prediction) -> f64| {
        values.iter().map(|p| f(p)).sum::<f64>() / values.len() as f64
    };
    let of_users: Vec<UserAccuracy> = by_user
        .iter()
        .filter_map(|(user, own)| {
            let mut by_prompt: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
            for p in own {
                let cluster = by_prompt.entry(&p.prompt).or_default();
                *cluster = (cluster.0 + right(p), cluster.1 + 1);
            }
            let clusters: Vec<(f64, usize)> = by_prompt.into_values().collect();
            Some(UserAccuracy {
                user: (*user).to_owned(),
                votes: own.len(),
                accuracy: clustered_mean(&clusters, &mut run::rng(seed, &["bootstrap", split, user]))?,
                log_loss: mean(own, &loss),
                brier: mean(own, &|p| (1.0 - p.probability).powi(2)),
                longer: mean(own, &|p| p.longer),
                swapped: swapped.get(user).map(|(sum, n)| sum / n),
            })
        })
        .collect();
    let item = item_of(&decided);
    let (mut user_numbers, mut item_numbers) = (Numbers::new(), Numbers::new());
    let cells: Vec<Cell> = decided
        .iter()
        .map(|p| Cell { user: user_numbers.of(&p.user), item: item_numbers.of(item(p)), values: vec![right(p)] })
        .collect();
    let interval = |each| two_way_mean(&cells, each, &mut run::rng(seed, &["two-way", split]));
    let accuracies =
        |least: usize| -> Vec<f64> { of_users.iter().filter(|u| u.votes >= least).map(|u| u.accuracy.mean).collect() };
    let known = if accuracies(OWN_FIGURES).is_empty() { accuracies(0) } else { accuracies(OWN_FIGURES) };
    let over_users =
        |f: fn(&UserAccuracy) -> f64| of_users.iter().map(f).fold(0.0, |a, b| a + b) / of_users.len().max(1) as f64;
    let with_majority: Vec<f64> = decided.iter().map(|p| p.majority).filter(|m| !m.is_nan()).collect();
    let probabilities: Vec<f64> = decided.iter().map(|p| p.probability).collect();
    let swapped =
        (!swapped.is_empty()).then(|| swapped.values().map(|(s, n)| s / n).sum::<f64>() / swapped.len() as f64);
    Evaluation {
        split: split.to_owned(),
        votes: decided.len(),
        ties: predictions.votes.len() - decided.len(),
        mean_accuracy: over_users(|u| u.accuracy.mean),
        accuracy: interval(Each::User),
        accuracy_by_vote: interval(Each::Vote),
        worst_decile: worst_decile(known),
        dispersion: deviation(&accuracies(0)),
        calibration: calibration(&probabilities),
        longer: over_users(|u| u.longer),
        majority: (!with_majority.is_empty())
            .then(|| (with_majority.iter().sum::<f64>() / with_majority.len() as f64, with_majority.len())),
        swapped,
        users: of_users,
        rows: predictions.rows,
    }
}
