//! The likelihood of votes under factored contextual rewards, with its gradient: one pass over the votes, in vectors, on all cores.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined into the dispatch is compiled without its vector instructions"
)]

use nalgebra::DMatrix;
use pulp::Arch;
use rayon::prelude::*;

use crate::contextual::{Comparisons, Contexts};
use crate::logistic::softplus;

/// Weight of `|U'U - V'V|^2`, which keeps the factors' sizes alike (Tu et al. 2016 use 1/8 for the sum of squares).
const BALANCE: f64 = 0.125;

/// Numbers side by side in a factor's row.
pub(crate) const LANES: usize = 8;

/// Votes that a thread takes at a time.
const CHUNK: usize = 1024;

impl Comparisons {
    /// Mean loss and its gradient for factors of `8 K` columns, in vectors.
    pub(crate) fn pass<const K: usize>(&self, point: &[f64], gradient: &mut [f64]) -> f64 {
        let as_rows = |p: &[f64]| -> Vec<[[f64; LANES]; K]> {
            p.chunks_exact(LANES * K)
                .map(|r| std::array::from_fn(|k| std::array::from_fn(|l| r[k * LANES + l])))
                .collect()
        };
        let factors = as_rows(point);
        let (u, v) = factors.split_at(self.dx());
        let parts: Vec<(f64, Vec<[[f64; LANES]; K]>)> = (0..self.len().div_ceil(CHUNK))
            .into_par_iter()
            .map(|part| {
                let mut sums = vec![[[0.0; LANES]; K]; factors.len()];
                let range = part * CHUNK..((part + 1) * CHUNK).min(self.len());
                let loss = Arch::new().dispatch(|| self.chunk(range, u, v, &mut sums));
                (loss, sums)
            })
            .collect();
        // Summed in order: the same bits whatever the threads.
        gradient.fill(0.0);
        let scale = 1.0 / self.len() as f64;
        let mut loss = 0.0;
        for (value, sums) in parts {
            loss += value * scale;
            for (g, s) in gradient.chunks_exact_mut(LANES * K).zip(&sums) {
                g.iter_mut().zip(s.as_flattened()).for_each(|(g, s)| *g += s * scale);
            }
        }
        loss
    }

    #[inline(always)]
    fn chunk<const K: usize>(
        &self,
        range: std::ops::Range<usize>,
        u: &[[[f64; LANES]; K]],
        v: &[[[f64; LANES]; K]],
        sums: &mut [[[f64; LANES]; K]],
    ) -> f64 {
        let (du, dv) = sums.split_at_mut(u.len());
        let mut loss = 0.0;
        for n in range {
            let z = &self.differences[n * self.d..(n + 1) * self.d];
            let b = combine(z, v);
            let a = match &self.contexts {
                Contexts::Vectors { d, values } => combine(&values[n * d..(n + 1) * d], u),
                Contexts::People { index, .. } => u[index[n]],
            };
            let mut products = [0.0; LANES];
            for (a, b) in a.iter().zip(&b) {
                for l in 0..LANES {
                    products[l] += a[l] * b[l];
                }
            }
            let margin: f64 = products.iter().sum();
            let y = self.outcomes[n];
            let e = (-margin.abs()).exp();
            loss += margin.max(0.0) + e.ln_1p() - y * margin;
            let residual = if margin >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) } - y;
            let (a, b) = (times(&a, residual), times(&b, residual));
            spread(z, &a, dv);
            match &self.contexts {
                Contexts::Vectors { d, values } => spread(&values[n * d..(n + 1) * d], &b, du),
                Contexts::People { index, .. } => {
                    for (g, b) in du[index[n]].iter_mut().zip(&b) {
                        for l in 0..LANES {
                            g[l] += b[l];
                        }
                    }
                }
            }
        }
        loss
    }

    /// The same for factors of any width, by matrices.
    pub(crate) fn wide(&self, point: &[f64], gradient: &mut [f64], width: usize) -> f64 {
        let (dx, n) = (self.dx(), self.len());
        let u = DMatrix::from_row_slice(dx, width, &point[..dx * width]);
        let v = DMatrix::from_row_slice(self.d, width, &point[dx * width..]);
        let z = DMatrix::from_row_slice(n, self.d, &self.differences);
        let mut b = &z * &v; // [N, width]
        let mut a = match &self.contexts {
            Contexts::Vectors { d, values } => DMatrix::from_row_slice(n, *d, values) * &u,
            Contexts::People { index, .. } => u.select_rows(index),
        };
        let mut loss = 0.0;
        for i in 0..n {
            let margin = a.row(i).dot(&b.row(i));
            loss += softplus(margin) - self.outcomes[i] * margin;
            let residual = (1.0 / (1.0 + (-margin).exp()) - self.outcomes[i]) / n as f64;
            a.row_mut(i).scale_mut(residual);
            b.row_mut(i).scale_mut(residual);
        }
        let dv = z.tr_mul(&a);
        let du = match &self.contexts {
            Contexts::Vectors { d, values } => DMatrix::from_row_slice(n, *d, values).tr_mul(&b),
            Contexts::People { index, .. } => {
                let mut du = DMatrix::zeros(dx, width);
                index.iter().enumerate().for_each(|(i, p)| {
                    let mut row = du.row_mut(*p);
                    row += b.row(i);
                });
                du
            }
        };
        for (g, m) in gradient.chunks_exact_mut(width).zip(du.row_iter().chain(dv.row_iter())) {
            g.iter_mut().zip(m.iter()).for_each(|(g, m)| *g = *m);
        }
        loss / n as f64
    }
}

