//! Logistic regression without an intercept, with a normal prior: the Bradley-Terry likelihood of one user's votes on frozen
//! features. Convex, so that Newton's method ends at the one optimum from any start.

use nalgebra::{Cholesky, DMatrix, DVector, Dyn};
use serde::{Deserialize, Serialize};

use crate::softplus;

/// The posterior mode and what is around it.
#[derive(Clone, Debug)]
pub struct Logistic {
    /// `[d]`
    pub mode: DVector<f64>,
    /// Factor of the negative log posterior's second derivative at the mode, `[d, d]`.
    pub curvature: Cholesky<f64, Dyn>,
    /// Newton steps.
    pub steps: usize,
}

impl Logistic {
    /// The Laplace approximation's covariance `[d, d]`.
    pub fn covariance(&self) -> DMatrix<f64> {
        let inverse = self.curvature.inverse();
        (&inverse + inverse.transpose()) / 2.0 // equal to rounding, made the same
    }
}

/// What is known before a vote: a normal distribution of the coefficients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prior {
    /// `[d]`
    pub mean: DVector<f64>,
    /// Inverse covariance `[d, d]`, positive definite.
    pub precision: DMatrix<f64>,
}

impl Prior {
    /// Every coefficient alone, of variance `1 / ridge` around `mean`.
    pub fn ridge(ridge: f64, mean: DVector<f64>) -> Self {
        let d = mean.len();
        Self { mean, precision: DMatrix::identity(d, d) * ridge }
    }
}

const STEPS: usize = 100;

/// Minimises `sum_n w_n [-y_n log s(x_n b) - (1 - y_n) log(1 - s(x_n b))] + (b - m)' P (b - m) / 2` over `b`, where `x` is `[n, d]`,
/// `y` in `[0, 1]` (one half for a tie), `weights` positive, `m` and `P` the prior's mean and precision. `P` is positive definite:
/// votes that can be told apart without error have a finite optimum as well, and without votes it is the prior's mean.
///
/// # Panics
/// If sizes do not fit, or the precision is not positive definite.
pub fn logistic(x: &DMatrix<f64>, y: &[f64], weights: &[f64], prior: &Prior) -> Logistic {
    logistic_from(x, y, weights, prior, &prior.mean)
}

