//! Reward features (RFM, arXiv 2503.17338) on synthetic raters: what is gained over one reward for all as raters become more, disagree more
//! and vote more, and how a fixed number of votes is best spread over raters.
//!
//! An answer has hidden features; what is seen of it is an embedding, a rotation of them together with as many numbers again that mean nothing.
//! A rater weighs each feature +1 with probability `p`, else -1: at 0.5 raters disagree most, at 0.9 they are nearly alike.

use std::sync::Mutex;

use nalgebra::{DMatrix, DVector};
use rand::Rng;
use rand_distr::StandardNormal;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::baselines::{Mixture, Network, Simplex, calibrated};
use crate::contextual::{Comparisons, Contexts, ContextualFit};
use crate::logistic::{Prior, logistic};
use crate::taste::{Judgements, Taste};
use crate::tastes::{Tastes, TastesFit};

/// Sizes of the experiments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RfmLab {
    /// Repetitions.
    pub seeds: usize,
    /// Hidden features of an answer.
    pub hidden: usize,
    /// Numbers of an embedding.
    pub embedding: usize,
    /// d, learnt reward features.
    pub features: usize,
    /// Deviation of a margin: how sure raters are.
    pub sureness: f64,
    /// New raters, whom no fit has seen.
    pub test_raters: usize,
    /// Pairs on which each of them is judged; no vote is asked on them.
    pub test_pairs: usize,
}

impl Default for RfmLab {
    fn default() -> Self {
        Self { seeds: 12, hidden: 12, embedding: 48, features: 12, sureness: 3.0, test_raters: 40, test_pairs: 200 }
    }
}

/// One method in one world.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RfmRow {
    /// `raters`, `disagreement`, `shots`, `budget`
    pub experiment: String,
    /// The method.
    pub method: String,
    /// The repetition.
    pub seed: usize,
    /// m, raters in training
    pub raters: usize,
    /// n, votes of each
    pub votes: usize,
    /// p
    pub alike: f64,
    /// Votes of a new rater.
    pub shots: usize,
    /// Mean over new raters of the share of pairs ranked as they would.
    pub accuracy: f64,
}

/// A pair: the two embeddings.
struct Shown {
    first: Vec<f64>,
    second: Vec<f64>,
    z: Vec<f64>,
    squares: f64,
    margin: f64,
}

struct World {
    lab: RfmLab,
    rotation: DMatrix<f64>,
}

impl World {
    fn new(lab: &RfmLab, rng: &mut impl Rng) -> Self {
        let square = DMatrix::from_fn(lab.embedding, lab.embedding, |_, _| rng.sample(StandardNormal));
        Self { lab: lab.clone(), rotation: square.qr().q() }
    }

    fn rater(&self, alike: f64, rng: &mut impl Rng) -> DVector<f64> {
        let scale = self.lab.sureness / (2.0 * self.lab.hidden as f64).sqrt(); // of a margin of two unit answers
        DVector::from_fn(self.lab.hidden, |_, _| if rng.random::<f64>() < alike { scale } else { -scale })
    }

    fn pair(&self, taste: &DVector<f64>, rng: &mut impl Rng) -> Shown {
        let mut draw = || DVector::from_fn(self.lab.embedding, |_, _| rng.sample::<f64, _>(StandardNormal));
        let (a, b) = (draw(), draw());
        let margin = taste.dot(&(a.rows(0, self.lab.hidden) - b.rows(0, self.lab.hidden)));
        let (first, second) = (&self.rotation * a, &self.rotation * b);
        Shown {
            z: (&first - &second).iter().copied().collect(),
            squares: first.norm_squared() - second.norm_squared(),
            first: first.iter().copied().collect(),
            second: second.iter().copied().collect(),
            margin,
        }
    }

    fn votes(&self, taste: &DVector<f64>, count: usize, rng: &mut impl Rng) -> Vec<(Shown, f64)> {
        (0..count)
            .map(|_| {
                let pair = self.pair(taste, rng);
                let p = 1.0 / (1.0 + (-pair.margin).exp());
                let y = f64::from(u8::from(rng.random::<f64>() < p));
                (pair, y)
            })
            .collect()
    }
}

/// What is learnt from the training raters.
struct Learnt {
    everybody: DVector<f64>,
    map: DMatrix<f64>, // [e, d]
    tastes: Tastes,
    scale: Tastes,
    linear: Prior,
    rewards: Simplex,
    points: Simplex,
}

/// Ridge of one reward for all, in votes.
const RIDGE: f64 = 1.0;
/// Basis rewards and ideal points.
const BASIS: usize = 6;

