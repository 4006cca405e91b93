//! Rotation, truncation, vectorisation (LoCo-RLHF): in the bases of an estimate's singular directions a matrix of rank `r` is described by
//! `k = r (dx + dphi) - r^2` numbers, and the block that both complements span, of second order in the estimate's error, is dropped.

use nalgebra::{DMatrix, DVector};

/// The bases: each the estimate's leading `r` directions, then their complement.
#[derive(Clone, Debug, PartialEq)]
pub struct Rotation {
    /// `[dx, dx]`, orthogonal
    pub left: DMatrix<f64>,
    /// `[dphi, dphi]`, orthogonal
    pub right: DMatrix<f64>,
    /// r
    pub rank: usize,
}

impl Rotation {
    /// Of an estimate `[dx, dphi]`.
    ///
    /// # Panics
    /// If the rank is 0 or larger than the estimate allows.
    pub fn of(theta: &DMatrix<f64>, rank: usize) -> Self {
        assert!((1..=theta.nrows().min(theta.ncols())).contains(&rank), "a rank that fits");
        // All eigenvectors of Theta Theta' and Theta' Theta, the largest values first: complements come with them.
        let basis = |gram: DMatrix<f64>| {
            let eigen = gram.symmetric_eigen();
            let mut order: Vec<usize> = (0..eigen.eigenvalues.len()).collect();
            order.sort_by(|a, b| eigen.eigenvalues[*b].total_cmp(&eigen.eigenvalues[*a]));
            eigen.eigenvectors.select_columns(&order)
        };
        Self { left: basis(theta * theta.transpose()), right: basis(theta.tr_mul(theta)), rank }
    }

    /// k
    pub fn len(&self) -> usize {
        self.rank * (self.left.nrows() + self.right.nrows() - self.rank)
    }

    /// Never: a rank is at least 1.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// A matrix's numbers `[k]`: the leading block's, those right of it, those below it.
    pub fn coefficients(&self, theta: &DMatrix<f64>) -> DVector<f64> {
        let rotated = self.left.tr_mul(theta) * &self.right;
        self.kept().map(|(i, j)| rotated[(i, j)]).collect::<Vec<_>>().into()
    }

    /// The features `[k]` of a context `[dx]` and an answer's features `[dphi]`: `x' Theta phi` is their product with the coefficients, up to
    /// the truncated block.
    pub fn features(&self, x: &DVector<f64>, phi: &DVector<f64>) -> DVector<f64> {
        let (x, phi) = (self.left.tr_mul(x), self.right.tr_mul(phi));
        self.kept().map(|(i, j)| x[i] * phi[j]).collect::<Vec<_>>().into()
    }

    /// The block that is dropped, `[dx - r, dphi - r]`.
    pub fn truncated(&self, theta: &DMatrix<f64>) -> DMatrix<f64> {
        let rotated = self.left.tr_mul(theta) * &self.right;
        rotated.view((self.rank, self.rank), (theta.nrows() - self.rank, theta.ncols() - self.rank)).into_owned()
    }

    fn kept(&self) -> impl Iterator<Item = (usize, usize)> {
        let (r, dx, dphi) = (self.rank, self.left.nrows(), self.right.nrows());
        let above = (0..r).flat_map(move |i| (0..dphi).map(move |j| (i, j)));
        above.chain((r..dx).flat_map(move |i| (0..r).map(move |j| (i, j))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contextual::tests::normal;
    use rand::SeedableRng;

    #[test]
    fn it_counts_rotates_and_truncates() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let (x, phi) = (normal(5, 1, &mut rng).column(0).into_owned(), normal(4, 1, &mut rng).column(0).into_owned());
        let (any, truth) = (normal(5, 4, &mut rng), normal(5, 2, &mut rng) * normal(2, 4, &mut rng));
        let reward = |theta: &DMatrix<f64>| (x.transpose() * theta).dot(&phi.transpose());
        // k = r (dx + dphi) - r^2.
        for rank in 1..=4 {
            let rotation = Rotation::of(&any, rank);
            assert_eq!(rotation.len(), rank * 9 - rank * rank);
            assert_eq!(rotation.coefficients(&any).len(), rotation.len());
            assert!((rotation.left.tr_mul(&rotation.left) - DMatrix::identity(5, 5)).norm() < 1e-9);
        }
        // At full rank nothing is lost, whatever the matrix.
        let full = Rotation::of(&any, 4);
        assert!((full.features(&x, &phi).dot(&full.coefficients(&truth)) - reward(&truth)).abs() < 1e-9);
        assert_eq!(full.truncated(&truth).len(), 0);
        // At the true subspaces the truncated block of the truth is zero, and rewards are whole.
        let at_truth = Rotation::of(&truth, 2);
        assert!(at_truth.truncated(&truth).norm() < 1e-9);
        assert!((at_truth.features(&x, &phi).dot(&at_truth.coefficients(&truth)) - reward(&truth)).abs() < 1e-9);
        // Near them it is of second order in the distance.
        let lost = |by: f64| Rotation::of(&(&truth + &any * by), 2).truncated(&truth).norm();
        assert!(lost(1e-2) / lost(1e-3) > 60.0, "{} {}", lost(1e-2), lost(1e-3));
    }
}
