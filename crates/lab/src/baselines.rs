//! What others do for a new person on frozen features, so that it can be held beside ours: mixtures of a few basis rewards (LoRe, arXiv
//! 2504.14439), mixtures of ideal points (PAL, 2406.08469), and a small network a person (Park et al. 2024's general model; it overfits few
//! votes). All are fitted by maximum likelihood.

use estimate::{Judgements, Taste, Tastes};
use nalgebra::{DMatrix, DVector};
use rand::Rng;
use serde::{Deserialize, Serialize};
use stats::{Stop, minimise, softplus};

const STOP: Stop = Stop { gradient: 1e-5, evaluations: 300 };

/// How a few basis rewards are mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mixture {
    /// LoRe: `r_h(e) = sum_k a_hk <b_k, e>`.
    Rewards,
    /// PAL: `r_h(e) = -|e - sum_k a_hk p_k|^2` in the embedding's own space. Squares of embeddings come with it.
    IdealPoints,
}

/// K basis rewards or ideal points `[K, e]`; a person is a point `a` of the simplex, `softmax` of logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Simplex {
    kind: Mixture,
    basis: DMatrix<f64>,
    /// Weight of the distance, PAL's learnt temperature.
    scale: f64,
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().fold(f64::NEG_INFINITY, |a, l| a.max(*l));
    let exp: Vec<f64> = logits.iter().map(|l| (l - top).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|e| e / sum).collect()
}

impl Simplex {
    /// Fits basis and mixtures together on many people's votes: `votes[h]` are (difference of embeddings, difference of their squared lengths,
    /// outcome). `ridge` is of the logits and the basis.
    ///
    /// # Panics
    /// If there are no votes.
    pub fn fit(kind: Mixture, k: usize, votes: &[Vec<(Vec<f64>, f64, f64)>], ridge: f64, rng: &mut impl Rng) -> Self {
        let e = votes.iter().flatten().next().expect("votes").0.len();
        let total: f64 = votes.iter().map(|v| v.len() as f64).sum();
        let (people, size) = (votes.len(), k * e);
        // Basis, then the scale's logarithm, then everybody's logits.
        let start: Vec<f64> =
            (0..size + 1 + people * k).map(|i| if i == size { -2.0 } else { rng.random_range(-0.1..0.1) }).collect();
        let value = |p: &[f64], g: &mut [f64]| {
            g.iter_mut().zip(p).for_each(|(g, p)| *g = ridge * p);
            g[size] = 0.0;
            let mut loss =
                ridge / 2.0 * p.iter().enumerate().filter(|(i, _)| *i != size).map(|(_, p)| p * p).sum::<f64>();
            let scale = p[size].exp();
            for (h, own) in votes.iter().enumerate() {
                let at = size + 1 + h * k;
                let a = softmax(&p[at..at + k]);
                let mut da = vec![0.0; k];
                for (z, squares, y) in own {
                    let inner: Vec<f64> =
                        (0..k).map(|j| p[j * e..(j + 1) * e].iter().zip(z).map(|(b, z)| b * z).sum()).collect();
                    let mixed: f64 = inner.iter().zip(&a).map(|(i, a)| i * a).sum();
                    let (margin, by_inner) = match kind {
                        Mixture::Rewards => (mixed, 1.0),
                        Mixture::IdealPoints => (scale * (2.0 * mixed - squares), 2.0 * scale),
                    };
                    loss += (softplus(margin) - y * margin) / total;
                    let residual = (1.0 / (1.0 + (-margin).exp()) - y) / total;
                    if kind == Mixture::IdealPoints {
                        g[size] += residual * margin;
                    }
                    for j in 0..k {
                        da[j] += residual * by_inner * inner[j];
                        let share = residual * by_inner * a[j];
                        g[j * e..(j + 1) * e].iter_mut().zip(z).for_each(|(g, z)| *g += share * z);
                    }
                }
                let mean: f64 = da.iter().zip(&a).map(|(d, a)| d * a).sum();
                (0..k).for_each(|j| g[at + j] += a[j] * (da[j] - mean));
            }
            loss
        };
        let found = minimise(value, start, STOP).x;
        Self { kind, basis: DMatrix::from_row_slice(k, e, &found[..size]), scale: found[size].exp() }
    }

    /// The margin of a pair (difference of the embeddings `[e]`, of their squared lengths) for somebody with these mixture weights.
    pub fn margin(&self, weights: &[f64], (z, squares): (&[f64], f64)) -> f64 {
        let mixed = (&self.basis * DVector::from_column_slice(z)).dot(&DVector::from_column_slice(weights));
        match self.kind {
            Mixture::Rewards => mixed,
            Mixture::IdealPoints => self.scale * (2.0 * mixed - squares),
        }
    }

    /// A new person's mixture weights `[K]`, basis and scale frozen.
    pub fn adapt(&self, votes: &[(Vec<f64>, f64, f64)], ridge: f64) -> Vec<f64> {
        let k = self.basis.nrows();
        let inner: Vec<DVector<f64>> =
            votes.iter().map(|(z, _, _)| &self.basis * DVector::from_column_slice(z)).collect();
        let value = |p: &[f64], g: &mut [f64]| {
            let a = softmax(p);
            let mut da = vec![0.0; k];
            let mut loss = ridge / 2.0 * p.iter().map(|p| p * p).sum::<f64>();
            for ((_, squares, y), inner) in votes.iter().zip(&inner) {
                let mixed: f64 = inner.iter().zip(&a).map(|(i, a)| i * a).sum();
                let (margin, by_inner) = match self.kind {
                    Mixture::Rewards => (mixed, 1.0),
                    Mixture::IdealPoints => (self.scale * (2.0 * mixed - squares), 2.0 * self.scale),
                };
                loss += softplus(margin) - y * margin;
                let residual = 1.0 / (1.0 + (-margin).exp()) - y;
                da.iter_mut().zip(inner.iter()).for_each(|(d, i)| *d += residual * by_inner * i);
            }
            let mean: f64 = da.iter().zip(&a).map(|(d, a)| d * a).sum();
            g.iter_mut().enumerate().for_each(|(j, g)| *g = a[j] * (da[j] - mean) + ridge * p[j]);
            loss
        };
        softmax(&minimise(value, vec![0.0; k], STOP).x)
    }
}

