//! One user's settings of a PPO stage, resolved.

use lm::AdamWConfig;

use crate::maths::kl::KlControl;

/// One user's settings, resolved.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Own {
    pub(crate) optimizer: AdamWConfig,
    pub(crate) control: KlControl,
    pub(crate) steps: usize,
}

impl Own {
    /// The policy's learning rate in a round, of which the first `warmup` are the critic's alone: 0 there. The schedule, its warm-up and its end are of
    /// the rounds in which the policy learns.
    pub(crate) fn rate(&self, round: usize, warmup: usize) -> f64 {
        let learns = self.steps.saturating_sub(warmup);
        round.checked_sub(warmup).map_or(0.0, |step| self.optimizer.rate(step, learns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ppo::config::PpoConfig;

    #[test]
    fn issue_23_a_policys_schedule_begins_when_the_policy_does() {
        let mut config = PpoConfig { steps: 12.try_into().unwrap(), ..PpoConfig::default() };
        config.optimizer = AdamWConfig::with_rate(1.0, 0.2);
        let own = config.own("ann").unwrap();
        let rates: Vec<f64> = (0..12).map(|round| own.rate(round, 2)).collect();
        // Two rounds of the critic; then ten of the policy: up to the peak in two, and linearly down.
        let want = [0.0, 0.0, 0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125];
        assert!(rates.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-12), "{rates:?}");
        let without: Vec<f64> = (0..12).map(|round| own.rate(round, 0)).collect();
        assert_eq!(without, (0..12).map(|round| own.optimizer.rate(round, 12)).collect::<Vec<_>>());
    }
}
