//! Policies from other policies: a weighted sum of what their adapters do, without a step of training.
//!
//! If a basis policy k is near `base * exp(z_k / beta)`, and a user's reward is `sum_k c_k z_k`, then the user's policy is near
//! `base * exp(sum_k c_k z_k / beta)`: in log-probabilities the basis adds up with weights c, and for small changes so do the adapters (after
//! the decoding-time and weight-space mixtures of Jang et al. 2023, "Personalized Soups").

use std::collections::HashMap;
use std::num::NonZero;

use lm::{Bank, Lm, LoraConfig, Tensor, UserIndex};
use problem::{Result, invalid};
use tch::{Kind, no_grad};

use crate::model::Policies;

/// Weights `c_k = w_k s_k / |w s|`, times `strength`, of a taste `w` over reward features whose deviations are `s`: the user's reward in units
/// of its own deviation, features taken to be independent. None for a taste without a direction.
pub fn taste_weights(taste: &[f64], deviations: &[f64], strength: f64) -> Option<Vec<f64>> {
    let scaled: Vec<f64> = taste.iter().zip(deviations).map(|(w, s)| w * s).collect();
    let norm = scaled.iter().map(|c| c * c).sum::<f64>().sqrt();
    (norm > 0.0).then(|| scaled.into_iter().map(|c| strength * c / norm).collect())
}

impl Policies {
    /// For every new user of `users` the sum of our policies' updates, weighted by `weights[user]` (one number for each of ours). Exact: the
    /// factors stand side by side, at as many times the rank; or the nearest of rank `rank` (Eckart and Young), by a singular value
    /// decomposition.
    ///
    /// # Errors
    /// Another number of weights, or one that is not finite.
    pub fn combined(
        &self,
        lm: &Lm,
        users: &[String],
        weights: &[Vec<f64>],
        rank: Option<NonZero<usize>>,
    ) -> Result<Self> {
        let basis = self.users.len();
        for (user, own) in users.iter().zip(weights) {
            if own.len() != basis || own.iter().any(|w| !w.is_finite()) {
                return Err(invalid(
                    format!("combining policies for `{user}`"),
                    format!("{basis} finite weights, one for each of {}", self.users.join(", ")),
                    format!("{own:?}"),
                    "the basis and the tastes must be of the same reward features",
                ));
            }
        }
        let ours = &self.bank.config().lora;
        let wide = NonZero::new(ours.rank.get() * basis).expect("a rank and policies");
        let lora = LoraConfig { rank: rank.unwrap_or(wide), ..ours.clone() };
        let rescaled = ours.scale() / lora.scale();
        // Of each layer: every policy's factors.
        let mut layers: HashMap<String, Vec<(Tensor, Tensor)>> = HashMap::new();
        for policy in UserIndex::all(basis) {
            for factors in self.bank.of_user(policy) {
                layers.entry(factors.path).or_default().push((factors.down, factors.up));
            }
        }
        let combine = |factors: &[(Tensor, Tensor)], own: &[f64]| {
            let down = Tensor::cat(&factors.iter().map(|(down, _)| down).collect::<Vec<_>>(), 0); // [K r, in]
            let up: Vec<Tensor> = factors.iter().zip(own).map(|((_, up), w)| up * (w * rescaled)).collect();
            let up = Tensor::cat(&up, 1); // [out, K r]
            rank.map_or_else(
                || (down.shallow_clone(), up.shallow_clone()),
                |rank| nearest(&down, &up, rank.get() as i64),
            )
        };
        let bank = no_grad(|| {
            Bank::from_factors(lora, lm, users.len(), |path| {
                let factors = layers.get(path)?;
                let each: Vec<(Tensor, Tensor)> = weights.iter().map(|own| combine(factors, own)).collect();
                let (down, up): (Vec<Tensor>, Vec<Tensor>) = each.into_iter().unzip();
                Some((Tensor::stack(&down, 0), Tensor::stack(&up, 0)))
            })
        })?;
        Ok(Self { bank, users: users.to_vec() })
    }
}

/// Factors `[r, in]` and `[out, r]` of the matrix of rank `rank` that is nearest to `up down`; the singular values are shared evenly. Beyond the
/// rank of the matrix there are zeros.
fn nearest(down: &Tensor, up: &Tensor, rank: i64) -> (Tensor, Tensor) {
    let (u, s, v) = up.matmul(down).to_kind(Kind::Double).svd(true, true); // v [in, n]
    let kept = rank.min(s.size()[0]);
    let root = s.narrow(0, 0, kept).sqrt();
    let up = u.narrow(1, 0, kept) * &root;
    let down = (v.narrow(1, 0, kept) * &root).tr().contiguous();
    let filled = |t: Tensor, axis: i64| {
        if kept == rank {
            return t;
        }
        let mut shape = t.size();
        shape[axis as usize] = rank - kept;
        Tensor::cat(&[&t, &Tensor::zeros(shape, (t.kind(), t.device()))], axis)
    };
    (filled(down, 0).to_kind(Kind::Float), filled(up, 1).to_kind(Kind::Float))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_weights_are_the_tastes_in_units_of_the_basis() {
        // 3 * 2 and -4 * 2: a norm of 10.
        assert_eq!(taste_weights(&[3.0, -4.0], &[2.0, 2.0], 1.0), Some(vec![0.6, -0.8]));
        assert_eq!(taste_weights(&[3.0, -4.0], &[2.0, 0.0], 0.5), Some(vec![0.5, 0.0]));
        assert_eq!(taste_weights(&[0.0, 0.0], &[2.0, 2.0], 1.0), None);
    }

    #[test]
    fn the_nearest_of_full_rank_is_the_matrix_and_of_a_lower_rank_the_best() {
        tch::manual_seed(4);
        let options = (Kind::Float, tch::Device::Cpu);
        let (down, up) = (Tensor::randn([3, 7], options), Tensor::randn([5, 3], options));
        let whole = up.matmul(&down);
        for rank in [3, 4, 6] {
            let (d, u) = nearest(&down, &up, rank);
            assert_eq!((d.size(), u.size()), (vec![rank, 7], vec![5, rank]));
            assert!((u.matmul(&d) - &whole).abs().max().double_value(&[]) < 1e-5);
        }
        // What is lost is the smallest singular value.
        let (d, u) = nearest(&down, &up, 2);
        let lost = (u.matmul(&d) - &whole).norm().double_value(&[]);
        let values = Vec::<f64>::try_from(whole.svd(true, false).1.to_kind(Kind::Double)).unwrap();
        assert!((lost - values[2]).abs() < 1e-5, "{lost} {values:?}");
    }
}