/// One hidden layer of tanh on features, fitted to one person alone: `r(phi) = v' tanh(A phi)`.
#[derive(Clone, Debug, PartialEq)]
pub struct Network {
    hidden: DMatrix<f64>, // [H, d]
    out: DVector<f64>,    // [H]
}

impl Network {
    /// Fits it to pairs (features of the first, features of the second, outcome), from a random start.
    ///
    /// # Panics
    /// If there are no votes.
    pub fn fit(hidden: usize, votes: &[(Vec<f64>, Vec<f64>, f64)], ridge: f64, rng: &mut impl Rng) -> Self {
        let d = votes.first().expect("votes").0.len();
        let bound = (1.0 / d as f64).sqrt();
        let start: Vec<f64> = (0..hidden * (d + 1)).map(|_| rng.random_range(-bound..bound)).collect();
        let value = |p: &[f64], g: &mut [f64]| {
            g.iter_mut().zip(p).for_each(|(g, p)| *g = ridge * p);
            let mut loss = ridge / 2.0 * p.iter().map(|p| p * p).sum::<f64>();
            let layer = |phi: &[f64]| -> Vec<f64> {
                (0..hidden)
                    .map(|j| p[j * d..(j + 1) * d].iter().zip(phi).map(|(a, x)| a * x).sum::<f64>().tanh())
                    .collect()
            };
            let out = &p[hidden * d..];
            for (first, second, y) in votes {
                let (a, b) = (layer(first), layer(second));
                let margin: f64 = (0..hidden).map(|j| out[j] * (a[j] - b[j])).sum();
                loss += softplus(margin) - y * margin;
                let residual = 1.0 / (1.0 + (-margin).exp()) - y;
                for j in 0..hidden {
                    g[hidden * d + j] += residual * (a[j] - b[j]);
                    let (ga, gb) = (residual * out[j] * (1.0 - a[j] * a[j]), residual * out[j] * (1.0 - b[j] * b[j]));
                    for i in 0..d {
                        g[j * d + i] += ga * first[i] - gb * second[i];
                    }
                }
            }
            loss
        };
        let found = minimise(value, start, STOP).x;
        Self {
            hidden: DMatrix::from_row_slice(hidden, d, &found[..hidden * d]),
            out: DVector::from_column_slice(&found[hidden * d..]),
        }
    }

    /// The reward of an answer's features.
    pub fn score(&self, features: &[f64]) -> f64 {
        (&self.hidden * DVector::from_column_slice(features)).map(f64::tanh).dot(&self.out)
    }
}

/// A person's own scale on everybody's reward: `r_h = a_h r`, with `a_h` shrunk to the population's (per-rater calibration with empirical
/// Bayes, PEBS 2606.27578). `votes` are differences of everybody's reward: one feature.
pub fn calibrated(population: &Tastes, votes: &Judgements) -> f64 {
    Taste::of(&population.prior(&[1.0]), votes).mean[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    /// People of two kinds, who like the first number or the second.
    fn people(count: usize, votes: usize, rng: &mut StdRng) -> Vec<Vec<(Vec<f64>, f64, f64)>> {
        (0..count)
            .map(|h| {
                (0..votes)
                    .map(|_| {
                        let z: Vec<f64> = (0..4).map(|_| rng.random_range(-2.0..2.0)).collect();
                        let y = f64::from(u8::from(3.0 * z[h % 2] > rng.random_range(-1.0..1.0)));
                        (z, 0.0, y)
                    })
                    .collect()
            })
            .collect()
    }

    #[test]
    fn mixtures_learn_kinds_of_people_and_place_a_new_one() {
        let mut rng = StdRng::seed_from_u64(1);
        let train = people(20, 30, &mut rng);
        for kind in [Mixture::Rewards, Mixture::IdealPoints] {
            let basis = Simplex::fit(kind, 2, &train, 1e-4, &mut rng);
            let new = people(2, 200, &mut rng);
            for (h, votes) in new.iter().enumerate() {
                let weights = basis.adapt(&votes[..20], 0.01);
                assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
                let right = |(z, s, y): &&(Vec<f64>, f64, f64)| (basis.margin(&weights, (z, *s)) > 0.0) == (*y > 0.5);
                let accuracy = votes[20..].iter().filter(right).count() as f64 / 180.0;
                assert!(accuracy > 0.85, "{kind:?} {h}: {accuracy}");
            }
        }
    }

    #[test]
    fn a_network_fits_what_is_not_linear() {
        let mut rng = StdRng::seed_from_u64(2);
        let bump = |x: &[f64]| -(x[0] * x[0]);
        let votes: Vec<(Vec<f64>, Vec<f64>, f64)> = (0..200)
            .map(|_| {
                let mut draw = || vec![rng.random_range(-2.0..2.0), 1.0];
                let (a, b) = (draw(), draw());
                let y = f64::from(u8::from(bump(&a) > bump(&b)));
                (a, b, y)
            })
            .collect();
        let network = Network::fit(6, &votes[..150], 0.01, &mut StdRng::seed_from_u64(3));
        let right = votes[150..].iter().filter(|(a, b, y)| (network.score(a) > network.score(b)) == (*y > 0.5)).count();
        assert!(right >= 44, "{right} of 50");
    }
}
