//! The likelihood of votes under factored contextual rewards, with its gradient: one pass over the votes, in vectors, on all cores.

#![expect(
    clippy::inline_always,
    reason = "what is not inlined into the dispatch is compiled without its vector instructions"
)]

use nalgebra::DMatrix;
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use stats::softplus;

use crate::comparisons::{Comparisons, Contexts};

/// Weight of `|U'U - V'V|^2`, which keeps the factors' sizes alike (Tu et al. 2016 use 1/8 for the sum of squares).
const BALANCE: f64 = 0.125;

/// Numbers side by side in a factor's row.
pub(crate) const LANES: usize = 8;

/// Votes side by side.
const AT_ONCE: usize = 4;

/// Votes that a thread takes at a time.
const CHUNK: usize = 1024;

/// A thread's votes. Factors are rows of `8 K` numbers, one behind the other.
struct Chunk<'a, const K: usize> {
    of: &'a Comparisons,
    range: std::ops::Range<usize>,
    u: &'a [f64],
    v: &'a [f64],
    /// Sums of the gradients of both.
    sums: &'a mut [f64],
}

impl<const K: usize> WithSimd for Chunk<'_, K> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        // Vectors of a row.
        match (K, S::F64_LANES) {
            (1, 8) => self.run::<S, 1>(simd),
            (1, 4) | (2, 8) => self.run::<S, 2>(simd),
            (1, 2) | (2, 4) => self.run::<S, 4>(simd),
            (1, 1) | (2, 2) => self.run::<S, 8>(simd),
            _ => self.run::<S, 16>(simd),
        }
    }
}

impl<const K: usize> Chunk<'_, K> {
    #[inline(always)]
    fn run<S: Simd, const W: usize>(self, simd: S) -> f64 {
        assert_eq!(W * S::F64_LANES, LANES * K, "a row of so many vectors");
        let Self { of, range, u, v, sums } = self;
        let (du, dv) = sums.split_at_mut(u.len());
        let (u, v) = (S::as_simd_f64s(u).0, S::as_simd_f64s(v).0);
        let (du, dv) = (S::as_mut_simd_f64s(du).0, S::as_mut_simd_f64s(dv).0);
        let mut loss = 0.0;
        let mut n = range.start;
        while n + AT_ONCE <= range.end {
            loss += of.votes::<S, W, AT_ONCE>(simd, n, (u, v), (du, dv));
            n += AT_ONCE;
        }
        while n < range.end {
            loss += of.votes::<S, W, 1>(simd, n, (u, v), (du, dv));
            n += 1;
        }
        loss
    }
}

impl Comparisons {
    /// Mean loss and its gradient for factors of `8 K` columns, in vectors.
    pub(crate) fn pass<const K: usize>(&self, point: &[f64], gradient: &mut [f64]) -> f64 {
        let (u, v) = point.split_at(self.dx() * LANES * K);
        let parts: Vec<(f64, Vec<f64>)> = (0..self.len().div_ceil(CHUNK))
            .into_par_iter()
            .map(|part| {
                let mut sums = vec![0.0; point.len()];
                let range = part * CHUNK..((part + 1) * CHUNK).min(self.len());
                let loss = Arch::new().dispatch(Chunk::<K> { of: self, range, u, v, sums: &mut sums });
                (loss, sums)
            })
            .collect();
        // Summed in order: the same bits whatever the threads.
        gradient.fill(0.0);
        let scale = 1.0 / self.len() as f64;
        let mut loss = 0.0;
        for (value, sums) in parts {
            loss += value * scale;
            gradient.iter_mut().zip(&sums).for_each(|(g, s)| *g += s * scale);
        }
        loss
    }

    /// `B` votes side by side from the `n`th on: a row of a factor is loaded once for all of them.
    #[inline(always)]
    fn votes<S: Simd, const W: usize, const B: usize>(
        &self,
        simd: S,
        n: usize,
        (u, v): (&[S::f64s], &[S::f64s]),
        (du, dv): (&mut [S::f64s], &mut [S::f64s]),
    ) -> f64 {
        let z: [&[f64]; B] = std::array::from_fn(|i| &self.differences[(n + i) * self.d..(n + i + 1) * self.d]);
        let mut b = combine::<S, W, B>(simd, &z, v);
        let (x, mut a) = match &self.contexts {
            Contexts::Vectors { d, values } => {
                let x: [&[f64]; B] = std::array::from_fn(|i| &values[(n + i) * d..(n + i + 1) * d]);
                (x, combine::<S, W, B>(simd, &x, u))
            }
            Contexts::People { index, .. } => {
                let row = |i: usize| -> [S::f64s; W] { std::array::from_fn(|k| u[index[n + i] * W + k]) };
                ([&[][..]; B], std::array::from_fn(row))
            }
        };
        let mut loss = 0.0;
        for i in 0..B {
            // Eight sums, whatever the machine's vectors: the same bits.
            let mut products = [0.0; LANES];
            for k in 0..W {
                let product = simd.mul_f64s(a[i][k], b[i][k]);
                let numbers: &[f64] = pulp::bytemuck::cast_slice(std::slice::from_ref(&product));
                let place = k * S::F64_LANES % LANES;
                products[place..place + S::F64_LANES].iter_mut().zip(numbers).for_each(|(p, x)| *p += x);
            }
            let margin: f64 = products.iter().sum();
            let y = self.outcomes[n + i];
            let e = (-margin.abs()).exp();
            loss += margin.max(0.0) + e.ln_1p() - y * margin;
            let residual = (if margin >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }) - y;
            let residual = simd.splat_f64s(residual);
            for k in 0..W {
                (a[i][k], b[i][k]) = (simd.mul_f64s(a[i][k], residual), simd.mul_f64s(b[i][k], residual));
            }
        }
        spread::<S, W, B>(simd, &z, &a, dv);
        match &self.contexts {
            Contexts::Vectors { .. } => spread::<S, W, B>(simd, &x, &b, du),
            Contexts::People { index, .. } => {
                for i in 0..B {
                    for k in 0..W {
                        let sum = &mut du[index[n + i] * W + k];
                        *sum = simd.add_f64s(*sum, b[i][k]);
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

/// `sum_i x_i rows_i` for every `x`
#[inline(always)]
fn combine<S: Simd, const W: usize, const B: usize>(simd: S, x: &[&[f64]; B], rows: &[S::f64s]) -> [[S::f64s; W]; B] {
    let mut sums = [[simd.splat_f64s(0.0); W]; B];
    let x = x.map(|x| &x[..rows.len() / W]); // checked once
    for (i, row) in rows.chunks_exact(W).enumerate() {
        for j in 0..B {
            let scale = simd.splat_f64s(x[j][i]);
            for k in 0..W {
                sums[j][k] = simd.mul_add_f64s(scale, row[k], sums[j][k]);
            }
        }
    }
    sums
}

/// `rows_i += sum over x of x_i row`
#[inline(always)]
fn spread<S: Simd, const W: usize, const B: usize>(
    simd: S,
    x: &[&[f64]; B],
    of: &[[S::f64s; W]; B],
    rows: &mut [S::f64s],
) {
    let x = x.map(|x| &x[..rows.len() / W]);
    for (i, row) in rows.chunks_exact_mut(W).enumerate() {
        let mut sum: [S::f64s; W] = std::array::from_fn(|k| row[k]);
        for j in 0..B {
            let scale = simd.splat_f64s(x[j][i]);
            for k in 0..W {
                sum[k] = simd.mul_add_f64s(scale, of[j][k], sum[k]);
            }
        }
        row.copy_from_slice(&sum);
    }
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
