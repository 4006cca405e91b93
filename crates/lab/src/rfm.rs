//! Reward features (RFM, arXiv 2503.17338) on synthetic raters: what is gained over one reward for all as raters become more, disagree more
//! and vote more, and how a fixed number of votes is best spread over raters.
//!
//! An answer has hidden features; what is seen of it is an embedding, a rotation of them together with as many numbers again that mean nothing.
//! A rater weighs each feature +1 with probability `p`, else -1: at 0.5 raters disagree most, at 0.9 they are nearly alike.

use std::sync::Mutex;

use estimate::{Criterion, EmbeddedVotes, FeaturesFit, Judgements, RewardFeatures, Taste, Tastes, TastesFit, ask, dot};
use nalgebra::{DMatrix, DVector};
use rand::Rng;
use rand_distr::StandardNormal;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use stats::{Prior, logistic};

use crate::baselines::{Mixture, Network, Simplex, calibrated};

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
    /// Weight of the squared norms of features and training raters' tastes, in votes.
    pub ridge: f64,
    /// Deviation of a margin: how sure raters are.
    pub sureness: f64,
    /// New raters, whom no fit has seen.
    pub test_raters: usize,
    /// Answers to a prompt of which the best is picked.
    pub answers: usize,
    /// Pairs on which each of them is judged; no vote is asked on them.
    pub test_pairs: usize,
}

impl Default for RfmLab {
    fn default() -> Self {
        Self {
            seeds: 12,
            hidden: 12,
            embedding: 48,
            features: 12,
            ridge: 10.0,
            sureness: 3.0,
            test_raters: 40,
            answers: 16,
            test_pairs: 200,
        }
    }
}

/// One method in one world.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RfmRow {
    /// `raters`, `disagreement`, `shots`, `budget`, `leave one out`, `questions`
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
    /// What it did for new raters, on the mean.
    #[serde(flatten)]
    pub served: Served,
}

