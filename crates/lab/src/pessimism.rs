//! When caution pays: a policy is moved from uniform over a prompt's answers towards a fitted reward, further and further, and the truth
//! says what that was worth (over-optimisation, Gao et al. 2022; caution, LoCo-RLHF and P-ShareLoRA's pessimism on a user's taste).
//!
//! Votes compare answers of which half of the features hardly vary; the policy chooses among answers of which all do. The greedy policy is
//! `p ~ exp(lambda m . phi)` with the taste's posterior mean `m`, the careful one `p ~ exp(lambda (m . phi - c sd(phi)))` with its standard error, `phi`
//! less the prompt's mean; `lambda` is set for each divergence from uniform.

use std::sync::Mutex;

use estimate::{Judgements, Taste};
use nalgebra::DVector;
use rand::Rng;
use rand_distr::StandardNormal;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use stats::Prior;

/// Sizes of the experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PessimismLab {
    /// Repetitions.
    pub seeds: usize,
    /// Users in each.
    pub users: usize,
    /// Features of an answer.
    pub features: usize,
    /// Deviation of the second half of the features among the answers that are voted on; 1 among those of the policy.
    pub narrow: f64,
    /// Deviation of a margin: how sure users are.
    pub sureness: f64,
    /// Answers to a prompt.
    pub answers: usize,
    /// Prompts of a user.
    pub prompts: usize,
    /// Votes of a user.
    pub votes: Vec<usize>,
    /// Standard errors that are taken off.
    pub cautions: Vec<f64>,
    /// Divergences from the base, nats.
    pub divergences: Vec<f64>,
    /// Precision of a prior that knows next to nothing.
    pub flat: f64,
}

impl Default for PessimismLab {
    fn default() -> Self {
        Self {
            seeds: 20,
            users: 60,
            features: 16,
            narrow: 0.2,
            sureness: 3.0,
            answers: 64,
            prompts: 6,
            votes: vec![10, 30, 100, 300],
            cautions: vec![0.0, 0.5, 1.0, 2.0],
            divergences: vec![0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5],
            flat: 0.05,
        }
    }
}

/// One policy at one divergence, over a repetition's users. Rewards are in deviations of the base's answers, above their mean.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PessimismRow {
    /// `flat`, or `right`: the distribution that tastes are drawn from.
    pub prior: String,
    /// Votes of a user.
    pub votes: usize,
    /// Standard errors that are taken off; 0 is greedy.
    pub caution: f64,
    /// From the base, nats.
    pub divergence: f64,
    /// The repetition.
    pub seed: usize,
    /// Reward by the fitted mean.
    pub proxy: f64,
    /// True reward.
    pub gold: f64,
    /// True reward of the tenth of the users who fare worst.
    pub worst: f64,
}

/// Probabilities proportional to `exp(lambda r)` whose divergence from uniform is `kl` nats (or what comes nearest: all on the best).
pub fn tilted(rewards: &[f64], kl: f64) -> Vec<f64> {
    let best = rewards.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let at = |lambda: f64| -> Vec<f64> {
        let weights: Vec<f64> = rewards.iter().map(|r| (lambda * (r - best)).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.into_iter().map(|w| w / sum).collect()
    };
    let divergence =
        |p: &[f64]| -> f64 { p.iter().filter(|p| **p > 0.0).map(|p| p * (p * rewards.len() as f64).ln()).sum() };
    let (mut low, mut high) = (-12.0f64, 12.0f64); // of log lambda
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if divergence(&at(middle.exp())) < kl { low = middle } else { high = middle }
    }
    at(high.exp())
}

/// A user's rewards for one policy and divergence, summed over prompts.
#[derive(Clone, Copy, Default)]
struct Sum {
    proxy: f64,
    gold: f64,
}

impl PessimismLab {
    /// All rows; `rng(name)` gives a repetition's stream, `progress` is told how many of them are done.
    pub fn run<R: Rng>(
        &self,
        rng: impl Fn(&str) -> R + Sync,
        progress: impl FnMut(usize, usize) + Send,
    ) -> Vec<PessimismRow> {
        let progress = Mutex::new((0, progress));
        let one = |seed: usize| {
            let rows = self.repetition(seed, &mut rng(&format!("pessimism {seed}")));
            let mut progress = progress.lock().expect("nobody panicked");
            progress.0 += 1;
            let done = progress.0;
            (progress.1)(done, self.seeds);
            rows
        };
        (0..self.seeds).into_par_iter().flat_map(one).collect()
    }

    fn answer(&self, narrow: f64, rng: &mut impl Rng) -> DVector<f64> {
        let scale = |i: usize| if i >= self.features / 2 { narrow } else { 1.0 };
        DVector::from_fn(self.features, |i, _| scale(i) * rng.sample::<f64, _>(StandardNormal))
    }

