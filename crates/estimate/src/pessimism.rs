//! Acting on what is sure: an ellipsoid around estimated coefficients, the least reward in it, and the policy that is best by it
//! (pessimistic maximum likelihood, Zhu et al. 2023; in the reduced space of [`crate::Rotation`] it is LoCo-RLHF's PRS).

use nalgebra::{Cholesky, DMatrix, DVector, Dyn};
use serde::{Deserialize, Serialize};

/// `{ c : |c - coefficients|_(S + lambda I) <= radius }`, S the mean outer product of the data's features.
#[derive(Clone, Debug)]
pub struct Ellipsoid {
    /// `[k]`
    pub coefficients: DVector<f64>,
    /// Factor of `S + lambda I`, `[k, k]`.
    shape: Cholesky<f64, Dyn>,
    /// gamma
    pub radius: f64,
}

/// How large the ellipsoid is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Radius {
    /// c of `gamma = c sqrt((k + log(1/delta)) / N) + sqrt(lambda) B`: the theory leaves it open.
    pub constant: f64,
    /// delta
    pub delta: f64,
    /// lambda
    pub ridge: f64,
    /// B, a bound of the coefficients' norm.
    pub norm: f64,
}

impl Radius {
    /// gamma for `k` coefficients and `votes` votes.
    pub fn gamma(&self, k: usize, votes: usize) -> f64 {
        self.constant * ((k as f64 + (1.0 / self.delta).ln()) / votes as f64).sqrt() + self.ridge.sqrt() * self.norm
    }
}

impl Ellipsoid {
    /// Around `coefficients`, shaped by the features of the data's votes (differences of the two answers'), one row each `[N, k]`.
    ///
    /// # Panics
    /// If there are no votes, or lambda is not above 0.
    pub fn new(coefficients: DVector<f64>, data: &DMatrix<f64>, radius: &Radius) -> Self {
        let (n, k) = data.shape();
        assert!(
            n > 0 && k == coefficients.len() && radius.ridge > 0.0,
            "votes on the coefficients' features, and a ridge"
        );
        let shape = data.tr_mul(data) / n as f64 + DMatrix::identity(k, k) * radius.ridge;
        let shape = shape.cholesky().expect("a ridge makes it so");
        Self { coefficients, shape, radius: radius.gamma(k, n) }
    }

    /// `|f|` in the inverse of the shape: how little the data say along `f`. Of the difference between the best policy's mean features and the
    /// reference's it is the coverage C* of LoCo-RLHF's bound.
    pub fn width(&self, f: &DVector<f64>) -> f64 {
        f.dot(&self.shape.solve(f)).max(0.0).sqrt()
    }

    /// The least value of `c' f` in the ellipsoid.
    pub fn least(&self, f: &DVector<f64>) -> f64 {
        self.coefficients.dot(f) - self.radius * self.width(f)
    }

    /// Where it is taken, `[k]`.
    pub fn worst(&self, f: &DVector<f64>) -> DVector<f64> {
        let along = self.shape.solve(f);
        let width = f.dot(&along).max(0.0).sqrt();
        if width == 0.0 { self.coefficients.clone() } else { &self.coefficients - along * (self.radius / width) }
    }

    /// The answer to choose in one situation: largest least reward against the reference's features.
    ///
    /// # Panics
    /// If there is no answer.
    pub fn choose(&self, answers: &[DVector<f64>], reference: &DVector<f64>) -> usize {
        let value = |a: &DVector<f64>| self.least(&(a - reference));
        (0..answers.len()).max_by(|a, b| value(&answers[*a]).total_cmp(&value(&answers[*b]))).expect("an answer")
    }

    /// PRS as a search over policies: weights of every situation's answers that maximise the least of `c' (mean features - reference)`.
    /// Concave, solved by Frank and Wolfe's method: each round takes in every situation the answer that is best by the worst coefficients so far.
    /// `situations` holds each one's answers as rows `[A, k]`.
    ///
    /// # Panics
    /// If a situation has no answer.
    pub fn search(&self, situations: &[DMatrix<f64>], reference: &DVector<f64>, rounds: usize) -> Vec<Vec<f64>> {
        let share = 1.0 / situations.len() as f64;
        let pick = |worst: &DVector<f64>| -> (Vec<usize>, DVector<f64>) {
            let mut mean = DVector::zeros(worst.len());
            let chosen = situations
                .iter()
                .map(|answers| {
                    let best = (answers * worst).argmax().0;
                    mean += answers.row(best).transpose() * share;
                    best
                })
                .collect();
            (chosen, mean)
        };
        let (first, mut mean) = pick(&self.coefficients);
        let mut weights: Vec<Vec<f64>> = situations.iter().map(|a| vec![0.0; a.nrows()]).collect();
        weights.iter_mut().zip(&first).for_each(|(w, a)| w[*a] = 1.0);
        for _ in 0..rounds {
            let worst = self.worst(&(&mean - reference));
            let (chosen, towards) = pick(&worst);
            if worst.dot(&(&towards - &mean)) < 1e-9 {
                break;
            }
            let value = |t: f64| self.least(&(&mean * (1.0 - t) + &towards * t - reference));
            let step = golden(value);
            mean = &mean * (1.0 - step) + &towards * step;
            for (own, best) in weights.iter_mut().zip(&chosen) {
                own.iter_mut().for_each(|w| *w *= 1.0 - step);
                own[*best] += step;
            }
        }
        weights
    }
}