/// How well a new rater is served.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Served {
    /// Share of pairs ranked as the rater would.
    pub accuracy: f64,
    /// Best of n: the true reward of the answer that is picked, above the mean of a prompt's answers, in deviations of rewards.
    pub gained: f64,
    /// Share of prompts on which the pick is truly better than that by one reward for all; half where they are the same.
    pub beats: f64,
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

    /// An answer's embedding, and its true reward.
    fn answer(&self, taste: &DVector<f64>, rng: &mut impl Rng) -> (Vec<f64>, f64) {
        let a = DVector::from_fn(self.lab.embedding, |_, _| rng.sample::<f64, _>(StandardNormal));
        let reward = taste.dot(&a.rows(0, self.lab.hidden));
        ((&self.rotation * a).iter().copied().collect(), reward)
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

    /// Training raters' votes.
    fn raters(&self, raters: usize, votes: usize, alike: f64, rng: &mut impl Rng) -> Vec<Vec<(Shown, f64)>> {
        let tastes: Vec<DVector<f64>> = (0..raters).map(|_| self.rater(alike, rng)).collect();
        tastes.iter().map(|taste| self.votes(taste, votes, rng)).collect()
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
    features: RewardFeatures,
    scale: Tastes,
    linear: Prior,
    rewards: Simplex,
    points: Simplex,
}

/// Ridge of one reward for all, in votes.
const RIDGE: f64 = 1.0;
const LEAVE_ONE_OUT: &str = "leave one out";
const QUESTIONS: &str = "questions";
/// Pairs to ask about.
const CANDIDATES: usize = 200;
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
        plan.push((LEAVE_ONE_OUT, 8, 240, 0.5, &[0, 10, 30]));
        plan.push((QUESTIONS, 256, 30, 0.5, &[5, 10, 15, 20, 25, 30]));
        let jobs: Vec<_> = (0..self.seeds).flat_map(|seed| plan.iter().map(move |p| (seed, p))).collect();
        let told = Mutex::new((0, progress));
        jobs.par_iter()
            .flat_map_iter(|(seed, (experiment, raters, votes, alike, shots))| {
                let mut rng = rng(&format!("{experiment} {raters} {votes} {alike} {seed}"));
                let found = match *experiment {
                    LEAVE_ONE_OUT => self.leave_one_out(*raters, *votes, shots, &mut rng),
                    QUESTIONS => self.questions(*raters, *votes, *alike, shots, &mut rng),
                    _ => self.world(*raters, *votes, *alike, shots, &mut rng),
                };
                let (done, tell) = &mut *told.lock().expect("nobody panics while telling");
                *done += 1;
                tell(*done, jobs.len());
                found.into_iter().map(move |(shots, method, served)| RfmRow {
                    experiment: (*experiment).into(),
                    method,
                    seed: *seed,
                    raters: *raters,
                    votes: *votes,
                    alike: *alike,
                    shots,
                    served,
                })
            })
            .collect()
    }

    fn learn(&self, train: &[Vec<(Shown, f64)>], rng: &mut impl Rng) -> Learnt {
        let e = self.embedding;
        let all: Vec<&(Shown, f64)> = train.iter().flatten().collect();
        let x = DMatrix::from_fn(all.len(), e, |n, j| all[n].0.z[j]);
        let outcomes: Vec<f64> = all.iter().map(|v| v.1).collect();
        let plain = logistic(&x, &outcomes, &vec![1.0; all.len()], &Prior::ridge(RIDGE, DVector::zeros(e))).mode;
        let judged = |own: &Vec<(Shown, f64)>, features: &dyn Fn(&Shown) -> Vec<f64>, d: usize| {
            let mut votes = Judgements::new(d);
            own.iter().for_each(|(s, y)| votes.push(&features(s), *y, 1.0));
            votes
        };
        let contexts = vec![vec![1.0]; train.len()];
        let how = TastesFit::default();
        let embedded: Vec<EmbeddedVotes> =
            train.iter().map(|own| own.iter().map(|(s, y)| (s.z.clone(), *y)).collect()).collect();
        let features = FeaturesFit { features: vec![self.features], ridge: self.ridge, tastes: how };
        let features = RewardFeatures::fit(&embedded, &contexts, &plain, &features);
        let in_scale: Vec<Judgements> = train.iter().map(|own| judged(own, &|s| vec![dot(&plain, &s.z)], 1)).collect();
        let simple: Vec<Vec<(Vec<f64>, f64, f64)>> =
            train.iter().map(|own| own.iter().map(|(s, y)| (s.z.clone(), s.squares, *y)).collect()).collect();
        Learnt {
            scale: Tastes::fit(&in_scale, &contexts, &how),
            linear: Prior::ridge(4.0, plain.clone()),
            rewards: Simplex::fit(Mixture::Rewards, BASIS, &simple, 1e-4, rng),
            points: Simplex::fit(Mixture::IdealPoints, BASIS, &simple, 1e-4, rng),
            features,
            everybody: plain,
        }
    }

    /// One world's rows but for its place in the plan: (shots, method, figures).
    fn world(
        &self,
        raters: usize,
        votes: usize,
        alike: f64,
        shots: &[usize],
        rng: &mut impl Rng,
    ) -> Vec<(usize, String, Served)> {
        let world = World::new(self, rng);
        let learnt = self.learn(&world.raters(raters, votes, alike, rng), rng);
        let mut sums = Vec::new();
        for _ in 0..self.test_raters {
            let taste = world.rater(alike, rng);
            self.serve(&world, &learnt, &taste, shots, rng, &mut sums);
        }
        means(sums, self.test_raters)
    }

    /// Few raters of unlike tastes, as reward models are: each is new once to what the others taught.
    fn leave_one_out(
        &self,
        raters: usize,
        votes: usize,
        shots: &[usize],
        rng: &mut impl Rng,
    ) -> Vec<(usize, String, Served)> {
        let world = World::new(self, rng);
        let scale = self.sureness / (2.0 * self.hidden as f64).sqrt();
        let tastes: Vec<DVector<f64>> = (0..raters)
            .map(|_| DVector::from_fn(self.hidden, |_, _| scale * rng.sample::<f64, _>(StandardNormal)))
            .collect();
        let mut sums = Vec::new();
        for (out, taste) in tastes.iter().enumerate() {
            let others = tastes.iter().enumerate().filter(|(h, _)| *h != out);
            let train: Vec<Vec<(Shown, f64)>> = others.map(|(_, taste)| world.votes(taste, votes, rng)).collect();
            let learnt = self.learn(&train, rng);
            self.serve(&world, &learnt, taste, shots, rng, &mut sums);
        }
        means(sums, raters)
    }

    /// New raters asked at random, and by two criteria; the same rater answers a pair in the same way whoever asks.
    fn questions(
        &self,
        raters: usize,
        votes: usize,
        alike: f64,
        shots: &[usize],
        rng: &mut impl Rng,
    ) -> Vec<(usize, String, Served)> {
        let world = World::new(self, rng);
        let features = self.learn(&world.raters(raters, votes, alike, rng), rng).features;
        let most = shots.iter().max().copied().unwrap_or(0);
        let mut all = Vec::new();
        for _ in 0..self.test_raters {
            let taste = world.rater(alike, rng);
            let pool = world.votes(&taste, CANDIDATES, rng);
            let held: Vec<Shown> = (0..self.test_pairs).map(|_| world.pair(&taste, rng)).collect();
            for (method, criterion) in [
                ("random", None),
                ("information", Some(Criterion::Information)),
                ("determinant", Some(Criterion::Determinant)),
            ] {
                let mut left: Vec<usize> = (0..pool.len()).collect(); // drawn in no order
                let mut own = EmbeddedVotes::new();
                for count in 1..=most {
                    let place = criterion.map_or(0, |criterion| {
                        let candidates: Vec<Vec<f64>> = left.iter().map(|i| pool[*i].0.z.clone()).collect();
                        ask(&features.adapt(&[1.0], &own), &candidates, 1, criterion, 0.0)[0].pair
                    });
                    let (pair, outcome) = &pool[left.swap_remove(place)];
                    own.push((pair.z.clone(), *outcome));
                    if shots.contains(&count) {
                        let found = features.adapt(&[1.0], &own);
                        let right = |s: &&Shown| (dot(&found.mean, &s.z) > 0.0) == (s.margin > 0.0);
                        let accuracy = held.iter().filter(right).count() as f64 / held.len() as f64;
                        // Nobody picks among answers here.
                        all.push((count, method.to_owned(), Served { accuracy, gained: f64::NAN, beats: f64::NAN }));
                    }
                }
            }
        }
        means(all, self.test_raters)
    }

    /// Adds what every method makes of one new rater.
    fn serve(
        &self,
        world: &World,
        learnt: &Learnt,
        taste: &DVector<f64>,
        shots: &[usize],
        rng: &mut impl Rng,
        sums: &mut Vec<(usize, String, Served)>,
    ) {
        let adapt = world.votes(taste, shots.iter().max().copied().unwrap_or(0), rng);
        let held: Vec<Shown> = (0..self.test_pairs).map(|_| world.pair(taste, rng)).collect();
        // Prompts with answers to choose from.
        let prompts: Vec<Vec<(Vec<f64>, f64)>> =
            (0..PROMPTS).map(|_| (0..self.answers).map(|_| world.answer(taste, rng)).collect()).collect();
        for shots in shots {
            let methods = learnt.methods(&adapt[..*shots], rng);
            let pick = |score: &Score, answers: &[(Vec<f64>, f64)]| {
                let values: Vec<f64> = answers.iter().map(|(e, _)| score(e)).collect();
                (0..answers.len()).max_by(|a, b| values[*a].total_cmp(&values[*b])).expect("some answers")
            };
            let plain: Vec<usize> = prompts.iter().map(|answers| pick(&methods[0].1, answers)).collect();
            for (name, score) in &methods {
                let right = held.iter().filter(|s| (score(&s.first) > score(&s.second)) == (s.margin > 0.0)).count();
                let (mut gained, mut beats) = (0.0, 0.0);
                for (answers, plain) in prompts.iter().zip(&plain) {
                    let own = pick(score, answers);
                    let mean = answers.iter().map(|(_, r)| r).sum::<f64>() / answers.len() as f64;
                    let deviation = taste.norm(); // of the true reward over answers
                    gained += (answers[own].1 - mean) / deviation / prompts.len() as f64;
                    beats += match answers[own].1.total_cmp(&answers[*plain].1) {
                        std::cmp::Ordering::Greater => 1.0,
                        std::cmp::Ordering::Equal => 0.5,
                        std::cmp::Ordering::Less => 0.0,
                    } / prompts.len() as f64;
                }
                let accuracy = right as f64 / held.len() as f64;
                sums.push((*shots, (*name).to_owned(), Served { accuracy, gained, beats }));
            }
        }
    }
}

