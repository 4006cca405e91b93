//! Low-rank contextual rewards (LoCo-RLHF, arXiv 2412.19436): `r(x, phi) = x' Theta phi` with `Theta = U V'` of rank `r`, where `x` is what
//! is known of the person. With `x` the person's index the rows of `U` are tastes and `V'` makes reward features of given ones:
//! RFM (arXiv 2503.17338) on frozen embeddings; with one person, or rank 1 and equal tastes, the ordinary reward model.

use nalgebra::{DMatrix, DVector};
use rand::Rng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use stats::{Minimum, Stop, minimise, softplus};

use crate::comparisons::{Comparisons, Contexts};
use crate::dense::{product, transposed_product, weighted_products};
use crate::likelihood::{LANES, regularise};

/// The factors of Theta.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LowRank {
    /// `[dx, r]`
    pub u: DMatrix<f64>,
    /// `[dphi, r]`
    pub v: DMatrix<f64>,
}

impl LowRank {
    /// `[dx, dphi]`
    pub fn theta(&self) -> DMatrix<f64> {
        &self.u * self.v.transpose()
    }
}

/// How a factored fit goes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextualFit {
    /// Half of it times the squared norms of both factors is added to the mean loss.
    pub ridge: f64,
    /// No entry of the gradient of the mean loss is larger at the end.
    pub gradient: f64,
    /// Passes over the votes, at most.
    pub passes: usize,
}

impl Default for ContextualFit {
    fn default() -> Self {
        Self { ridge: 1e-4, gradient: 1e-6, passes: 500 }
    }
}

impl Comparisons {
    /// Mean of -ln P(what was chosen), nats.
    pub fn log_loss(&self, theta: &DMatrix<f64>) -> f64 {
        let z = DMatrix::from_row_slice(self.len(), self.d, &self.differences);
        let rows = product(&z, &theta.transpose()); // [N, dx]
        let margin = |n: usize| match &self.contexts {
            Contexts::Vectors { d, values } => (0..*d).map(|i| values[n * d + i] * rows[(n, i)]).sum::<f64>(),
            Contexts::People { index, .. } => rows[(n, index[n])],
        };
        let loss = |n: usize| softplus(margin(n)) - self.outcomes[n] * margin(n);
        (0..self.len()).map(loss).sum::<f64>() / self.len() as f64
    }

    /// `(1/N) sum (y - 1/2) x z'`, `[dx, dphi]`: along the truth for small margins.
    fn moment(&self) -> DMatrix<f64> {
        let shares: Vec<f64> = self.outcomes.iter().map(|y| (y - 0.5) / self.len() as f64).collect();
        match &self.contexts {
            Contexts::Vectors { d, values } => weighted_products(values, *d, &self.differences, self.d, &shares),
            Contexts::People { count, index } => {
                let mut out = DMatrix::zeros(*count, self.d);
                for ((z, share), person) in self.differences.chunks_exact(self.d).zip(&shares).zip(index) {
                    let mut row = out.row_mut(*person);
                    row.iter_mut().zip(z).for_each(|(o, z)| *o += z * share);
                }
                out
            }
        }
    }

    /// Second moments of contexts `[dx, dx]` and of differences `[dphi, dphi]`.
    fn second_moments(&self) -> (DMatrix<f64>, DMatrix<f64>) {
        let shares = vec![1.0 / self.len() as f64; self.len()];
        let of_contexts = match &self.contexts {
            Contexts::Vectors { d, values } => weighted_products(values, *d, values, *d, &shares),
            Contexts::People { count, index } => {
                let mut shares = DVector::zeros(*count);
                index.iter().for_each(|i| shares[*i] += 1.0 / self.len() as f64);
                DMatrix::from_diagonal(&shares)
            }
        };
        (of_contexts, weighted_products(&self.differences, self.d, &self.differences, self.d, &shares))
    }

    /// The spectral start: of `4 Cov(x)^-1 M Cov(z)^-1`, M the moment above, the leading `r` singular directions, their values split evenly.
    fn spectral(&self, rank: usize) -> LowRank {
        let (xx, zz) = self.second_moments();
        let solved = |m: DMatrix<f64>, right: &DMatrix<f64>| {
            let d = m.nrows();
            let ridge = 1e-3 * m.trace() / d as f64 + 1e-12;
            (m + DMatrix::identity(d, d) * ridge).cholesky().expect("a ridge makes it so").solve(right)
        };
        let half = solved(xx, &self.moment()) * 4.0; // [dx, dphi]
        let start = solved(zz, &half.transpose()).transpose();
        truncated(&start, rank)
    }