impl RfmLab {
    /// Every experiment, worlds side by side. `rng(name)` is the stream of one world; `progress(done, all)`.
    pub fn run<R: Rng>(
        &self,
        rng: impl Fn(&str) -> R + Sync,
        progress: impl FnMut(usize, usize) + Send,
    ) -> Vec<RfmRow> {
        let shots: &[usize] = &[0, 1, 3, 10, 30, 50];
        let mut plan: Vec<(&str, usize, usize, f64, &[usize])> = Vec::new();
        for raters in [20, 60, 256] {
            plan.push(("raters", raters, 30, 0.5, &[30]));
        }
        for alike in [0.5, 0.6, 0.75, 0.9] {
            plan.push(("disagreement", 60, 30, alike, &[30]));
        }
        plan.push(("shots", 60, 30, 0.5, shots));
        // The same number of votes, of many raters or of few.
        for (raters, votes) in [(1920, 1), (480, 4), (120, 16), (30, 64), (8, 240)] {
            plan.push(("budget", raters, votes, 0.5, &[30]));
        }
        let jobs: Vec<_> = (0..self.seeds).flat_map(|seed| plan.iter().map(move |p| (seed, p))).collect();
        let told = Mutex::new((0, progress));
        jobs.par_iter()
            .flat_map_iter(|(seed, (experiment, raters, votes, alike, shots))| {
                let mut rng = rng(&format!("{experiment} {raters} {votes} {alike} {seed}"));
                let found = self.world(*raters, *votes, *alike, shots, &mut rng);
                let (done, tell) = &mut *told.lock().expect("nobody panics while telling");
                *done += 1;
                tell(*done, jobs.len());
                found.into_iter().map(move |(shots, method, accuracy)| RfmRow {
                    experiment: (*experiment).into(),
                    method,
                    seed: *seed,
                    raters: *raters,
                    votes: *votes,
                    alike: *alike,
                    shots,
                    accuracy,
                })
            })
            .collect()
    }

    fn learn(&self, train: &[Vec<(Shown, f64)>], rng: &mut impl Rng) -> Learnt {
        let (e, d) = (self.embedding, self.features);
        let all: Vec<&(Shown, f64)> = train.iter().flatten().collect();
        let x = DMatrix::from_fn(all.len(), e, |n, j| all[n].0.z[j]);
        let outcomes: Vec<f64> = all.iter().map(|v| v.1).collect();
        let plain = logistic(&x, &outcomes, &vec![1.0; all.len()], &Prior::ridge(RIDGE, DVector::zeros(e))).mode;
        // Features and tastes together: one-hot contexts.
        let index = train.iter().enumerate().flat_map(|(h, own)| vec![h; own.len()]).collect();
        let data = Comparisons {
            contexts: Contexts::People { count: train.len(), index },
            d: e,
            differences: all.iter().flat_map(|v| v.0.z.clone()).collect(),
            outcomes,
        };
        // As heavy on a person's weights as a prior of variance 1 would be.
        let how = ContextualFit { ridge: 1.0 / all.len() as f64, gradient: 1e-5, passes: 300 };
        let map = data.fit(d, &how).0.v;
        // The gauge: features of unit deviation over the training votes' answers.
        let map = {
            let spread = (&x * &map).map(|v| v * v).row_mean().map(|v| v.sqrt().max(1e-9));
            DMatrix::from_fn(e, d, |i, j| map[(i, j)] / spread[j])
        };
        let judged = |own: &Vec<(Shown, f64)>, features: &dyn Fn(&Shown) -> Vec<f64>, d: usize| {
            let mut votes = Judgements::new(d);
            own.iter().for_each(|(s, y)| votes.push(&features(s), *y, 1.0));
            votes
        };
        let contexts = vec![vec![1.0]; train.len()];
        let how = TastesFit::default();
        let in_features: Vec<Judgements> = train.iter().map(|own| judged(own, &|s| phi(&map, &s.z), d)).collect();
        let in_scale: Vec<Judgements> = train.iter().map(|own| judged(own, &|s| vec![dot(&plain, &s.z)], 1)).collect();
        let simple: Vec<Vec<(Vec<f64>, f64, f64)>> =
            train.iter().map(|own| own.iter().map(|(s, y)| (s.z.clone(), s.squares, *y)).collect()).collect();
        Learnt {
            tastes: Tastes::fit(&in_features, &contexts, &how),
            scale: Tastes::fit(&in_scale, &contexts, &how),
            linear: Prior::ridge(4.0, plain.clone()),
            rewards: Simplex::fit(Mixture::Rewards, BASIS, &simple, 1e-4, rng),
            points: Simplex::fit(Mixture::IdealPoints, BASIS, &simple, 1e-4, rng),
            everybody: plain,
            map,
        }
    }

