//! A user's scale of rewards, and a response's score on it: pure functions.

use serde::{Deserialize, Serialize};

use crate::ppo::config::PpoConfig;

/// A user's scale of rewards: calibrated ones are `(reward - mean) / deviation`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    /// On the reference's responses.
    pub mean: f32,
    /// On the reference's responses.
    pub deviation: f32,
}

/// A user's scale; or, in words, why there is none.
pub(crate) type MaybeScale = std::result::Result<Scale, String>;

/// The scale that gives `scores` mean 0 and variance 1 (n - 1).
pub(crate) fn scale(scores: &[f32]) -> MaybeScale {
    let n = scores.len() as f32;
    let mean = scores.iter().sum::<f32>() / n;
    let deviation = (scores.iter().map(|s| (s - mean).powi(2)).sum::<f32>() / (n - 1.0).max(1.0)).sqrt();
    let what = "the rewards of the reference's responses: expected finite numbers that differ, found a deviation of";
    if deviation > 0.0 && deviation.is_finite() {
        Ok(Scale { mean, deviation })
    } else {
        Err(format!("{what} {deviation}"))
    }
}

/// The calibrated score of a response: `(mean - caution * error - m) / s`, clipped, less what a truncated response loses; below all of
/// them if the guard does not let it pass.
pub(crate) fn score_of(
    config: &PpoConfig,
    scale: Scale,
    (mean, error): (f32, f32),
    finished: bool,
    passes: bool,
) -> f32 {
    let terms = &config.reward;
    let (clip, penalty) = (terms.clip as f32, terms.missing_end_penalty as f32);
    if !passes {
        return -clip - penalty - 1.0;
    }
    let careful = if terms.caution == 0.0 { mean } else { mean - terms.caution as f32 * error };
    let calibrated = (careful - scale.mean) / scale.deviation;
    // A NaN stays one: `clamp` keeps it.
    calibrated.clamp(-clip, clip) - if finished { 0.0 } else { penalty }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ppo::config::Method;

    fn config(method: Method) -> PpoConfig {
        PpoConfig { method, whiten_advantages: false, ..PpoConfig::default() }
    }

    #[test]
    fn scores_are_calibrated_clipped_punished_and_floored() {
        let mut config = config(Method::Rloo);
        (config.reward.clip, config.reward.missing_end_penalty) = (3.0, 0.5);
        let scale = Scale { mean: 1.0, deviation: 2.0 };
        let of = |config: &PpoConfig, mean: f32, finished: bool, passes: bool| {
            score_of(config, scale, (mean, 1.0), finished, passes)
        };
        assert_eq!(of(&config, 5.0, true, true), 2.0);
        assert_eq!(of(&config, 5.0, false, true), 1.5);
        assert_eq!(of(&config, 99.0, true, true), 3.0);
        // The worst that a reward can say, and what the guard says.
        assert_eq!(of(&config, -99.0, false, true), -3.5);
        assert_eq!(of(&config, 99.0, true, false), -4.5);
        assert!(of(&config, f32::NAN, true, true).is_nan());
        config.reward.caution = 2.0; // standard errors, before the scale
        assert_eq!(of(&config, 5.0, true, true), 1.0);
    }
}
