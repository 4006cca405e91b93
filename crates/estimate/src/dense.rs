//! Products of large matrices: pure Rust on Linux, Accelerate on macOS, OpenBLAS where the feature `openblas` asks for it.

#[cfg(target_os = "macos")]
use accelerate_src as _; // links it
use nalgebra::DMatrix;
use ndarray::{Array2, ArrayView2, ShapeBuilder};
#[cfg(feature = "openblas")]
use openblas_src as _;
use rayon::prelude::*;

/// `a b`, `[n, k] [k, m]`
pub(crate) fn product(a: &DMatrix<f64>, b: &DMatrix<f64>) -> DMatrix<f64> {
    whole(&view(a).dot(&view(b)))
}

/// `a' b`, `[k, n]' [k, m]`
pub(crate) fn transposed_product(a: &DMatrix<f64>, b: &DMatrix<f64>) -> DMatrix<f64> {
    whole(&view(a).t().dot(&view(b)))
}

/// `sum_n w_n a_n b_n'`, `[p, q]`, of rows `[N, p]` and `[N, q]` that lie one behind the other; on all cores, the same bits whatever
/// their number.
pub(crate) fn weighted_products(a: &[f64], p: usize, b: &[f64], q: usize, weights: &[f64]) -> DMatrix<f64> {
    let part = |(part, weights): (usize, &[f64])| {
        let (from, n) = (part * ROWS, weights.len());
        let a = ArrayView2::from_shape((n, p), &a[from * p..(from + n) * p]).expect("rows of p");
        let mut b = ArrayView2::from_shape((n, q), &b[from * q..(from + n) * q]).expect("rows of q").to_owned();
        b.rows_mut().into_iter().zip(weights).for_each(|(mut row, w)| row *= *w);
        a.t().dot(&b)
    };
    let parts: Vec<Array2<f64>> = weights.par_chunks(ROWS).enumerate().map(part).collect();
    let sum = parts.into_iter().fold(Array2::zeros((p, q)), |sum, part| sum + part);
    whole(&sum)
}

/// Rows that a thread takes at a time.
const ROWS: usize = 2048;

fn view(m: &DMatrix<f64>) -> ArrayView2<'_, f64> {
    ArrayView2::from_shape((m.nrows(), m.ncols()).f(), m.as_slice()).expect("a matrix's own shape")
}

fn whole(m: &Array2<f64>) -> DMatrix<f64> {
    DMatrix::from_row_iterator(m.nrows(), m.ncols(), m.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_those_of_the_definition() {
        let a = DMatrix::from_fn(5, 3, |i, j| (i * 3 + j) as f64 - 6.0);
        let b = DMatrix::from_fn(3, 4, |i, j| (i + 2 * j) as f64);
        let by_hand = DMatrix::from_fn(5, 4, |i, j| (0..3).map(|k| a[(i, k)] * b[(k, j)]).sum());
        assert_eq!(product(&a, &b), by_hand);
        assert_eq!(transposed_product(&a.transpose(), &b), by_hand);
        assert_eq!(product(&a, &DMatrix::zeros(3, 0)).shape(), (5, 0));
        // More rows than a thread takes at a time, one of them heavy.
        let n = ROWS + 3;
        let (x, z): (Vec<f64>, Vec<f64>) = ((0..n * 2).map(|i| (i % 7) as f64).collect(), vec![1.0; n]);
        let weights: Vec<f64> = (0..n).map(|i| if i == n - 1 { 100.0 } else { 1.0 }).collect();
        let sum = |j: usize| (0..n).map(|i| weights[i] * x[2 * i + j]).sum::<f64>();
        assert_eq!(weighted_products(&x, 2, &z, 1, &weights).as_slice(), [sum(0), sum(1)]);
    }
}
