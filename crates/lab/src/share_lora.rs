//! P-ShareLoRA's theory on synthetic users whose truth is known (its section 4): how fast the shared subspace and the users'
//! rewards are found, and what a truth that is not quite low-rank costs.
//!
//! User `i` has `Theta_i = B W_i + T_i` with one `B [d1, k]`, a `W_i [k, d2]` and a tail `T_i` of higher rank. A vote compares two answers
//! whose features differ by `X [d1, d2]`, standard normal: `P(first) = sigmoid(<Theta_i, X>)`. Fits maximise the likelihood, by turns
//! convex in `B` and in the `W_i`, from a spectral start.

use std::sync::Mutex;

use nalgebra::{DMatrix, DVector};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use stats::{Prior, Slope, logistic};

/// Sizes of the experiments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareLoraLab {
    /// Rows of Theta.
    pub d1: usize,
    /// Columns of Theta.
    pub d2: usize,
    /// Rank of the stack of all users' Theta.
    pub rank: usize,
    /// Frobenius norm of every `B W_i`.
    pub norm: f64,
    /// Repetitions, at least 10.
    pub seeds: usize,
}

impl Default for ShareLoraLab {
    fn default() -> Self {
        Self { d1: 16, d2: 6, rank: 2, norm: 2.0, seeds: 12 }
    }
}

/// One fit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LabRow {
    /// `samples`, `votes`, `tail`
    pub experiment: String,
    /// `shared`, `separate`, `full`
    pub method: String,
    /// The repetition.
    pub seed: usize,
    /// N
    pub users: usize,
    /// N_p
    pub votes: usize,
    /// `Sigma_tail` of the true stack: the sum of its squared singular values behind the k-th.
    pub tail: f64,
    /// What a plot has on its x axis.
    pub x: f64,
    /// Sine of the largest angle between the spans of the estimated and the true `B`; NaN for methods without a shared `B`.
    pub distance: f64,
    /// Mean over users of `max <Theta, f> - <Theta, f^>` over the unit ball of features, `f^` best by the estimate.
    pub gap: f64,
}

struct Votes {
    /// Each vote's X, row by row: `[n, d1 * d2]`, entry (a, b) at `a * d2 + b`.
    x: DMatrix<f64>,
    y: Vec<f64>,
}

struct World {
    truth: Vec<DMatrix<f64>>,
    /// The best shared subspace, `[d1, k]`: the stack's leading left singular vectors.
    basis: DMatrix<f64>,
    tail: f64,
    users: Vec<Votes>,
}

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    // Box and Muller.
    let (u, v): (f64, f64) = (rng.random::<f64>().max(f64::MIN_POSITIVE), rng.random());
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

fn stack(parts: &[DMatrix<f64>]) -> DMatrix<f64> {
    let (rows, columns) = parts[0].shape();
    DMatrix::from_fn(rows, columns * parts.len(), |a, b| parts[b / columns][(a, b % columns)])
}

/// The leading left singular vectors `[rows, k]`, and all singular values in falling order.
fn leading(matrix: &DMatrix<f64>, k: usize) -> (DMatrix<f64>, Vec<f64>) {
    // Of M M^T: the stack is wide.
    let eigen = (matrix * matrix.transpose()).symmetric_eigen();
    let mut order: Vec<usize> = (0..eigen.eigenvalues.len()).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    let vectors = DMatrix::from_fn(matrix.nrows(), k, |a, b| eigen.eigenvectors[(a, order[b])]);
    (vectors, order.iter().map(|i| eigen.eigenvalues[*i].max(0.0).sqrt()).collect())
}