/// Prompts on which answers are chosen.
const PROMPTS: usize = 50;

type Score<'a> = Box<dyn Fn(&[f64]) -> f64 + 'a>;

impl Learnt {
    /// Every method's reward of an embedding after these votes; the first is one reward for all.
    fn methods<'a>(&'a self, own: &[(Shown, f64)], rng: &mut impl Rng) -> Vec<(&'static str, Score<'a>)> {
        let embedded: EmbeddedVotes = own.iter().map(|(s, y)| (s.z.clone(), *y)).collect();
        let judged = |features: &dyn Fn(&[f64]) -> Vec<f64>, d: usize| {
            let mut votes = Judgements::new(d);
            embedded.iter().for_each(|(z, y)| votes.push(&features(z), *y, 1.0));
            votes
        };
        let taste = self.features.adapt(&[1.0], &embedded);
        let linear = Taste::of(&self.linear, &judged(&<[f64]>::to_vec, self.everybody.len()));
        let scale = calibrated(&self.scale, &judged(&|z| vec![dot(&self.everybody, z)], 1));
        let simple: Vec<(Vec<f64>, f64, f64)> = own.iter().map(|(s, y)| (s.z.clone(), s.squares, *y)).collect();
        let mut out: Vec<(&'static str, Score<'a>)> = vec![
            ("one reward for all", Box::new(|e: &[f64]| dot(&self.everybody, e))),
            ("RFM", Box::new(move |e: &[f64]| dot(&taste.mean, e))),
            ("linear on embeddings", Box::new(move |e: &[f64]| dot(&linear.mean, e))),
            ("own scale", Box::new(move |e: &[f64]| scale * dot(&self.everybody, e))),
        ];
        for (name, mixture) in [("LoRe", &self.rewards), ("ideal points", &self.points)] {
            let weights = mixture.adapt(&simple, 0.05);
            let squares = |e: &[f64]| e.iter().map(|x| x * x).sum::<f64>();
            out.push((name, Box::new(move |e: &[f64]| mixture.margin(&weights, (e, squares(e))))));
        }
        if !own.is_empty() {
            let of = |e: &[f64]| self.features.of(e);
            let pairs: Vec<(Vec<f64>, Vec<f64>, f64)> =
                own.iter().map(|(s, y)| (of(&s.first), of(&s.second), *y)).collect();
            let network = Network::fit(16, &pairs, 0.01, rng);
            out.push(("network", Box::new(move |e: &[f64]| network.score(&self.features.of(e)))));
        }
        out
    }
}