    fn repetition(&self, seed: usize, rng: &mut impl Rng) -> Vec<PessimismRow> {
        let d = self.features;
        let spread = self.sureness / (2.0 * d as f64).sqrt(); // of a weight
        let priors = [("flat", self.flat), ("right", 1.0 / (spread * spread))];
        let mut rows = Vec::new();
        for votes in &self.votes {
            // Of each prior, caution, divergence: every user.
            let cells = priors.len() * self.cautions.len() * self.divergences.len();
            let mut found: Vec<Vec<Sum>> = vec![Vec::new(); cells];
            for _ in 0..self.users {
                let truth = DVector::from_fn(d, |_, _| spread * rng.sample::<f64, _>(StandardNormal));
                let mut judged = Judgements::new(d);
                for _ in 0..*votes {
                    let difference = self.answer(self.narrow, rng) - self.answer(self.narrow, rng);
                    let likely = 1.0 / (1.0 + (-difference.dot(&truth)).exp());
                    let outcome = f64::from(u8::from(rng.random::<f64>() < likely));
                    judged.push(difference.as_slice(), outcome, 1.0);
                }
                let prompts: Vec<Vec<DVector<f64>>> = (0..self.prompts).map(|_| self.prompt(rng)).collect();
                let tastes = priors.map(|(_, ridge)| Taste::of(&Prior::ridge(ridge, DVector::zeros(d)), &judged));
                for (cell, sum) in self.serve(&truth, &tastes, &prompts).into_iter().enumerate() {
                    found[cell].push(sum);
                }
            }
            let mut cell = found.into_iter();
            for (prior, _) in &priors {
                for caution in &self.cautions {
                    for divergence in &self.divergences {
                        let users = cell.next().expect("a cell of each");
                        let n = users.len() as f64;
                        let mut golds: Vec<f64> = users.iter().map(|s| s.gold).collect();
                        golds.sort_by(f64::total_cmp);
                        let tenth = golds.len().div_ceil(10);
                        rows.push(PessimismRow {
                            prior: (*prior).into(),
                            votes: *votes,
                            caution: *caution,
                            divergence: *divergence,
                            seed,
                            proxy: users.iter().map(|s| s.proxy).sum::<f64>() / n,
                            gold: golds.iter().sum::<f64>() / n,
                            worst: golds[..tenth].iter().sum::<f64>() / tenth as f64,
                        });
                    }
                }
            }
        }
        rows
    }

    /// Features of a prompt's answers, less their mean.
    fn prompt(&self, rng: &mut impl Rng) -> Vec<DVector<f64>> {
        let answers: Vec<DVector<f64>> = (0..self.answers).map(|_| self.answer(1.0, rng)).collect();
        let mean = answers.iter().sum::<DVector<f64>>() / self.answers as f64;
        answers.into_iter().map(|a| a - &mean).collect()
    }

    /// What every policy is worth to one user: by prior, caution, divergence.
    fn serve(&self, truth: &DVector<f64>, tastes: &[Taste], prompts: &[Vec<DVector<f64>>]) -> Vec<Sum> {
        let mut out = Vec::new();
        for taste in tastes {
            for caution in &self.cautions {
                let mut sums = vec![Sum::default(); self.divergences.len()];
                for answers in prompts {
                    let gold: Vec<f64> = answers.iter().map(|a| a.dot(truth)).collect();
                    let deviation = (gold.iter().map(|g| g * g).sum::<f64>() / gold.len() as f64).sqrt();
                    let rated: Vec<(f64, f64)> = answers.iter().map(|a| taste.score(a.as_slice())).collect();
                    let careful: Vec<f64> = rated.iter().map(|(mean, error)| mean - caution * error).collect();
                    for (sum, kl) in sums.iter_mut().zip(&self.divergences) {
                        let p = tilted(&careful, *kl);
                        let expected = |f: &dyn Fn(usize) -> f64| -> f64 {
                            p.iter().enumerate().map(|(i, p)| p * f(i)).sum::<f64>() / deviation / prompts.len() as f64
                        };
                        sum.proxy += expected(&|i| rated[i].0);
                        sum.gold += expected(&|i| gold[i]);
                    }
                }
                out.extend(sums);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_tilted_policy_has_the_divergence_that_was_asked_for() {
        let rewards = [0.3, -1.0, 2.0, 0.9];
        for kl in [0.0, 0.1, 0.7, 1.2] {
            let p = tilted(&rewards, kl);
            let found: f64 = p.iter().map(|p| p * (4.0 * p).ln()).sum();
            assert!((found - kl).abs() < 1e-4 && (p.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{kl} {found} {p:?}");
            assert!(p[2] >= p[3] && p[3] >= p[0] && p[0] >= p[1]);
        }
        // More than any policy has: all on the best.
        assert!(tilted(&rewards, 9.0)[2] > 1.0 - 1e-9);
    }

    #[test]
    fn caution_pays_for_the_unlucky_where_the_prior_is_flat_and_nobody_where_it_is_right() {
        let lab =
            PessimismLab { seeds: 6, users: 60, votes: vec![100], divergences: vec![3.0], ..PessimismLab::default() };
        let seed = |name: &str| name.bytes().map(u64::from).sum();
        let rows = lab.run(|name| rand::rngs::StdRng::seed_from_u64(seed(name)), |_, _| ());
        assert_eq!(rows.len(), 6 * 2 * 4);
        let mean = |prior: &str, caution: f64, f: fn(&PessimismRow) -> f64| {
            let own: Vec<f64> = rows.iter().filter(|r| r.prior == prior && r.caution == caution).map(f).collect();
            own.iter().sum::<f64>() / own.len() as f64
        };
        // A flat prior takes noise along features that hardly vary in the votes for taste: the proxy promises more than it keeps.
        assert!(mean("flat", 0.0, |r| r.proxy) > 2.0 * mean("flat", 0.0, |r| r.gold));
        assert!(mean("flat", 2.0, |r| r.worst) > mean("flat", 0.0, |r| r.worst) + 0.05);
        // The posterior mean of the right prior is the best guess there is, and its promise is kept.
        assert!(mean("right", 0.0, |r| r.gold) > mean("right", 2.0, |r| r.gold) + 0.05);
        assert!((mean("right", 0.0, |r| r.proxy) - mean("right", 0.0, |r| r.gold)).abs() < 0.15);
        assert!(mean("right", 0.0, |r| r.gold) > mean("flat", 2.0, |r| r.gold));
    }
}