    /// The rank-constrained maximum-likelihood estimate by factors (Burer and Monteiro 2003): the mean loss plus ridge and balance, from
    /// the spectral start. Gives what the optimiser says of it as well.
    ///
    /// # Panics
    /// If sizes do not fit, or there is no vote or rank.
    pub fn fit(&self, rank: usize, how: &ContextualFit) -> (LowRank, Minimum) {
        self.fit_from(&self.spectral(rank), how)
    }

    /// The same from given factors.
    pub fn fit_from(&self, start: &LowRank, how: &ContextualFit) -> (LowRank, Minimum) {
        self.check();
        let (rank, dx, dphi) = (start.u.ncols(), self.dx(), self.d);
        assert!(rank > 0 && start.u.nrows() == dx && start.v.shape() == (dphi, rank), "factors of the votes' sizes");
        // Rows of both factors one behind the other, padded with zeros, whose gradients are zero.
        let width = rank.next_multiple_of(LANES);
        let pad = |m: &DMatrix<f64>| -> Vec<f64> {
            (0..m.nrows()).flat_map(|i| (0..width).map(move |j| if j < rank { m[(i, j)] } else { 0.0 })).collect()
        };
        let mut point = pad(&start.u);
        point.extend(pad(&start.v));
        let stop = Stop { gradient: how.gradient, evaluations: how.passes };
        let value = |p: &[f64], g: &mut [f64]| {
            let loss = match width / LANES {
                1 => self.pass::<1>(p, g),
                2 => self.pass::<2>(p, g),
                _ => self.wide(p, g, width),
            };
            loss + regularise(p, g, dx, width, how.ridge)
        };
        let minimum = minimise(value, point, stop);
        let take = |from: usize, rows: usize| DMatrix::from_fn(rows, rank, |i, j| minimum.x[from + i * width + j]);
        (LowRank { u: take(0, dx), v: take(dx * width, dphi) }, minimum)
    }

    /// The maximum-likelihood estimate of all of Theta `[dx, dphi]`, with `ridge / 2 |Theta|^2` added to the mean loss. Convex.
    pub fn fit_full(&self, how: &ContextualFit) -> (DMatrix<f64>, Minimum) {
        self.check();
        let (dx, dphi, n) = (self.dx(), self.d, self.len());
        let z = DMatrix::from_row_slice(n, dphi, &self.differences);
        let x = DMatrix::from_fn(n, dx, |i, j| match &self.contexts {
            Contexts::Vectors { d, values } => values[i * d + j],
            Contexts::People { index, .. } => f64::from(u8::from(index[i] == j)),
        });
        let value = |p: &[f64], g: &mut [f64]| {
            let theta = DMatrix::from_column_slice(dx, dphi, p);
            let mut rows = product(&x, &theta); // [N, dphi]
            let mut loss = 0.0;
            for i in 0..n {
                let margin = rows.row(i).dot(&z.row(i));
                loss += softplus(margin) - self.outcomes[i] * margin;
                let residual = (1.0 / (1.0 + (-margin).exp()) - self.outcomes[i]) / n as f64;
                rows.row_mut(i).copy_from(&(z.row(i) * residual));
            }
            let gradient = transposed_product(&x, &rows);
            g.iter_mut().zip(gradient.iter().zip(p)).for_each(|(g, (d, p))| *g = d + how.ridge * p);
            loss / n as f64 + how.ridge / 2.0 * p.iter().map(|p| p * p).sum::<f64>()
        };
        let stop = Stop { gradient: how.gradient, evaluations: how.passes };
        let minimum = minimise(value, vec![0.0; dx * dphi], stop);
        (DMatrix::from_column_slice(dx, dphi, &minimum.x), minimum)
    }

    /// The rank among `ranks` with the least log-loss on a `share` of the votes that its fit does not see, and each one's.
    ///
    /// # Panics
    /// If there is no rank, or a side of the split is empty.
    pub fn choose_rank(
        &self,
        ranks: &[usize],
        share: f64,
        how: &ContextualFit,
        rng: &mut impl Rng,
    ) -> (usize, Vec<f64>) {
        let mut order: Vec<usize> = (0..self.len()).collect();
        order.shuffle(rng);
        let held = ((self.len() as f64 * share).round() as usize).clamp(1, self.len() - 1);
        let (held, rest) = (self.some(&order[..held]), self.some(&order[held..]));
        let losses: Vec<f64> = ranks.iter().map(|r| held.log_loss(&rest.fit(*r, how).0.theta())).collect();
        let best = (0..ranks.len()).min_by(|a, b| losses[*a].total_cmp(&losses[*b])).expect("at least one rank");
        (ranks[best], losses)
    }
}

