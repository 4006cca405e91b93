//! Principal components: embeddings of many numbers as fewer.

use nalgebra::DMatrix;

use crate::dense::transposed_product;

/// The leading principal components of standardised columns, each of deviation 1 at most: `[T, k]`.
pub fn components(texts: &DMatrix<f64>, k: usize) -> DMatrix<f64> {
    let (t, e) = texts.shape();
    let mut x = texts.clone();
    for mut column in x.column_iter_mut() {
        let mean = column.mean();
        column.add_scalar_mut(-mean);
        let deviation = (column.norm_squared() / t as f64).sqrt().max(1e-9);
        column.scale_mut(1.0 / deviation);
    }
    let eigen = (transposed_product(&x, &x) / t as f64).symmetric_eigen();
    let mut order: Vec<usize> = (0..e).collect();
    order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
    let k = k.min(e);
    let basis = DMatrix::from_fn(e, k, |i, j| eigen.eigenvectors[(i, order[j])]);
    // In units of the first component's deviation: later ones stay smaller, and a ridge holds them down.
    let first = eigen.eigenvalues[order[0]].max(1e-12).sqrt();
    x * basis / first
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_distr::StandardNormal;

    #[test]
    fn components_are_ordered_and_uncorrelated() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(2);
        let raw = DMatrix::from_fn(200, 6, |_, _| rng.sample::<f64, _>(StandardNormal));
        let mixed = &raw * DMatrix::from_fn(6, 6, |i, j| if i == j { 1.0 } else { 0.5 });
        let found = components(&mixed, 3);
        let gram = found.tr_mul(&found) / 200.0;
        assert!((gram[(0, 0)] - 1.0).abs() < 1e-9 && gram[(1, 1)] < 1.0 && gram[(2, 2)] <= gram[(1, 1)] + 1e-12);
        assert!(gram[(0, 1)].abs() < 1e-9 && gram[(1, 2)].abs() < 1e-9);
    }
}
