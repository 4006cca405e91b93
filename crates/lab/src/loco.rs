//! LoCo-RLHF on synthetic people whose truth is known: how far the policies of its estimates are from the best one, as votes become more,
//! dimensions grow, and deployment differs from the data.

use std::sync::Mutex;

use estimate::{Comparisons, Contexts, ContextualFit, Ellipsoid, Radius, Rotation};
use nalgebra::{DMatrix, DVector};
use rand::Rng;
use rand_distr::StandardNormal;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use stats::{Prior, logistic};

/// Sizes of the experiments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocoLab {
    /// Repetitions, each with a truth of its own.
    pub seeds: usize,
    /// Situations of a deployment: a person's context and the answers to choose from.
    pub situations: usize,
    /// Answers of a situation.
    pub answers: usize,
    /// Frobenius norm of Theta.
    pub norm: f64,
    /// The ellipsoids' size.
    pub radius: Radius,
    /// The fits.
    pub fit: ContextualFit,
}

impl Default for LocoLab {
    fn default() -> Self {
        Self {
            seeds: 20,
            situations: 200,
            answers: 10,
            norm: 1.0,
            radius: Radius { constant: 0.5, delta: 0.1, ridge: 1e-3, norm: 1.0 },
            fit: ContextualFit { ridge: 1e-4, gradient: 1e-5, passes: 300 },
        }
    }
}

/// How a deployment differs from the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deployment {
    /// Not at all.
    Same,
    /// Of four groups of people the one that gave 85% of the votes is 5% there, and one that gave 5% is 85%.
    OtherPeople,
    /// The data's answers vary little along half of the features' directions; answers to choose from vary along all.
    UncoveredAnswers,
}

/// One policy in one world.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LocoRow {
    /// `votes`, `rank`, `dimensions`
    pub experiment: String,
    /// The shift.
    pub deployment: Deployment,
    /// The policy.
    pub method: String,
    /// The repetition.
    pub seed: usize,
    /// dx
    pub dx: usize,
    /// dphi
    pub dphi: usize,
    /// r of the truth and of the estimates
    pub rank: usize,
    /// N
    pub votes: usize,
    /// J(best policy) - J(this one), mean true reward over the deployment's situations.
    pub suboptimality: f64,
    /// C*: the width of the best policy's mean features, for methods with an ellipsoid; NaN for others.
    pub coverage: f64,
}

/// Groups of people.
const GROUPS: usize = 4;
/// How far their means are from 0, of the contexts' deviation.
const APART: f64 = 1.0;
/// What is left of the features that the data do not cover.
const UNCOVERED: f64 = 0.05;
const ROUNDS: usize = 60;

/// Features of a context and an answer.
type Features<'a> = dyn Fn(&DVector<f64>, &DVector<f64>) -> DVector<f64> + 'a;

struct World {
    theta: DMatrix<f64>,
    groups: Vec<DVector<f64>>,
    /// Directions that data may cover, `[dphi, dphi]`, orthogonal.
    directions: DMatrix<f64>,
}

fn normal(rows: usize, columns: usize, rng: &mut impl Rng) -> DMatrix<f64> {
    DMatrix::from_fn(rows, columns, |_, _| rng.sample(StandardNormal))
}

impl World {
    fn new(dx: usize, dphi: usize, rank: usize, norm: f64, rng: &mut impl Rng) -> Self {
        // Random orthonormal factors, equal singular values.
        let (left, right) = (normal(dx, rank, rng).qr().q(), normal(dphi, rank, rng).qr().q());
        let groups = (0..GROUPS).map(|_| normal(dx, 1, rng).column(0) * APART).collect();
        Self {
            theta: left * right.transpose() * (norm / (rank as f64).sqrt()),
            groups,
            directions: normal(dphi, dphi, rng).qr().q(),
        }
    }

    /// A person: group and context.
    fn person(&self, shares: [f64; GROUPS], rng: &mut impl Rng) -> (usize, DVector<f64>) {
        let mut u: f64 = rng.random();
        let group = shares.iter().position(|s| {
            u -= s;
            u < 0.0
        });
        let group = group.unwrap_or(GROUPS - 1);
        (group, &self.groups[group] + normal(self.theta.nrows(), 1, rng).column(0))
    }

