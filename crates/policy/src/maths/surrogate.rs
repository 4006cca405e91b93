//! The losses of PPO, pure functions of log-probabilities and values: one number a token.

use lm::Tensor;

/// What a policy update is made of, `[M]` each: log-probabilities of the sampled tokens now and when the update began, and advantages.
#[derive(Debug)]
pub struct Sampled<'a> {
    /// Under the policy that is trained.
    pub logp: &'a Tensor,
    /// Under the policy as it was.
    pub old: &'a Tensor,
    /// How much better than expected.
    pub advantages: &'a Tensor,
}

impl Sampled<'_> {
    /// Probability ratios `[M]`.
    pub fn ratios(&self) -> Tensor {
        (self.logp - self.old).exp()
    }

    /// `max(-A ratio, -A clip(ratio, 1 - e, 1 + e))` (Schulman et al. 2017, eq. 7), `[M]`.
    pub fn policy_losses(&self, clip: f64) -> Tensor {
        let ratio = self.ratios();
        let loss = -(self.advantages * &ratio);
        let clipped = -(self.advantages * ratio.clamp(1.0 - clip, 1.0 + clip));
        loss.maximum(&clipped)
    }
}

/// `max((V - R)^2, (clip(V, V_old - e, V_old + e) - R)^2) / 2`, `[M]`: the clipped value loss of the PPO code base (Huang et al. 2022, detail 9).
pub fn value_losses(values: &Tensor, old: &Tensor, returns: &Tensor, clip: f64) -> Tensor {
    let clipped = old + (values - old).clamp(-clip, clip);
    ((values - returns).square()).maximum(&(clipped - returns).square()) * 0.5
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    fn list(t: &Tensor) -> Vec<f64> {
        Vec::try_from(t.to_kind(Kind::Double)).unwrap()
    }

    fn close(got: &[f64], want: &[f64]) {
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6), "{got:?} {want:?}");
    }

    #[test]
    fn losses_by_hand() {
        // Ratios 2, .5, 1.1, 2 with advantages 1, 1, -1, -1 and a clip of .2.
        let old = Tensor::from_slice(&[-2.0f64; 4]);
        let logp =
            (&old + Tensor::from_slice(&[2f64.ln(), 0.5f64.ln(), 1.1f64.ln(), 2f64.ln()])).set_requires_grad(true);
        let advantages = Tensor::from_slice(&[1.0f64, 1.0, -1.0, -1.0]);
        let losses = Sampled { logp: &logp, old: &old, advantages: &advantages }.policy_losses(0.2);
        // A good action beyond the clip gains no more; a bad one beyond it is punished in full.
        close(&list(&losses.detach()), &[-1.2, -0.5, 1.1, 2.0]);
        losses.sum(Kind::Double).backward();
        close(&list(&logp.grad()), &[0.0, -0.5, 1.1, 2.0]);

        let values = Tensor::from_slice(&[1.0f64, 1.0, 0.0]);
        let before = Tensor::from_slice(&[0.5f64, 0.9, 0.0]);
        let returns = Tensor::from_slice(&[2.0f64, 0.0, 0.5]);
        // Clipped to .7: (.7 - 2)^2 = 1.69 > 1; within the clip: 1; 0 moves nowhere: .25. Halves of them.
        close(&list(&value_losses(&values, &before, &returns, 0.2)), &[0.845, 0.5, 0.125]);
    }

    #[test]
    fn the_first_step_is_the_plain_policy_gradient() {
        let logp = Tensor::from_slice(&[-1.0f64, -3.0]).set_requires_grad(true);
        let old = logp.detach();
        let advantages = Tensor::from_slice(&[0.7f64, -0.3]);
        let sampled = Sampled { logp: &logp, old: &old, advantages: &advantages };
        assert_eq!(list(&sampled.ratios().detach()), [1.0, 1.0]);
        sampled.policy_losses(0.2).sum(Kind::Double).backward();
        close(&list(&logp.grad()), &[-0.7, 0.3]);
    }
}
