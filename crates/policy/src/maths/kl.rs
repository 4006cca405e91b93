//! How far a policy is from its reference, and how strongly it is held.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An estimate of the KL divergence from one sampled token (Schulman 2020, "Approximating KL divergence").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KlEstimator {
    /// `log p / q`: unbiased, may be negative.
    #[default]
    K1,
    /// `q / p - 1 - log q / p`: unbiased, never negative.
    K3,
}

impl KlEstimator {
    /// From the token's log-probabilities under the policy and the reference, nats.
    pub fn of(self, policy: f32, reference: f32) -> f32 {
        match self {
            Self::K1 => policy - reference,
            Self::K3 => (reference - policy).exp_m1() - (reference - policy),
        }
    }
}

/// The weight of the divergence in a user's reward.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum KlControl {
    /// The same throughout.
    Fixed {
        /// The weight, in units of the calibrated reward a nat.
        beta: f64,
    },
    /// Moved towards a target (Ziegler et al. 2019, section 2.2), each user's own.
    Adaptive {
        /// The first weight.
        beta: f64,
        /// Divergence that is aimed at, nats per response.
        target: f64,
        /// Responses after which an error of 20% has moved the weight by 20%.
        horizon: f64,
    },
}

/// A relative error of the divergence counts no more than this in an adaptive control (Ziegler et al. 2019, section 2.2).
pub(crate) const MAX_ERROR: f64 = 0.2;

impl KlControl {
    /// The first weight.
    pub fn start(&self) -> f64 {
        match self {
            Self::Fixed { beta } | Self::Adaptive { beta, .. } => *beta,
        }
    }

    /// The next weight, after `responses` responses with a mean divergence of `kl` nats.
    pub fn next(&self, beta: f64, kl: f64, responses: usize) -> f64 {
        match self {
            Self::Fixed { .. } => beta,
            Self::Adaptive { target, horizon, .. } => {
                let error = (kl / target - 1.0).clamp(-MAX_ERROR, MAX_ERROR);
                beta * (1.0 + error * responses as f64 / horizon)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimators_by_hand_and_unbiased() {
        // p = .5, q = .25: k1 = ln 2, k3 = .5 - 1 + ln 2.
        let (p, q) = (0.5f32.ln(), 0.25f32.ln());
        assert!((KlEstimator::K1.of(p, q) - 2f32.ln()).abs() < 1e-6);
        assert!((KlEstimator::K3.of(p, q) - (2f32.ln() - 0.5)).abs() < 1e-6);
        // Their expectations under p over a whole distribution are its divergence.
        let (p, q) = ([0.7f32, 0.2, 0.1], [0.3f32, 0.3, 0.4]);
        let kl: f32 = p.iter().zip(q).map(|(p, q)| p * (p / q).ln()).sum();
        for estimator in [KlEstimator::K1, KlEstimator::K3] {
            let mean: f32 = p.iter().zip(q).map(|(p, q)| p * estimator.of(p.ln(), q.ln())).sum();
            assert!((mean - kl).abs() < 1e-6, "{estimator:?} {mean} {kl}");
        }
        assert!(KlEstimator::K3.of(-3.0, -1.0) >= 0.0);
        assert!(KlEstimator::K3.of(-1.0, -3.0) >= 0.0);
    }

    #[test]
    fn the_weight_follows_the_error() {
        let fixed = KlControl::Fixed { beta: 0.1 };
        assert_eq!(fixed.next(fixed.start(), 100.0, 64), 0.1);
        let adaptive = KlControl::Adaptive { beta: 0.1, target: 6.0, horizon: 640.0 };
        // Twice the target is clipped to an error of .2: .1 (1 + .2 * 64 / 640).
        assert!((adaptive.next(0.1, 12.0, 64) - 0.102).abs() < 1e-12);
        assert!((adaptive.next(0.1, 5.4, 64) - 0.099).abs() < 1e-12);
        assert_eq!(adaptive.next(0.1, 6.0, 64), 0.1);
    }
}