    /// An answer's features.
    fn answer(&self, covered: bool, rng: &mut impl Rng) -> DVector<f64> {
        let d = self.theta.ncols();
        let mut own = normal(d, 1, rng).column(0).into_owned();
        if covered {
            own.rows_mut(d / 2, d - d / 2).scale_mut(UNCOVERED);
        }
        &self.directions * own
    }

    fn reward(&self, x: &DVector<f64>, phi: &DVector<f64>) -> f64 {
        x.dot(&(&self.theta * phi))
    }

    /// Votes, and each one's group.
    fn votes(
        &self,
        shares: [f64; GROUPS],
        covered: bool,
        count: usize,
        rng: &mut impl Rng,
    ) -> (Comparisons, Vec<usize>) {
        let (dx, dphi) = self.theta.shape();
        let (mut values, mut groups, mut differences, mut outcomes) = (vec![], vec![], vec![], vec![]);
        for _ in 0..count {
            let (group, x) = self.person(shares, rng);
            let z = self.answer(covered, rng) - self.answer(covered, rng);
            let p = 1.0 / (1.0 + (-self.reward(&x, &z)).exp());
            outcomes.push(f64::from(u8::from(rng.random::<f64>() < p)));
            values.extend(x.iter());
            differences.extend(z.iter());
            groups.push(group);
        }
        (Comparisons { contexts: Contexts::Vectors { d: dx, values }, d: dphi, differences, outcomes }, groups)
    }
}

/// A deployment's situations.
struct Situation {
    group: usize,
    x: DVector<f64>,
    answers: Vec<DVector<f64>>,
    truth: Vec<f64>,
}

impl LocoLab {
    /// Every experiment, worlds side by side. `rng(name)` is the stream of one world; `progress(done, all)`.
    pub fn run<R: Rng>(
        &self,
        rng: impl Fn(&str) -> R + Sync,
        progress: impl FnMut(usize, usize) + Send,
    ) -> Vec<LocoRow> {
        use Deployment::{OtherPeople, Same, UncoveredAnswers};
        let mut plan = Vec::new();
        for votes in [500, 1000, 2000, 5000, 10_000, 20_000] {
            for deployment in [Same, OtherPeople, UncoveredAnswers] {
                plan.push(("votes", deployment, 20, 20, 2, votes));
            }
        }
        for rank in [1, 2, 5, 20] {
            plan.push(("rank", Same, 20, 20, rank, 5000));
        }
        // dx + dphi and the rank are the same, their product is not.
        for (dx, dphi) in [(10, 50), (20, 40), (30, 30)] {
            plan.push(("dimensions", Same, dx, dphi, 2, 5000));
        }
        let jobs: Vec<_> = (0..self.seeds).flat_map(|seed| plan.iter().map(move |p| (seed, p))).collect();
        let told = Mutex::new((0, progress));
        jobs.par_iter()
            .flat_map_iter(|(seed, (experiment, deployment, dx, dphi, rank, votes))| {
                // One truth a seed and shape, whatever the votes and the deployment.
                let mut truth = rng(&format!("truth {dx} {dphi} {rank} {seed}"));
                let world = World::new(*dx, *dphi, *rank, self.norm, &mut truth);
                let mut rng = rng(&format!("votes {deployment:?} {votes} {dx} {dphi} {rank} {seed}"));
                let policies = self.world(&world, *deployment, *rank, *votes, &mut rng);
                let (done, tell) = &mut *told.lock().expect("nobody panics while telling");
                *done += 1;
                tell(*done, jobs.len());
                policies.into_iter().map(move |(method, suboptimality, coverage)| LocoRow {
                    experiment: (*experiment).to_owned(),
                    deployment: *deployment,
                    method,
                    seed: *seed,
                    dx: *dx,
                    dphi: *dphi,
                    rank: *rank,
                    votes: *votes,
                    suboptimality,
                    coverage,
                })
            })
            .collect()
    }