/// The largest value of a concave function on [0, 1], by golden sections.
fn golden(f: impl Fn(f64) -> f64) -> f64 {
    let ratio = (5f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (0.0, 1.0);
    while high - low > 1e-6 {
        let (a, b) = (high - ratio * (high - low), low + ratio * (high - low));
        if f(a) < f(b) { low = a } else { high = b }
    }
    f64::midpoint(low, high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contextual::tests::normal;
    use rand::{Rng, SeedableRng};

    fn ellipsoid() -> Ellipsoid {
        // Plenty of data along the first direction, little along the second.
        let data = DMatrix::from_row_slice(2, 2, &[2.0, 0.0, 0.0, 0.2]);
        let radius = Radius { constant: 0.5, delta: 0.1, ridge: 1e-9, norm: 0.0 };
        Ellipsoid::new(DVector::from_vec(vec![1.0, 1.5]), &data, &radius)
    }

    #[test]
    fn the_least_reward_by_hand_and_by_search() {
        let e = ellipsoid();
        assert!((e.radius - 0.5 * (f64::midpoint(2.0, 10f64.ln())).sqrt()).abs() < 1e-12);
        let f = DVector::from_vec(vec![3.0, 4.0]);
        // S = diag(2, .02): |f| = sqrt(9 / 2 + 16 / .02).
        assert!((e.width(&f) - 804.5f64.sqrt()).abs() < 1e-4);
        let worst = e.worst(&f);
        assert!((worst.dot(&f) - e.least(&f)).abs() < 1e-9);
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        for _ in 0..2000 {
            let angle = rng.random_range(0.0..std::f64::consts::TAU);
            let edge = DVector::from_vec(vec![angle.cos() / 2f64.sqrt(), angle.sin() / 0.02f64.sqrt()]) * e.radius;
            assert!((&e.coefficients + edge).dot(&f) >= e.least(&f) - 1e-6);
        }
    }

    #[test]
    fn what_the_data_do_not_cover_is_not_chosen() {
        let e = ellipsoid();
        let answers = [vec![1.0, 0.0], vec![0.0, 1.0]].map(DVector::from_vec);
        let none = DVector::zeros(2);
        assert_eq!((e.choose(&answers, &none), Ellipsoid { radius: 0.0, ..e.clone() }.choose(&answers, &none)), (0, 1));
    }

    #[test]
    fn the_search_finds_the_best_policy() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(2);
        let data = normal(40, 3, &mut rng);
        let radius = Radius { constant: 1.0, delta: 0.1, ridge: 1e-3, norm: 1.0 };
        let e = Ellipsoid::new(normal(3, 1, &mut rng).column(0) * 0.3, &data, &radius);
        let situations: Vec<DMatrix<f64>> = (0..3).map(|_| normal(3, 3, &mut rng)).collect();
        let none = DVector::zeros(3);
        let value = |weights: &[Vec<f64>]| {
            let mean: DVector<f64> = situations
                .iter()
                .zip(weights)
                .map(|(a, w)| a.transpose() * DVector::from_column_slice(w) / 3.0)
                .fold(DVector::zeros(3), |a, b| a + b);
            e.least(&mean)
        };
        let found = e.search(&situations, &none, 300);
        assert!(found.iter().all(|w| (w.iter().sum::<f64>() - 1.0).abs() < 1e-9 && w.iter().all(|w| *w >= 0.0)));
        let mut best = f64::NEG_INFINITY;
        for code in 0..27 {
            let pure: Vec<Vec<f64>> =
                (0..3).map(|s| (0..3).map(|a| f64::from(u8::from(a == code / 3usize.pow(s) % 3))).collect()).collect();
            best = best.max(value(&pure));
        }
        for _ in 0..3000 {
            let mixed: Vec<Vec<f64>> = (0..3)
                .map(|_| {
                    let w: Vec<f64> = (0..3).map(|_| -rng.random::<f64>().ln()).collect();
                    w.iter().map(|v| v / w.iter().sum::<f64>()).collect()
                })
                .collect();
            best = best.max(value(&mixed));
        }
        assert!(value(&found) > best - 1e-4, "{} {best}", value(&found));
        // Without a radius it takes the best answer everywhere.
        let greedy = Ellipsoid { radius: 0.0, ..e.clone() };
        for (weights, answers) in greedy.search(&situations, &none, 10).iter().zip(&situations) {
            assert_eq!(weights[(answers * &e.coefficients).argmax().0], 1.0);
        }
    }
}
