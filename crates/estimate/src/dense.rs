//! Products of large matrices: pure Rust on Linux, Accelerate on macOS, OpenBLAS where the feature `openblas` asks for it.

use nalgebra::DMatrix;
use ndarray::{ArrayView2, ShapeBuilder};

#[cfg(target_os = "macos")]
use accelerate_src as _; // links it
#[cfg(feature = "openblas")]
use openblas_src as _;

/// `a b`, `[n, k] [k, m]`
pub(crate) fn product(a: &DMatrix<f64>, b: &DMatrix<f64>) -> DMatrix<f64> {
    whole(view(a).dot(&view(b)))
}

/// `a' b`, `[k, n]' [k, m]`
pub(crate) fn transposed_product(a: &DMatrix<f64>, b: &DMatrix<f64>) -> DMatrix<f64> {
    whole(view(a).t().dot(&view(b)))
}

fn view(m: &DMatrix<f64>) -> ArrayView2<'_, f64> {
    ArrayView2::from_shape((m.nrows(), m.ncols()).f(), m.as_slice()).expect("a matrix's own shape")
}

fn whole(m: ndarray::Array2<f64>) -> DMatrix<f64> {
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
    }
}