/// The best approximation of rank `r`, its singular values split evenly between the factors.
pub fn truncated(theta: &DMatrix<f64>, rank: usize) -> LowRank {
    let svd = theta.clone().svd(true, true);
    let (left, right) = (svd.u.expect("asked for"), svd.v_t.expect("asked for"));
    let mut order: Vec<usize> = (0..svd.singular_values.len()).collect();
    order.sort_by(|a, b| svd.singular_values[*b].total_cmp(&svd.singular_values[*a]));
    let pick = |of: &dyn Fn(usize, usize) -> f64, rows: usize| {
        DMatrix::from_fn(rows, rank, |i, j| {
            order.get(j).map_or(0.0, |k| of(i, *k) * svd.singular_values[*k].max(0.0).sqrt())
        })
    };
    LowRank { u: pick(&|i, k| left[(i, k)], theta.nrows()), v: pick(&|i, k| right[(k, i)], theta.ncols()) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use rand_distr::StandardNormal;

    pub(crate) fn normal(rows: usize, columns: usize, rng: &mut StdRng) -> DMatrix<f64> {
        DMatrix::from_fn(rows, columns, |_, _| rng.sample(StandardNormal))
    }

    /// A truth of this rank and norm, and votes by it.
    pub(crate) fn world(
        dx: usize,
        dphi: usize,
        rank: usize,
        norm: f64,
        votes: usize,
        seed: u64,
    ) -> (DMatrix<f64>, Comparisons) {
        let mut rng = StdRng::seed_from_u64(seed);
        let theta = (normal(dx, rank, &mut rng).qr().q() * normal(rank, dphi, &mut rng)).normalize() * norm;
        let (x, z) = (normal(votes, dx, &mut rng), normal(votes, dphi, &mut rng));
        let outcome = |n: usize, u: f64| {
            let margin = (x.row(n) * &theta).dot(&z.row(n));
            f64::from(u8::from(u < 1.0 / (1.0 + (-margin).exp())))
        };
        let outcomes = (0..votes).map(|n| outcome(n, rng.random())).collect();
        let flat = |m: &DMatrix<f64>| m.row_iter().flat_map(|r| r.iter().copied().collect::<Vec<_>>()).collect();
        let contexts = Contexts::Vectors { d: dx, values: flat(&x) };
        (theta, Comparisons { contexts, d: dphi, differences: flat(&z), outcomes })
    }

    #[test]
    fn more_votes_bring_the_subspaces_and_the_rank() {
        let angle = |found: &DMatrix<f64>, truth: &DMatrix<f64>, r: usize| {
            let (a, b) = (truncated(found, r).v.qr().q(), truncated(truth, r).v.qr().q());
            let cosines = a.tr_mul(&b).singular_values();
            (1.0 - cosines.min().min(1.0).powi(2)).max(0.0).sqrt()
        };
        let how = ContextualFit::default();
        let errors: Vec<f64> = [500, 4000, 32000]
            .map(|n| {
                let (truth, data) = world(10, 8, 2, 2.0, n, 3);
                angle(&data.fit(2, &how).0.theta(), &truth, 2)
            })
            .to_vec();
        assert!(errors[1] < 0.6 * errors[0] && errors[2] < 0.6 * errors[1] && errors[2] < 0.1, "{errors:?}");
        let (truth, data) = world(10, 8, 2, 2.0, 4000, 4);
        let (best, losses) = data.choose_rank(&[1, 2, 3, 5], 0.3, &how, &mut StdRng::seed_from_u64(1));
        assert_eq!(best, 2, "{losses:?}");
        // Sharing a low rank helps: the full estimate is further from the truth.
        let (low, full) = (data.fit(2, &how).0.theta(), data.fit_full(&how).0);
        assert!((&low - &truth).norm() < 0.8 * (&full - &truth).norm());
    }

    #[test]
    fn a_factored_fit_of_full_rank_is_the_convex_one_and_one_person_is_plain_regression() {
        let (_, data) = world(3, 4, 2, 2.0, 400, 5);
        let how = ContextualFit { ridge: 0.0, gradient: 1e-9, passes: 3000 };
        let (factored, full) = (data.fit(3, &how).0.theta(), data.fit_full(&how).0);
        assert!((&factored - &full).norm() < 1e-4, "{}", (&factored - &full).norm());
        // One person: x = [1], Theta one row, and the likelihood is that of a logistic regression.
        let one = Comparisons { contexts: Contexts::People { count: 1, index: vec![0; 400] }, ..data.clone() };
        let row = one.fit(1, &how).0.theta();
        let x = DMatrix::from_row_slice(400, 4, &one.differences);
        let prior = stats::Prior::ridge(1e-9, DVector::zeros(4));
        let plain = stats::logistic(&x, &one.outcomes, &[1.0; 400], &prior);
        assert!((row.transpose() - plain.mode).norm() < 1e-4);
    }

    #[test]
    fn it_repeats_exactly_whatever_the_threads() {
        let (_, data) = world(6, 5, 2, 2.0, 5000, 6);
        let fit = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| data.fit(2, &ContextualFit::default()).0)
        };
        assert_eq!(fit(1), fit(2));
    }
}