/// `sum_i x_i rows_i`
#[inline(always)]
fn combine<const K: usize>(x: &[f64], rows: &[[[f64; LANES]; K]]) -> [[f64; LANES]; K] {
    let mut sum = [[0.0; LANES]; K];
    for (x, row) in x.iter().zip(rows) {
        for (s, r) in sum.iter_mut().zip(row) {
            for l in 0..LANES {
                s[l] += x * r[l];
            }
        }
    }
    sum
}

/// `rows_i += x_i row`
#[inline(always)]
fn spread<const K: usize>(x: &[f64], row: &[[f64; LANES]; K], rows: &mut [[[f64; LANES]; K]]) {
    for (x, sum) in x.iter().zip(rows) {
        for (s, r) in sum.iter_mut().zip(row) {
            for l in 0..LANES {
                s[l] += x * r[l];
            }
        }
    }
}

#[inline(always)]
fn times<const K: usize>(row: &[[f64; LANES]; K], by: f64) -> [[f64; LANES]; K] {
    std::array::from_fn(|k| std::array::from_fn(|l| row[k][l] * by))
}

/// Adds the ridge and the balance to a gradient; gives their value.
pub(crate) fn regularise(point: &[f64], gradient: &mut [f64], dx: usize, width: usize, ridge: f64) -> f64 {
    let u = DMatrix::from_row_slice(dx, width, &point[..dx * width]);
    let v = DMatrix::from_row_slice(point.len() / width - dx, width, &point[dx * width..]);
    let apart = u.tr_mul(&u) - v.tr_mul(&v); // [width, width]
    let (du, dv) = (&u * &apart * (4.0 * BALANCE), &v * &apart * (-4.0 * BALANCE));
    for (g, (p, d)) in
        gradient.chunks_exact_mut(width).zip(u.row_iter().chain(v.row_iter()).zip(du.row_iter().chain(dv.row_iter())))
    {
        g.iter_mut().zip(p.iter().zip(d.iter())).for_each(|(g, (p, d))| *g += ridge * p + d);
    }
    BALANCE * apart.norm_squared() + ridge / 2.0 * point.iter().map(|p| p * p).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contextual::tests::world;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    #[test]
    fn gradients_are_those_of_the_value_in_every_layout() {
        let (_, data) = world(4, 3, 2, 2.0, 30, 1);
        let people = Comparisons {
            contexts: Contexts::People { count: 4, index: (0..30).map(|n| n % 4).collect() },
            ..data.clone()
        };
        let mut rng = StdRng::seed_from_u64(2);
        for data in [data, people] {
            for width in [8, 16, 24] {
                let point: Vec<f64> = (0..7 * width).map(|_| rng.random_range(-0.5..0.5)).collect();
                let value = |p: &[f64], g: &mut [f64]| {
                    let loss = match width {
                        8 => data.pass::<1>(p, g),
                        16 => data.pass::<2>(p, g),
                        _ => data.wide(p, g, width),
                    };
                    loss + regularise(p, g, 4, width, 0.1)
                };
                let (mut gradient, mut scratch) = (vec![0.0; point.len()], vec![0.0; point.len()]);
                let at = value(&point, &mut gradient);
                let by_matrices =
                    data.wide(&point, &mut scratch, width) + regularise(&point, &mut scratch, 4, width, 0.1);
                assert!((at - by_matrices).abs() < 1e-12);
                for i in (0..point.len()).step_by(5) {
                    let mut moved = |by: f64| {
                        let mut p = point.clone();
                        p[i] += by;
                        value(&p, &mut scratch)
                    };
                    let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                    assert!((slope - gradient[i]).abs() < 1e-7, "{width} {i}: {slope} {}", gradient[i]);
                }
            }
        }
    }
}