impl World {
    fn new(lab: &ShareLoraLab, users: usize, votes: usize, tail: f64, rng: &mut ChaCha8Rng) -> Self {
        let ShareLoraLab { d1, d2, rank, norm, .. } = *lab;
        let random = |a: usize, b: usize, rng: &mut ChaCha8Rng| DMatrix::from_fn(a, b, |_, _| normal(rng));
        let basis = random(d1, rank, rng).qr().q();
        let truth: Vec<DMatrix<f64>> = (0..users)
            .map(|_| {
                let own = &basis * random(rank, d2, rng);
                let rest = random(d1, d2, rng);
                own.normalize() * norm + rest.normalize() * tail
            })
            .collect();
        let (basis, singular) = leading(&stack(&truth), rank);
        let tail = singular[rank..].iter().map(|s| s * s).sum();
        let users = truth
            .iter()
            .map(|theta| {
                let x = random(votes, d1 * d2, rng);
                let y = (0..votes)
                    .map(|n| {
                        let margin: f64 = (0..d1 * d2).map(|c| x[(n, c)] * theta[(c / d2, c % d2)]).sum();
                        f64::from(u8::from(rng.random::<f64>() < 1.0 / (1.0 + (-margin).exp())))
                    })
                    .collect();
                Votes { x, y }
            })
            .collect();
        Self { truth, basis, tail, users }
    }
}

/// A weak prior, so that separable votes have an optimum.
const RIDGE: f64 = 0.05;
const TURNS: usize = 25;

/// `(1/N_p) sum (y - 1/2) X`, which is in proportion to Theta where margins are small.
fn moment(votes: &Votes, d1: usize, d2: usize) -> DMatrix<f64> {
    let n = votes.y.len() as f64;
    DMatrix::from_fn(d1, d2, |a, b| {
        votes.y.iter().enumerate().map(|(i, y)| (y - 0.5) * votes.x[(i, a * d2 + b)]).sum::<f64>() / n
    })
}

/// Every user's `W [k, d2]` given `B`: logistic regression on the features `B^T X`.
fn given(basis: &DMatrix<f64>, users: &[Votes], d2: usize) -> Vec<DMatrix<f64>> {
    let (d1, k) = basis.shape();
    let fit = |u: &Votes| {
        let z = DMatrix::from_fn(u.y.len(), k * d2, |n, c| {
            (0..d1).map(|a| basis[(a, c / d2)] * u.x[(n, a * d2 + c % d2)]).sum()
        });
        let fit = logistic(&z, &u.y, &vec![1.0; u.y.len()], &Prior::ridge(RIDGE, DVector::zeros(k * d2)));
        DMatrix::from_fn(k, d2, |r, c| fit.mode[r * d2 + c])
    };
    users.iter().map(fit).collect()
}

/// `B [d1, k]` given all `W`, its columns made orthonormal: logistic regression on the features `X W^T`, pooled over users.
fn pooled(basis: &DMatrix<f64>, own: &[DMatrix<f64>], users: &[Votes], d2: usize) -> DMatrix<f64> {
    let (d1, k) = basis.shape();
    let y: Vec<f64> = users.iter().flat_map(|u| u.y.iter().copied()).collect();
    let mut z = DMatrix::zeros(y.len(), d1 * k);
    let votes = users.iter().zip(own).flat_map(|(u, w)| (0..u.y.len()).map(move |n| (u, w, n)));
    for (row, (u, w, n)) in votes.enumerate() {
        for a in 0..d1 {
            for r in 0..k {
                z[(row, a * k + r)] = (0..d2).map(|c| u.x[(n, a * d2 + c)] * w[(r, c)]).sum();
            }
        }
    }
    let start = DVector::from_fn(d1 * k, |i, _| basis[(i / k, i % k)]);
    let fit = logistic(&z, &y, &vec![1.0; y.len()], &Prior::ridge(RIDGE, start));
    DMatrix::from_fn(d1, k, |a, r| fit.mode[a * k + r]).qr().q()
}

/// The maximum-likelihood `B [d1, k]`, its columns orthonormal, and every user's `W [k, d2]`.
fn shared(users: &[Votes], d1: usize, d2: usize, k: usize) -> (DMatrix<f64>, Vec<DMatrix<f64>>) {
    let moments: Vec<DMatrix<f64>> = users.iter().map(|u| moment(u, d1, d2)).collect();
    let (mut basis, _) = leading(&stack(&moments), k);
    for _ in 0..TURNS {
        let next = pooled(&basis, &given(&basis, users, d2), users, d2);
        let moved = distance(&next, &basis);
        basis = next;
        if moved < 1e-5 {
            break;
        }
    }
    let own = given(&basis, users, d2);
    (basis, own)
}

