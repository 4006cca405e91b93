//! How tastes vary between people: `w_h ~ N(G x_h, L)`, where `x_h` is what is known of a person before any vote (a constant 1
//! at least). `G` and `L` are learnt from many people's votes by empirical Bayes. With no vote the prior is LoCo-RLHF's reward
//! (arXiv 2412.19436) with `Theta = G'`; with many it does not matter (RFM).

use nalgebra::{DMatrix, DVector};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use stats::Prior;

use crate::taste::{Judgements, Taste};

/// The distribution of people's tastes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tastes {
    /// G, `[d, c]`
    pub map: DMatrix<f64>,
    /// L, `[d, d]`
    pub covariance: DMatrix<f64>,
}

/// How a population is fitted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TastesFit {
    /// Rounds of EM, at most.
    pub rounds: usize,
    /// As many people, of the covariance `scale`, are taken to have been seen before: few people do not show `d^2` numbers.
    pub prior_people: f64,
    /// Variance of a weight among these.
    pub scale: f64,
    /// Ridge on `G`, in people.
    pub ridge: f64,
}

impl Default for TastesFit {
    fn default() -> Self {
        Self { rounds: 30, prior_people: 2.0, scale: 1.0, ridge: 0.1 }
    }
}

impl Tastes {
    /// EM: everybody's taste by the current prior (Laplace), then `G` and `L` from the tastes and their uncertainty. `contexts` are
    /// one row a person, `[c]` each.
    ///
    /// # Panics
    /// If there is nobody, or numbers do not fit.
    pub fn fit(votes: &[Judgements], contexts: &[Vec<f64>], how: &TastesFit) -> Self {
        assert!(!votes.is_empty() && votes.len() == contexts.len(), "a context for everybody");
        let (d, c) = (votes[0].dimension(), contexts[0].len());
        let x = DMatrix::from_fn(contexts.len(), c, |h, j| contexts[h][j]); // [H, c]
        let gram = (x.tr_mul(&x) + DMatrix::identity(c, c) * how.ridge).cholesky().expect("a ridge makes it so");
        let mut now = Self { map: DMatrix::zeros(d, c), covariance: DMatrix::identity(d, d) * how.scale };
        for _ in 0..how.rounds {
            let precision = now.covariance.clone().cholesky().expect("people of a covariance of full rank").inverse();
            let tastes: Vec<Taste> = votes
                .par_iter()
                .zip(contexts)
                .map(|(v, x)| Taste::of(&Prior { mean: now.mean(x), precision: precision.clone() }, v))
                .collect();
            let means = DMatrix::from_fn(tastes.len(), d, |h, j| tastes[h].mean[j]); // [H, d]
            let map = gram.solve(&x.tr_mul(&means)).transpose();
            let mut spread = DMatrix::identity(d, d) * (how.prior_people * how.scale);
            for (h, taste) in tastes.iter().enumerate() {
                let off = &taste.mean - &map * x.row(h).transpose();
                spread += &taste.covariance + &off * off.transpose();
            }
            spread /= tastes.len() as f64 + how.prior_people;
            let moved = (&map - &now.map).norm() + (&spread - &now.covariance).norm();
            now = Self { map, covariance: (&spread + spread.transpose()) / 2.0 };
            if moved < 1e-6 * (1.0 + now.covariance.norm()) {
                break;
            }
        }
        now
    }

    /// The expected taste of somebody with this context, `[d]`.
    pub fn mean(&self, context: &[f64]) -> DVector<f64> {
        &self.map * DVector::from_column_slice(context)
    }

    /// What is known of somebody with this context who has not voted.
    ///
    /// # Panics
    /// If the covariance is not positive definite, which [`Self::fit`] does not make.
    pub fn prior(&self, context: &[f64]) -> Prior {
        let precision = self.covariance.clone().cholesky().expect("a covariance of full rank").inverse();
        Prior { mean: self.mean(context), precision }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_distr::StandardNormal;

    /// How they vary, their tastes, votes and contexts.
    type People = (Tastes, Vec<DVector<f64>>, Vec<Judgements>, Vec<Vec<f64>>);

    /// People whose taste is G x + noise of covariance L, and their votes.
    fn people(count: usize, votes: usize, seed: u64) -> People {
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let map = DMatrix::from_row_slice(3, 2, &[1.0, 0.5, -0.5, 1.0, 0.0, -1.5]);
        let root = DMatrix::from_row_slice(3, 3, &[0.8, 0.0, 0.0, 0.4, 0.5, 0.0, 0.0, 0.0, 0.2]);
        let truth = Tastes { map, covariance: &root * root.transpose() };
        let (mut tastes, mut all, mut contexts) = (vec![], vec![], vec![]);
        for _ in 0..count {
            let context = vec![1.0, rng.sample(StandardNormal)];
            let taste = truth.mean(&context) + &root * DVector::from_fn(3, |_, _| rng.sample(StandardNormal));
            let mut own = Judgements::new(3);
            for _ in 0..votes {
                let x: Vec<f64> = (0..3).map(|_| rng.sample(StandardNormal)).collect();
                let p = 1.0 / (1.0 + (-taste.dot(&DVector::from_column_slice(&x))).exp());
                own.push(&x, f64::from(u8::from(rng.random::<f64>() < p)), 1.0);
            }
            tastes.push(taste);
            all.push(own);
            contexts.push(context);
        }
        (truth, tastes, all, contexts)
    }

    #[test]
    fn it_finds_how_people_vary_and_its_intervals_cover() {
        let (truth, _, votes, contexts) = people(300, 40, 1);
        let found = Tastes::fit(&votes, &contexts, &TastesFit::default());
        assert!((&found.map - &truth.map).norm() < 0.35, "{}", found.map);
        assert!((&found.covariance - &truth.covariance).norm() < 0.3, "{}", found.covariance);
        // New people: 80% intervals of each weight, with no, few and more votes.
        for count in [0, 10, 40] {
            let (_, tastes, votes, contexts) = people(300, count, 2);
            let (mut inside, mut all) = (0.0, 0.0);
            for ((taste, votes), context) in tastes.iter().zip(&votes).zip(&contexts) {
                let known = Taste::of(&found.prior(context), votes);
                for j in 0..3 {
                    let half = 1.2816 * known.covariance[(j, j)].sqrt();
                    inside += f64::from(u8::from((known.mean[j] - taste[j]).abs() < half));
                    all += 1.0;
                }
            }
            assert!((0.72..0.88).contains(&(inside / all)), "{count} votes: {}", inside / all);
        }
    }

    #[test]
    fn context_serves_who_has_not_voted() {
        let (_, _, votes, contexts) = people(300, 40, 1);
        let constant: Vec<Vec<f64>> = contexts.iter().map(|_| vec![1.0]).collect();
        let how = TastesFit::default();
        let (with, without) = (Tastes::fit(&votes, &contexts, &how), Tastes::fit(&votes, &constant, &how));
        let (_, tastes, _, new) = people(200, 0, 3);
        let error = |mean: &dyn Fn(&[f64]) -> DVector<f64>| -> f64 {
            tastes.iter().zip(&new).map(|(t, x)| (t - mean(x)).norm_squared()).sum()
        };
        assert!(error(&|x| with.mean(x)) < 0.5 * error(&|_| without.mean(&[1.0])));
    }
}