/// Means over raters, by shots and method, in the order in which they came.
fn means(all: Vec<(usize, String, Served)>, raters: usize) -> Vec<(usize, String, Served)> {
    let mut out: Vec<(usize, String, Served)> = Vec::new();
    let share = |value: f64| value / raters as f64;
    for (shots, method, Served { accuracy, gained, beats }) in all {
        let own = Served { accuracy: share(accuracy), gained: share(gained), beats: share(beats) };
        match out.iter_mut().find(|(s, m, _)| *s == shots && *m == method) {
            Some((_, _, sum)) => {
                *sum = Served {
                    accuracy: sum.accuracy + own.accuracy,
                    gained: sum.gained + own.gained,
                    beats: sum.beats + own.beats,
                };
            }
            None => out.push((shots, method, own)),
        }
    }
    out
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
            move |shots: usize, method: &str| {
                got.iter().find(|(s, m, _)| *s == shots && m == method).unwrap().2.accuracy
            }
        };
        let apart = of(0.5);
        assert!(apart(30, "RFM") > apart(30, "one reward for all") + 0.15);
        assert!(apart(30, "RFM") > apart(10, "RFM") && apart(10, "RFM") > apart(0, "RFM"));
        assert!(
            apart(30, "RFM") > apart(30, "linear on embeddings") + 0.03
                && apart(30, "RFM") > apart(30, "own scale") + 0.1
        );
        // The best of sixteen answers is better, and better than what one reward for all picks.
        let mut rng = rand::rngs::StdRng::seed_from_u64(2);
        let got = lab.leave_one_out(8, 100, &[30], &mut rng);
        let of_rfm = got.iter().find(|(_, m, _)| m == "RFM").unwrap().2;
        let plain = got.iter().find(|(_, m, _)| m == "one reward for all").unwrap().2;
        assert!(of_rfm.gained > plain.gained + 0.2 && of_rfm.beats > 0.55 && of_rfm.accuracy > plain.accuracy);
        assert!((plain.beats - 0.5).abs() < 1e-12);
        // Questions that were chosen tell more than as many random ones.
        let of_questions = RfmLab { test_raters: 30, ..lab.clone() }.questions(60, 30, 0.5, &[10], &mut rng);
        let asked = |method: &str| of_questions.iter().find(|(_, m, _)| m == method).unwrap().2.accuracy;
        assert!(asked("information") > asked("random") && asked("determinant") > asked("random"), "{of_questions:?}");
        let alike = of(0.95);
        assert!(alike(30, "RFM") - alike(30, "one reward for all") < 0.05);
        assert!(
            (alike(0, "RFM") - alike(0, "one reward for all")).abs() < 0.05,
            "without votes it is the population's mean"
        );
    }
}
