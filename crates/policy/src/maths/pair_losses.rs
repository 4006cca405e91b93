//! Losses of preference pairs, pure functions of the responses' log-probabilities under the policy and the reference.

use lm::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Kind;

/// What a pair's margin is turned into. Names as in the field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum PairLoss {
    /// `-log s(m)` (Rafailov et al. 2023, eq. 7); with label smoothing the conservative DPO of Mitchell 2023.
    #[default]
    Sigmoid,
    /// `max(0, 1 - m)` (SLiC-HF, Zhao et al. 2023).
    Hinge,
    /// `(h - 1 / (2 beta))^2` of the difference `h = m / beta` of mean log-ratios a token (Azar et al. 2023; the mean as TRL has it).
    Ipo,
    /// `(-(1 - e) log s(m) + e log s(-m)) / (1 - 2 e)` with label smoothing `e` (Chowdhury et al. 2024): unbiased if a share `e` of the pairs
    /// is the wrong way round.
    Robust,
    /// `-log s(m - gamma)`, `m` of mean log-probabilities a token, without a reference (Meng et al. 2024).
    Simpo {
        /// Target margin.
        gamma: f64,
    },
}

/// A batch's pairs: `[2, P]` each, row 0 chosen, row 1 rejected.
#[derive(Debug)]
pub struct PairLogps<'a> {
    /// Log-probability of the response under the policy, summed over its tokens.
    pub policy: &'a Tensor,
    /// The same under the reference.
    pub reference: &'a Tensor,
    /// Tokens of the response.
    pub tokens: &'a Tensor,
    /// The margin's scale, `[P]`: smaller lets the policy move further.
    pub beta: &'a Tensor,
}

/// How pairs are learnt from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairObjective {
    /// The loss.
    pub loss: PairLoss,
    /// Share of pairs taken to be the wrong way round, below one half.
    pub label_smoothing: f64,
    /// Weight of the chosen response's negative log-likelihood, a token, that is added (Pang et al. 2024).
    pub nll: f64,
}

/// What each token of two responses of these lengths counts (Liu et al. 2024): 1 up to the shorter one's length, `ld_alpha` after it.
pub(crate) fn token_weights(lengths: [usize; 2], ld_alpha: f32) -> [Vec<f32>; 2] {
    let shared = lengths[0].min(lengths[1]);
    lengths.map(|n| (0..n).map(|t| if t < shared { 1.0 } else { ld_alpha }).collect())
}

impl PairLogps<'_> {
    /// Implicit rewards `[2, P]`: `beta` times the log-ratio of policy and reference; of means over tokens for IPO and SimPO, the latter
    /// without reference.
    pub fn rewards(&self, loss: PairLoss) -> Tensor {
        self.gains(loss) * self.beta
    }

    fn gains(&self, loss: PairLoss) -> Tensor {
        let Self { policy, reference, tokens, beta: _ } = *self;
        match loss {
            PairLoss::Sigmoid | PairLoss::Hinge | PairLoss::Robust => policy - reference,
            PairLoss::Ipo => (policy - reference) / tokens,
            PairLoss::Simpo { .. } => policy / tokens,
        }
    }
}

impl PairObjective {
    /// The loss of each pair `[P]`, stable at any margin.
    pub fn losses(&self, pairs: &PairLogps) -> Tensor {
        let gains = pairs.gains(self.loss);
        let difference = gains.get(0) - gains.get(1);
        let margin = &difference * pairs.beta;
        let e = self.label_smoothing;
        // -log s(m) and, for what is taken to be the wrong way round, -log s(-m).
        let right = |m: &Tensor| -m.log_sigmoid();
        let smoothed = |m: &Tensor| if e == 0.0 { right(m) } else { right(m) * (1.0 - e) + right(&-m) * e };
        let loss = match self.loss {
            PairLoss::Sigmoid => smoothed(&margin),
            PairLoss::Hinge => (-margin + 1.0).relu(),
            PairLoss::Ipo => (difference - pairs.beta.reciprocal() * 0.5).square(),
            PairLoss::Robust => (right(&margin) * (1.0 - e) - right(&-&margin) * e) / (1.0 - 2.0 * e),
            PairLoss::Simpo { gamma } => smoothed(&(margin - gamma)),
        };
        if self.nll == 0.0 {
            return loss;
        }
        let of_chosen = -(pairs.policy.get(0) / pairs.tokens.get(0)).to_kind(Kind::Float);
        loss + of_chosen * self.nll
    }