/// Sine of the largest principal angle between the spans of two matrices with orthonormal columns.
fn distance(a: &DMatrix<f64>, b: &DMatrix<f64>) -> f64 {
    let cosines = (a.transpose() * b).singular_values();
    (1.0 - cosines.min().min(1.0).powi(2)).max(0.0).sqrt()
}

/// `max_f <Theta, f> - <Theta, f^>` over the unit ball: `|Theta| - <Theta, Theta^> / |Theta^|`.
fn gap(truth: &DMatrix<f64>, estimate: &DMatrix<f64>) -> f64 {
    truth.norm() - truth.dot(estimate) / estimate.norm().max(f64::MIN_POSITIVE)
}

impl ShareLoraLab {
    /// Runs the three experiments. `progress(done, all)` is told of every world.
    pub fn run(&self, seed: u64, progress: impl FnMut(usize, usize) + Send) -> Vec<LabRow> {
        let mut plan: Vec<(&str, usize, usize, f64)> = Vec::new();
        // Subspace against N * N_p: more users, and more votes of each.
        plan.extend([10, 20, 40, 80].map(|n| ("samples", n, 60, 0.0)));
        plan.extend([120, 240, 480].map(|p| ("samples", 20, p, 0.0)));
        // Value gap against N_p.
        plan.extend([25, 50, 100, 200, 400].map(|p| ("votes", 40, p, 0.0)));
        // Bias against the tail, where votes are plenty.
        plan.extend([0.0, 0.25, 0.5, 1.0, 2.0].map(|t| ("tail", 20, 600, t)));
        let jobs: Vec<_> = (0..self.seeds).flat_map(|seed| plan.iter().map(move |p| (seed, p))).collect();
        let told = Mutex::new((0, progress));
        jobs.par_iter()
            .flat_map_iter(|(repetition, (experiment, users, votes, tail))| {
                let name = format!("{experiment} {users} {votes} {tail}");
                let mut rng = run::rng(seed, &["lab", "share-lora", &name, &repetition.to_string()]);
                let rows = self.world(experiment, *users, *votes, *tail, *repetition, &mut rng);
                let (done, tell) = &mut *told.lock().expect("nobody panics while telling");
                *done += 1;
                tell(*done, jobs.len());
                rows
            })
            .collect()
    }

    fn world(
        &self,
        experiment: &str,
        users: usize,
        votes: usize,
        tail: f64,
        seed: usize,
        rng: &mut ChaCha8Rng,
    ) -> Vec<LabRow> {
        let Self { d1, d2, rank, .. } = *self;
        let world = World::new(self, users, votes, tail, rng);
        let mean_gap = |estimates: &[DMatrix<f64>]| {
            world.truth.iter().zip(estimates).map(|(t, e)| gap(t, e)).sum::<f64>() / users as f64
        };
        let row = |method: &str, distance: f64, gap: f64| LabRow {
            experiment: experiment.into(),
            method: method.into(),
            seed,
            users,
            votes,
            tail: world.tail,
            x: match experiment {
                "samples" => (users * votes) as f64,
                "votes" => votes as f64,
                _ => world.tail,
            },
            distance,
            gap,
        };
        let (basis, own) = shared(&world.users, d1, d2, rank);
        let estimates: Vec<DMatrix<f64>> = own.iter().map(|w| &basis * w).collect();
        let mut rows = vec![row("shared", distance(&basis, &world.basis), mean_gap(&estimates))];
        if experiment == "votes" {
            // Every user alone: a rank-k fit, and all of Theta.
            let alone: Vec<DMatrix<f64>> = world
                .users
                .iter()
                .map(|u| {
                    let (basis, own) = shared(std::slice::from_ref(u), d1, d2, rank);
                    basis * &own[0]
                })
                .collect();
            rows.push(row("separate", f64::NAN, mean_gap(&alone)));
            let full: Vec<DMatrix<f64>> = world
                .users
                .iter()
                .map(|u| {
                    let fit = logistic(&u.x, &u.y, &vec![1.0; votes], &Prior::ridge(RIDGE, DVector::zeros(d1 * d2)));
                    DMatrix::from_fn(d1, d2, |a, b| fit.mode[a * d2 + b])
                })
                .collect();
            rows.push(row("full", f64::NAN, mean_gap(&full)));
        }
        rows
    }
}

