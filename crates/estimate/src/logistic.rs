//! Logistic regression without an intercept, with a normal prior: the Bradley-Terry likelihood of one user's votes on frozen
//! features. Convex, so that Newton's method ends at the one optimum from any start.

use nalgebra::{Cholesky, DMatrix, DVector, Dyn};

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
        self.curvature.inverse()
    }
}

const STEPS: usize = 100;

/// Minimises `sum_n w_n [-y_n log s(x_n b) - (1 - y_n) log(1 - s(x_n b))] + ridge / 2 |b - prior|^2` over `b`, where `x` is `[n, d]`,
/// `y` in `[0, 1]` (one half for a tie), `weights` positive, and `ridge` is above 0: votes that can be told apart without error
/// have a finite optimum as well, and without votes it is the prior.
///
/// # Panics
/// If sizes do not fit, or the ridge is not above 0.
pub fn logistic(x: &DMatrix<f64>, y: &[f64], weights: &[f64], ridge: f64, prior: &DVector<f64>) -> Logistic {
    let (n, d) = x.shape();
    assert!(y.len() == n && weights.len() == n && prior.len() == d && ridge > 0.0, "sizes that fit and a ridge");
    let loss = |b: &DVector<f64>| {
        let margins = x * b;
        let votes: f64 = margins.iter().zip(y).zip(weights).map(|((m, y), w)| w * (softplus(*m) - y * m)).sum();
        votes + ridge / 2.0 * (b - prior).norm_squared()
    };
    let mut mode = prior.clone();
    let mut value = loss(&mode);
    let mut steps = 0;
    loop {
        let margins = x * &mode;
        let p: Vec<f64> = margins.iter().map(|m| 1.0 / (1.0 + (-m).exp())).collect();
        let residual = DVector::from_iterator(n, (0..n).map(|i| weights[i] * (p[i] - y[i])));
        let gradient = x.tr_mul(&residual) + (&mode - prior) * ridge;
        let mut scaled = x.clone();
        for (i, mut row) in scaled.row_iter_mut().enumerate() {
            row *= weights[i] * p[i] * (1.0 - p[i]);
        }
        let mut hessian = x.tr_mul(&scaled);
        (0..d).for_each(|i| hessian[(i, i)] += ridge);
        let curvature = Cholesky::new(hessian).expect("positive definite by its ridge");
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

/// `log(1 + e^x)`
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn one_dimension_by_hand() {
        // Three of four say yes at x = 1: 3 - 4 s(b) = ridge b.
        let x = DMatrix::from_element(4, 1, 1.0);
        let fit = logistic(&x, &[1.0, 1.0, 1.0, 0.0], &[1.0; 4], 0.5, &DVector::zeros(1));
        let b = fit.mode[0];
        assert!((3.0 - 4.0 / (1.0 + (-b).exp()) - 0.5 * b).abs() < 1e-9 && b > 0.5);
        let p = 1.0 / (1.0 + (-b).exp());
        assert!((fit.covariance()[(0, 0)] - 1.0 / (4.0 * p * (1.0 - p) + 0.5)).abs() < 1e-9);
        // A weight of three is three votes; without votes there is the prior.
        let short = logistic(&DMatrix::from_element(2, 1, 1.0), &[1.0, 0.0], &[3.0, 1.0], 0.5, &DVector::zeros(1));
        assert!((short.mode[0] - b).abs() < 1e-9);
        let none = logistic(&DMatrix::zeros(0, 2), &[], &[], 1.0, &DVector::from_vec(vec![1.0, -2.0]));
        assert_eq!((none.mode.as_slice(), none.steps), ([1.0, -2.0].as_slice(), 0));
    }

    #[test]
    fn separable_votes_and_huge_features_end_at_an_optimum() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(2);
        let x = DMatrix::from_fn(12, 5, |_, _| rng.random_range(-50.0..50.0));
        let y: Vec<f64> = (0..12).map(|i| f64::from(u8::from(x[(i, 0)] > 0.0))).collect();
        let fit = logistic(&x, &y, &[1.0; 12], 1e-3, &DVector::zeros(5));
        let p: Vec<f64> = (&x * &fit.mode).iter().map(|m| 1.0 / (1.0 + (-m).exp())).collect();
        let residual = DVector::from_iterator(12, (0..12).map(|i| p[i] - y[i]));
        let gradient = x.tr_mul(&residual) + &fit.mode * 1e-3;
        assert!(gradient.norm() < 1e-7 && fit.steps < 60, "{} after {}", gradient.norm(), fit.steps);
    }
}