    /// Policies of one world: name, sub-optimality, coverage.
    fn world(
        &self,
        world: &World,
        deployment: Deployment,
        rank: usize,
        votes: usize,
        rng: &mut impl Rng,
    ) -> Vec<(String, f64, f64)> {
        let (data_shares, shares) = match deployment {
            Deployment::OtherPeople => ([0.85, 0.05, 0.05, 0.05], [0.05, 0.05, 0.05, 0.85]),
            _ => ([0.25; GROUPS], [0.25; GROUPS]),
        };
        let covered = deployment == Deployment::UncoveredAnswers;
        let (data, groups) = world.votes(data_shares, covered, votes, rng);
        let situations = self.situations(world, shares, rng);

        let low = data.fit(rank, &self.fit).0.theta();
        let full = data.fit_full(&self.fit).0;
        let greedy = |theta: &DMatrix<f64>| lost(&situations, &|s, a| s.x.dot(&(theta * a)));
        let mut out = vec![
            ("greedy low-rank".to_owned(), greedy(&low), f64::NAN),
            ("greedy full-rank".into(), greedy(&full), f64::NAN),
        ];
        let careful = |coefficients: DVector<f64>, features: &Features<'_>| {
            self.careful(&data, &situations, coefficients, features)
        };
        let mut push = |name: &str, (searched, pointwise, coverage): (f64, f64, f64)| {
            out.push((name.into(), searched, coverage));
            out.push((format!("{name}, pointwise"), pointwise, coverage));
        };
        let rotation = Rotation::of(&low, rank);
        push("PRS", careful(rotation.coefficients(&low), &|x, phi| rotation.features(x, phi)));
        let oracle = Rotation::of(&world.theta, rank);
        push("PRS, true subspaces", careful(oracle.coefficients(&low), &|x, phi| oracle.features(x, phi)));
        let all = DVector::from_column_slice(full.as_slice());
        push(
            "pessimistic full-rank",
            careful(all, &|x, phi| DVector::from_column_slice((x * phi.transpose()).as_slice())),
        );

        // One reward for everybody, and one for each group.
        let plain = |some: &[usize]| {
            let own = data.some(some);
            let z = DMatrix::from_row_slice(own.len(), own.d, &own.differences);
            let prior = Prior::ridge(self.fit.ridge * votes as f64, DVector::zeros(own.d));
            logistic(&z, &own.outcomes, &vec![1.0; own.len()], &prior).mode
        };
        let everybody = plain(&(0..votes).collect::<Vec<_>>());
        push("pessimistic, no context", careful(everybody.clone(), &|_, phi| phi.clone()));
        out.push(("greedy, no context".into(), lost(&situations, &|_, a| everybody.dot(a)), f64::NAN));
        let by_group: Vec<DVector<f64>> =
            (0..GROUPS).map(|g| plain(&(0..votes).filter(|n| groups[*n] == g).collect::<Vec<_>>())).collect();
        out.push(("greedy, a model a group".into(), lost(&situations, &|s, a| by_group[s.group].dot(a)), f64::NAN));
        out
    }

    /// A deployment's situations.
    fn situations(&self, world: &World, shares: [f64; GROUPS], rng: &mut impl Rng) -> Vec<Situation> {
        let mut one = || {
            let (group, x) = world.person(shares, rng);
            let answers: Vec<DVector<f64>> = (0..self.answers).map(|_| world.answer(false, rng)).collect();
            let truth = answers.iter().map(|a| world.reward(&x, a)).collect();
            Situation { group, x, answers, truth }
        };
        (0..self.situations).map(|_| one()).collect()
    }

    /// Pessimism in some feature space: what is lost by policy search and answer by answer, and the coverage.
    fn careful(
        &self,
        data: &Comparisons,
        situations: &[Situation],
        coefficients: DVector<f64>,
        features: &Features<'_>,
    ) -> (f64, f64, f64) {
        let votes = data.len();
        let rows: Vec<DVector<f64>> = (0..votes)
            .map(|n| {
                let Contexts::Vectors { d, values } = &data.contexts else { unreachable!("made by World::votes") };
                let x = DVector::from_column_slice(&values[n * d..(n + 1) * d]);
                features(&x, &DVector::from_column_slice(&data.differences[n * data.d..(n + 1) * data.d]))
            })
            .collect();
        let k = coefficients.len();
        let rows = DMatrix::from_fn(votes, k, |i, j| rows[i][j]);
        let ellipsoid = Ellipsoid::new(coefficients, &rows, &self.radius);
        let of: Vec<Vec<DVector<f64>>> =
            situations.iter().map(|s| s.answers.iter().map(|a| features(&s.x, a)).collect()).collect();
        let matrices: Vec<DMatrix<f64>> = of.iter().map(|f| DMatrix::from_fn(f.len(), k, |i, j| f[i][j])).collect();
        let none = DVector::zeros(k);
        let weights = ellipsoid.search(&matrices, &none, ROUNDS);
        let n = situations.len() as f64;
        let by_search =
            |(s, w): (&Situation, &Vec<f64>)| s.best() - s.truth.iter().zip(w).map(|(t, w)| t * w).sum::<f64>();
        let searched = situations.iter().zip(&weights).map(by_search).sum::<f64>() / n;
        let by_answer = |(s, f): (&Situation, &Vec<DVector<f64>>)| s.best() - s.truth[ellipsoid.choose(f, &none)];
        let pointwise = situations.iter().zip(&of).map(by_answer).sum::<f64>() / n;
        let mut mean = DVector::zeros(k);
        for (s, f) in situations.iter().zip(&of) {
            let best = (0..s.truth.len()).max_by(|a, b| s.truth[*a].total_cmp(&s.truth[*b])).expect("an answer");
            mean += &f[best] / n;
        }
        (searched, pointwise, ellipsoid.width(&mean))
    }
}

