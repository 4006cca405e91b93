//! One person's taste: weights on the reward features of answers, known by a distribution that votes sharpen (RFM, arXiv
//! 2503.17338: adaptation with frozen features; the posterior around its mode is Laplace's).

use nalgebra::{DMatrix, DVector};
use serde::{Deserialize, Serialize};
use stats::{Prior, logistic};

/// One person's votes, in features: `differences [n, d]` of each vote's first and second answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgements {
    d: usize,
    differences: Vec<f64>, // row by row
    outcomes: Vec<f64>,
    weights: Vec<f64>,
}

impl Judgements {
    /// None yet, on `d` features.
    pub fn new(d: usize) -> Self {
        Self { d, ..Self::default() }
    }

    /// Adds a vote: features of the first answer minus those of the second `[d]`; `outcome` 1 if the first was chosen, 0 if the
    /// second, one half for a tie; `weight` 1 for an ordinary vote. A vote of weight 0 counts nothing and is not kept.
    ///
    /// # Panics
    /// If the difference has another length, or a number is not in its range.
    pub fn push(&mut self, difference: &[f64], outcome: f64, weight: f64) {
        assert_eq!(difference.len(), self.d, "as many features as the others have");
        let numbers = difference.iter().all(|x| x.is_finite()) && (0.0..=1.0).contains(&outcome);
        assert!(
            numbers && weight >= 0.0 && weight.is_finite(),
            "finite features, an outcome from 0 to 1, a weight from 0"
        );
        if weight == 0.0 {
            return;
        }
        self.differences.extend_from_slice(difference);
        self.outcomes.push(outcome);
        self.weights.push(weight);
    }

    /// Votes.
    pub fn len(&self) -> usize {
        self.outcomes.len()
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.outcomes.is_empty()
    }

    /// Features.
    pub fn dimension(&self) -> usize {
        self.d
    }

    /// The first `n` votes.
    pub fn first(&self, n: usize) -> Self {
        let n = n.min(self.len());
        Self {
            d: self.d,
            differences: self.differences[..n * self.d].to_vec(),
            outcomes: self.outcomes[..n].to_vec(),
            weights: self.weights[..n].to_vec(),
        }
    }

    /// Each vote's difference, outcome and weight.
    pub fn iter(&self) -> impl Iterator<Item = (&[f64], f64, f64)> {
        let rows = self.differences.chunks_exact(self.d.max(1));
        rows.zip(&self.outcomes).zip(&self.weights).map(|((x, y), w)| (x, *y, *w))
    }

    /// `[n, d]`
    pub(crate) fn matrix(&self) -> DMatrix<f64> {
        DMatrix::from_row_slice(self.len(), self.d, &self.differences)
    }
}

/// What is known of a person: a normal distribution of the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Taste {
    /// `[d]`
    pub mean: DVector<f64>,
    /// `[d, d]`
    pub covariance: DMatrix<f64>,
    /// Votes behind it.
    pub votes: usize,
}

impl Taste {
    /// The prior sharpened by votes: the mode, and Laplace's covariance at it. Without votes it is the prior.
    ///
    /// # Panics
    /// If the prior has another number of features, or its precision is not positive definite.
    pub fn of(prior: &Prior, votes: &Judgements) -> Self {
        let fit = logistic(&votes.matrix(), &votes.outcomes, &votes.weights, prior);
        Self { covariance: fit.covariance(), mean: fit.mode, votes: votes.len() }
    }

    /// The reward of an answer with these features, and its standard error.
    pub fn score(&self, features: &[f64]) -> (f64, f64) {
        let phi = DVector::from_column_slice(features);
        (self.mean.dot(&phi), phi.dot(&(&self.covariance * &phi)).max(0.0).sqrt())
    }

    /// P(the first answer is chosen), the taste integrated out (MacKay 1992's approximation of a logistic of a normal).
    pub fn probability(&self, difference: &[f64]) -> f64 {
        let (mean, error) = self.score(difference);
        1.0 / (1.0 + (-mean / (1.0 + std::f64::consts::PI / 8.0 * error * error).sqrt()).exp())
    }

    /// As a prior for what comes.
    ///
    /// # Panics
    /// If the covariance is not positive definite.
    pub fn prior(&self) -> Prior {
        let precision = self.covariance.clone().cholesky().expect("a covariance of full rank").inverse();
        Prior { mean: self.mean.clone(), precision }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taste_is_the_prior_and_then_what_votes_say() {
        let prior = Prior::ridge(4.0, DVector::from_vec(vec![0.5, 0.0]));
        let mut votes = Judgements::new(2);
        let before = Taste::of(&prior, &votes);
        assert_eq!((before.mean.as_slice(), before.score(&[0.0, 2.0])), ([0.5, 0.0].as_slice(), (0.0, 1.0)));
        for _ in 0..50 {
            votes.push(&[0.0, 1.0], 1.0, 1.0);
        }
        votes.push(&[1.0, 0.0], 0.5, 2.0);
        let after = Taste::of(&prior, &votes);
        // What nobody voted on along the first feature but a tie: towards 0. Along the second, sure by now.
        assert!(after.mean[0] < 0.5 && after.mean[0] > 0.0 && after.mean[1] > 1.5 && after.votes == 51);
        assert!(after.score(&[0.0, 1.0]).1 < before.score(&[0.0, 1.0]).1);
        // Integrating over what is not known draws probabilities towards one half.
        let plain = 1.0 / (1.0 + (-after.score(&[0.0, 1.0]).0).exp());
        assert!(after.probability(&[0.0, 1.0]) < plain && after.probability(&[0.0, 1.0]) > 0.5);
        // Half of the votes and then the other half, by the first's posterior, come near to all at once.
        let by_parts = Taste::of(&Taste::of(&prior, &votes.first(25)).prior(), &votes.first(25));
        assert!((by_parts.mean[1] - Taste::of(&prior, &votes.first(50)).mean[1]).abs() < 0.2);
    }
}