/// Below it a tail is rounding.
pub const NO_TAIL: f64 = 1e-6;

/// Slopes of the experiments beside the theory's.
pub fn slopes(rows: &[LabRow], seed: u64) -> Vec<Slope> {
    let distance: fn(&LabRow) -> f64 = |r| r.distance;
    let gap: fn(&LabRow) -> f64 = |r| r.gap;
    let first = "Theorem 4.1: (N N_p)^(-1/2)";
    let second = "Theorem 4.2: (k d2 / N_p)^(1/2)";
    let third = "Theorems 4.1, 4.2: (Sigma_tail / N)^(1/2), under a root for the gap";
    [
        ("samples", "shared", "distance", distance, -0.5, first),
        ("votes", "shared", "gap", gap, -0.5, second),
        ("votes", "separate", "gap", gap, -0.5, "the same with k (d1 + d2) in place of k d2"),
        ("votes", "full", "gap", gap, -0.5, "the same with d1 d2"),
        ("tail", "shared", "distance", distance, 0.5, third),
        ("tail", "shared", "gap", gap, 0.25, third),
    ]
    .into_iter()
    .filter_map(|(experiment, method, quantity, value, bound, source)| {
        let points: Vec<(usize, f64, f64)> = rows
            .iter()
            .filter(|r| r.experiment == experiment && r.method == method && r.x > NO_TAIL)
            .map(|r| (r.seed, r.x, value(r)))
            .collect();
        let measured = Slope::of(&points, &mut run::rng(seed, &["slope", experiment, method, quantity]))?;
        Some(Slope { what: format!("{experiment}: {quantity}, {method}"), bound, source: source.into(), ..measured })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_and_gaps_by_hand() {
        let a = DMatrix::from_row_slice(3, 1, &[1.0, 0.0, 0.0]);
        let b = DMatrix::from_row_slice(3, 1, &[0.6, 0.8, 0.0]);
        assert!((distance(&a, &b) - 0.8).abs() < 1e-12 && distance(&a, &a) < 1e-12);
        assert!((gap(&(&a * 5.0), &(&b * 2.0)) - (5.0 - 3.0)).abs() < 1e-12);
    }

    #[test]
    fn more_votes_bring_the_subspace_nearer_and_sharing_helps() {
        let lab = ShareLoraLab::default();
        let world = |users, votes| {
            let mut rng = run::rng(1, &["test"]);
            lab.world("votes", users, votes, 0.0, 0, &mut rng)
        };
        let (few, many) = (world(10, 40), world(10, 400));
        assert!(many[0].distance < 0.5 * few[0].distance, "{} {}", few[0].distance, many[0].distance);
        let [shared, separate, full] = [&few[0], &few[1], &few[2]].map(|r| r.gap);
        assert!(shared < 0.8 * separate && shared < 0.8 * full, "{shared} {separate} {full}");
        // Compared as text: a distance that does not exist is NaN.
        assert_eq!(format!("{few:?}"), format!("{:?}", world(10, 40)), "the same seed, the same world");
    }

    #[test]
    fn the_tail_is_that_of_the_stack() {
        let lab = ShareLoraLab::default();
        let mut rng = run::rng(1, &["test"]);
        let exact = World::new(&lab, 5, 1, 0.0, &mut rng);
        assert!(exact.tail < 1e-9, "{}", exact.tail);
        let with = World::new(&lab, 5, 1, 0.5, &mut rng);
        // Five users with a tail of norm one half; a part of it falls into the subspace.
        assert!(with.tail > 0.4 && with.tail < 1.25, "{}", with.tail);
    }
}