/// The same from another start.
pub fn logistic_from(x: &DMatrix<f64>, y: &[f64], weights: &[f64], prior: &Prior, start: &DVector<f64>) -> Logistic {
    let (n, d) = x.shape();
    let fits = y.len() == n && weights.len() == n && prior.mean.len() == d && prior.precision.shape() == (d, d);
    assert!(fits && start.len() == d, "sizes that fit");
    let loss = |b: &DVector<f64>| {
        let margins = x * b;
        let votes: f64 = margins.iter().zip(y).zip(weights).map(|((m, y), w)| w * (softplus(*m) - y * m)).sum();
        let off = b - &prior.mean;
        votes + off.dot(&(&prior.precision * &off)) / 2.0
    };
    let mut mode = start.clone();
    let mut value = loss(&mode);
    let mut steps = 0;
    loop {
        let margins = x * &mode;
        let p: Vec<f64> = margins.iter().map(|m| 1.0 / (1.0 + (-m).exp())).collect();
        let residual = DVector::from_iterator(n, (0..n).map(|i| weights[i] * (p[i] - y[i])));
        let gradient = x.tr_mul(&residual) + &prior.precision * (&mode - &prior.mean);
        let mut scaled = x.clone();
        for (i, mut row) in scaled.row_iter_mut().enumerate() {
            row *= weights[i] * p[i] * (1.0 - p[i]);
        }
        let hessian = x.tr_mul(&scaled) + &prior.precision;
        let curvature = Cholesky::new(hessian).expect("positive definite by its prior");
        let step = curvature.solve(&gradient);
        let decrement = gradient.dot(&step);
        if decrement < 1e-18 * (1.0 + value.abs()) || steps >= STEPS {
            return Logistic { mode, curvature, steps };
        }
        // Halved until it gains a quarter of what the slope promises.
        let mut length = 1.0;
        loop {
            let next = &mode - &step * length;
            let then = loss(&next);
            if then <= value - 0.25 * length * decrement || length < 1e-10 {
                (mode, value) = (next, then);
                break;
            }
            length /= 2.0;
        }
        steps += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    fn flat(ridge: f64, d: usize) -> Prior {
        Prior::ridge(ridge, DVector::zeros(d))
    }

    #[test]
    fn one_dimension_by_hand() {
        // Three of four say yes at x = 1: 3 - 4 s(b) = ridge b.
        let x = DMatrix::from_element(4, 1, 1.0);
        let fit = logistic(&x, &[1.0, 1.0, 1.0, 0.0], &[1.0; 4], &flat(0.5, 1));
        let b = fit.mode[0];
        assert!((3.0 - 4.0 / (1.0 + (-b).exp()) - 0.5 * b).abs() < 1e-9 && b > 0.5);
        let p = 1.0 / (1.0 + (-b).exp());
        assert!((fit.covariance()[(0, 0)] - 1.0 / (4.0 * p * (1.0 - p) + 0.5)).abs() < 1e-9);
        // A weight of three is three votes; without votes there is the prior.
        let short = logistic(&DMatrix::from_element(2, 1, 1.0), &[1.0, 0.0], &[3.0, 1.0], &flat(0.5, 1));
        assert!((short.mode[0] - b).abs() < 1e-9);
        let none = logistic(&DMatrix::zeros(0, 2), &[], &[], &Prior::ridge(1.0, DVector::from_vec(vec![1.0, -2.0])));
        assert_eq!((none.mode.as_slice(), none.steps), ([1.0, -2.0].as_slice(), 0));
    }

    #[test]
    fn separable_votes_and_huge_features_end_at_an_optimum() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(2);
        let x = DMatrix::from_fn(12, 5, |_, _| rng.random_range(-50.0..50.0));
        let y: Vec<f64> = (0..12).map(|i| f64::from(u8::from(x[(i, 0)] > 0.0))).collect();
        let fit = logistic(&x, &y, &[1.0; 12], &flat(1e-3, 5));
        let p: Vec<f64> = (&x * &fit.mode).iter().map(|m| 1.0 / (1.0 + (-m).exp())).collect();
        let residual = DVector::from_iterator(12, (0..12).map(|i| p[i] - y[i]));
        let gradient = x.tr_mul(&residual) + &fit.mode * 1e-3;
        assert!(gradient.norm() < 1e-7 && fit.steps < 60, "{} after {}", gradient.norm(), fit.steps);
    }

    #[test]
    fn the_optimum_does_not_depend_on_the_start_and_a_prior_is_a_change_of_basis() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(3);
        let mut draw = |a: usize, b: usize| DMatrix::from_fn(a, b, |_, _| rng.random_range(-1.0..1.0));
        let (x, root) = (draw(30, 4), draw(4, 4));
        let y: Vec<f64> = (0..30).map(|i| [1.0, 0.0, 0.5][i % 3]).collect();
        let weights: Vec<f64> = (0..30).map(|i| 0.5 + f64::from(i % 4)).collect();
        let mean = draw(4, 1).column(0).into_owned();
        let prior = Prior { mean: mean.clone(), precision: root.transpose() * &root + DMatrix::identity(4, 4) * 0.1 };
        let fit = logistic(&x, &y, &weights, &prior);
        for start in [DVector::from_element(4, 9.0), draw(4, 1).column(0) * 30.0] {
            assert!((logistic_from(&x, &y, &weights, &prior, &start).mode - &fit.mode).norm() < 1e-8);
        }
        // b = m + L^-T c with P = L L': c has the prior N(0, 1), and x becomes x L^-T, with margins x m to start from.
        let factor = Cholesky::new(prior.precision.clone()).unwrap().l();
        let inverse = factor.transpose().try_inverse().unwrap();
        let white =
            DMatrix::from_fn(
                30,
                5,
                |i, j| {
                    if j == 4 { (x.row(i) * &mean)[0] } else { (x.row(i) * inverse.column(j))[0] }
                },
            );
        let mut known = flat(1.0, 5);
        (known.mean[4], known.precision[(4, 4)]) = (1.0, 1e12); // the start's weight is 1
        let c = logistic(&white, &y, &weights, &known).mode;
        assert!((mean + inverse * c.rows(0, 4) - fit.mode).norm() < 1e-6);
    }
}