    /// (shots, method, accuracy) of one world.
    fn world(
        &self,
        raters: usize,
        votes: usize,
        alike: f64,
        shots: &[usize],
        rng: &mut impl Rng,
    ) -> Vec<(usize, String, f64)> {
        let world = World::new(self, rng);
        let train: Vec<Vec<(Shown, f64)>> = (0..raters)
            .map(|_| {
                let taste = world.rater(alike, rng);
                world.votes(&taste, votes, rng)
            })
            .collect();
        let learnt = self.learn(&train, rng);
        let most = shots.iter().max().copied().unwrap_or(0);
        let mut sums: Vec<(usize, &str, f64)> = Vec::new();
        for _ in 0..self.test_raters {
            let taste = world.rater(alike, rng);
            let adapt = world.votes(&taste, most, rng);
            let held: Vec<Shown> = (0..self.test_pairs).map(|_| world.pair(&taste, rng)).collect();
            let accuracy = |margin: &dyn Fn(&Shown) -> f64| {
                let right = held.iter().filter(|s| (margin(s) > 0.0) == (s.margin > 0.0)).count();
                right as f64 / held.len() as f64
            };
            for shots in shots {
                let own = &adapt[..*shots];
                let judged = |features: &dyn Fn(&Shown) -> Vec<f64>, d: usize| {
                    let mut votes = Judgements::new(d);
                    own.iter().for_each(|(s, y)| votes.push(&features(s), *y, 1.0));
                    votes
                };
                let features = |s: &Shown| phi(&learnt.map, &s.z);
                let taste = Taste::of(&learnt.tastes.prior(&[1.0]), &judged(&features, self.features));
                let linear = Taste::of(&learnt.linear, &judged(&|s| s.z.clone(), self.embedding));
                let scale = calibrated(&learnt.scale, &judged(&|s| vec![dot(&learnt.everybody, &s.z)], 1));
                let simple: Vec<(Vec<f64>, f64, f64)> = own.iter().map(|(s, y)| (s.z.clone(), s.squares, *y)).collect();
                let mut add = |method, value| sums.push((*shots, method, value));
                add("one reward for all", accuracy(&|s| dot(&learnt.everybody, &s.z)));
                add("RFM", accuracy(&|s| dot(&taste.mean, &features(s))));
                add("linear on embeddings", accuracy(&|s| dot(&linear.mean, &s.z)));
                add("own scale", accuracy(&|s| scale * dot(&learnt.everybody, &s.z)));
                for (name, mixture) in [("LoRe", &learnt.rewards), ("ideal points", &learnt.points)] {
                    let weights = mixture.adapt(&simple, 0.05);
                    add(name, accuracy(&|s| mixture.margin(&weights, (&s.z, s.squares))));
                }
                if *shots > 0 {
                    let pairs: Vec<(Vec<f64>, Vec<f64>, f64)> = own
                        .iter()
                        .map(|(s, y)| (phi(&learnt.map, &s.first), phi(&learnt.map, &s.second), *y))
                        .collect();
                    let network = Network::fit(16, &pairs, 0.01, rng);
                    let score = |e: &[f64]| network.score(&phi(&learnt.map, e));
                    add("network", accuracy(&|s| score(&s.first) - score(&s.second)));
                }
            }
        }
        let mut out: Vec<(usize, String, f64)> = Vec::new();
        for (shots, method, value) in sums {
            let share = value / self.test_raters as f64;
            match out.iter_mut().find(|(s, m, _)| *s == shots && *m == method) {
                Some((_, _, sum)) => *sum += share,
                None => out.push((shots, method.to_owned(), share)),
            }
        }
        out
    }
}

/// Reward features of an embedding.
pub(crate) fn phi(map: &DMatrix<f64>, e: &[f64]) -> Vec<f64> {
    map.tr_mul(&DVector::from_column_slice(e)).iter().copied().collect()
}

pub(crate) fn dot(w: &DVector<f64>, x: &[f64]) -> f64 {
    w.iter().zip(x).map(|(w, x)| w * x).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn features_serve_a_new_rater_whom_one_reward_for_all_cannot() {
        let lab = RfmLab { hidden: 6, embedding: 16, features: 6, test_raters: 12, ..RfmLab::default() };
        let of = |alike: f64| {
            let mut rng = rand::rngs::StdRng::seed_from_u64(1);
            let got = lab.world(60, 30, alike, &[0, 10, 30], &mut rng);
            move |shots: usize, method: &str| got.iter().find(|(s, m, _)| *s == shots && m == method).unwrap().2
        };
        let apart = of(0.5);
        assert!(apart(30, "RFM") > apart(30, "one reward for all") + 0.15);
        assert!(apart(30, "RFM") > apart(10, "RFM") && apart(10, "RFM") > apart(0, "RFM"));
        assert!(
            apart(30, "RFM") > apart(30, "linear on embeddings") + 0.03
                && apart(30, "RFM") > apart(30, "own scale") + 0.1
        );
        let alike = of(0.95);
        assert!(alike(30, "RFM") - alike(30, "one reward for all") < 0.05);
        assert!(
            (alike(0, "RFM") - alike(0, "one reward for all")).abs() < 0.05,
            "without votes it is the population's mean"
        );
    }
}