impl Situation {
    /// The best answer's true reward.
    fn best(&self) -> f64 {
        self.truth.iter().fold(f64::NEG_INFINITY, |a, t| a.max(*t))
    }
}

/// What is lost, on average, where the answer of the largest score is taken.
fn lost(situations: &[Situation], score: &dyn Fn(&Situation, &DVector<f64>) -> f64) -> f64 {
    let loss = |s: &Situation| {
        let scores: Vec<f64> = s.answers.iter().map(|a| score(s, a)).collect();
        let chosen = (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b])).expect("an answer");
        s.best() - s.truth[chosen]
    };
    situations.iter().map(loss).sum::<f64>() / situations.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn mean_of(lab: &LocoLab, deployment: Deployment, votes: usize, method: &str) -> f64 {
        let mut sum = 0.0;
        for seed in 0..4 {
            let mut rng = StdRng::seed_from_u64(seed);
            let world = World::new(8, 8, 1, lab.norm, &mut rng);
            let rows = lab.world(&world, deployment, 1, votes, &mut rng);
            sum += rows.iter().find(|(name, ..)| name == method).unwrap().1 / 4.0;
        }
        sum
    }

    #[test]
    fn votes_help_context_helps_and_low_rank_helps() {
        let lab = LocoLab { situations: 60, ..LocoLab::default() };
        let of = |votes, method| mean_of(&lab, Deployment::Same, votes, method);
        assert!(of(4000, "greedy low-rank") < 0.4 * of(400, "greedy low-rank"));
        assert!(of(1000, "greedy low-rank") < 0.8 * of(1000, "greedy full-rank"));
        assert!(of(4000, "greedy low-rank") < 0.3 * of(4000, "greedy, no context"));
        assert!(of(4000, "greedy, a model a group") < of(4000, "greedy, no context"));
    }

    #[test]
    fn where_the_data_do_not_reach_it_pays_to_be_careful() {
        let lab = LocoLab { situations: 60, ..LocoLab::default() };
        let of = |method| mean_of(&lab, Deployment::UncoveredAnswers, 500, method);
        assert!(of("PRS") < of("greedy low-rank"), "{} {}", of("PRS"), of("greedy low-rank"));
    }
}