    /// What is wrong with the numbers: key, what is expected, what was found.
    pub(crate) fn problem(&self) -> Option<(&'static str, &'static str, f64)> {
        let smoothing = self.label_smoothing;
        if !(0.0..0.5).contains(&smoothing) {
            return Some(("label_smoothing", "0 or more, below 0.5", smoothing));
        }
        if smoothing > 0.0 && matches!(self.loss, PairLoss::Hinge | PairLoss::Ipo) {
            return Some(("label_smoothing", "0 with `hinge` and `ipo`, which have none", smoothing));
        }
        if !(self.nll >= 0.0 && self.nll.is_finite()) {
            return Some(("nll", "a number of at least 0", self.nll));
        }
        match self.loss {
            PairLoss::Simpo { gamma } if !(gamma >= 0.0 && gamma.is_finite()) => {
                Some(("loss.simpo.gamma", "a number of at least 0", gamma))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn losses(loss: PairLoss, label_smoothing: f64, nll: f64) -> Vec<f64> {
        // Gains of the chosen: -10 - -11 = 1 and -7 - -6 = -1; of the rejected: -12 - -10 = -2 and -9 - -9 = 0: differences 3 and -1.
        let matrix = |v: [f64; 4]| Tensor::from_slice(&v).view([2, 2]);
        let policy = matrix([-10.0, -7.0, -12.0, -9.0]);
        let reference = matrix([-11.0, -6.0, -10.0, -9.0]);
        let tokens = matrix([4.0, 2.0, 5.0, 3.0]);
        let beta = Tensor::from_slice(&[0.1; 2]);
        let pairs = PairLogps { policy: &policy, reference: &reference, tokens: &tokens, beta: &beta };
        let objective = PairObjective { loss, label_smoothing, nll };
        Vec::try_from(objective.losses(&pairs)).unwrap()
    }

    fn close(got: &[f64], want: [f64; 2]) {
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6), "{got:?} {want:?}");
    }

    #[test]
    fn losses_by_hand() {
        // Margins .3 and -.1. ln(1 + e^-.3) = .554355, ln(1 + e^.3) = .854355; ln(1 + e^.1) = .744397, ln(1 + e^-.1) = .644397.
        close(&losses(PairLoss::Sigmoid, 0.0, 0.0), [0.554_355, 0.744_397]);
        // .9 .554355 + .1 .854355; .9 .744397 + .1 .644397.
        close(&losses(PairLoss::Sigmoid, 0.1, 0.0), [0.584_355, 0.734_397]);
        // (.9 .554355 - .1 .854355) / .8; (.9 .744397 - .1 .644397) / .8.
        close(&losses(PairLoss::Robust, 0.1, 0.0), [0.516_855, 0.756_897]);
        close(&losses(PairLoss::Hinge, 0.0, 0.0), [0.7, 1.1]);
        // A token: 1/4 - -2/5 = .65 and -1/2 - 0 = -.5; less 5: 4.35^2 and 5.5^2.
        close(&losses(PairLoss::Ipo, 0.0, 0.0), [18.9225, 30.25]);
        // A token, without reference: -2.5 - -2.4 = -.1 and -3.5 - -3 = -.5; times .1, less .05: -.06 and -.1.
        let by_hand = [(1.0 + 0.06f64.exp()).ln(), (1.0 + 0.1f64.exp()).ln()];
        close(&losses(PairLoss::Simpo { gamma: 0.05 }, 0.0, 0.0), by_hand);
        // The chosen's mean negative log-likelihood, 10 / 4 and 7 / 2, at one half.
        close(&losses(PairLoss::Hinge, 0.0, 0.5), [0.7 + 1.25, 1.1 + 1.75]);
    }

    #[test]
    fn nothing_overflows_and_gradients_point_to_the_chosen() {
        for loss in
            [PairLoss::Sigmoid, PairLoss::Hinge, PairLoss::Ipo, PairLoss::Robust, PairLoss::Simpo { gamma: 0.5 }]
        {
            for apart in [-1000.0, 0.0, 1000.0] {
                let policy = Tensor::from_slice(&[-2000.0 + apart, -2000.0]).view([2, 1]).set_requires_grad(true);
                let reference = Tensor::from_slice(&[-2000.0, -2000.0]).view([2, 1]);
                let tokens = Tensor::from_slice(&[10.0, 10.0]).view([2, 1]);
                let beta = Tensor::from_slice(&[0.1]);
                let pairs = PairLogps { policy: &policy, reference: &reference, tokens: &tokens, beta: &beta };
                let objective = PairObjective { loss, label_smoothing: 0.0, nll: 0.0 };
                let value = objective.losses(&pairs).sum(Kind::Double);
                assert!(value.double_value(&[]).is_finite(), "{loss:?} {apart}");
                value.backward();
                let slope = Vec::<f64>::try_from(policy.grad().flatten(0, -1)).unwrap();
                assert!(slope.iter().all(|s| s.is_finite()));
                if apart == 0.0 {
                    assert!(slope[0] < 0.0, "{loss:?} {slope:?}");
                    assert!(slope[1] > 0.0, "{loss:?} {slope:?}");
                }
            }
        }
    }

    #[test]
    fn numbers_that_mean_nothing_are_told() {
        let fine = PairObjective { loss: PairLoss::Sigmoid, label_smoothing: 0.0, nll: 0.0 };
        assert_eq!(fine.problem(), None);
        let told = |o: PairObjective| o.problem().unwrap().0;
        assert_eq!(told(PairObjective { label_smoothing: 0.5, ..fine }), "label_smoothing");
        assert_eq!(told(PairObjective { label_smoothing: 0.1, loss: PairLoss::Ipo, ..fine }), "label_smoothing");
        assert_eq!(told(PairObjective { nll: f64::NAN, ..fine }), "nll");
        assert_eq!(told(PairObjective { loss: PairLoss::Simpo { gamma: -1.0 }, ..fine }), "loss.simpo.gamma");
    }
}
