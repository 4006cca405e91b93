//! Are probabilities what they say? Log-loss, Brier score, expected calibration error with its bins.

use serde::{Deserialize, Serialize};

/// Predictions of similar confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// Confidences from here ...
    pub from: f64,
    /// ... to here.
    pub to: f64,
    /// Votes.
    pub votes: usize,
    /// Mean confidence.
    pub confidence: f64,
    /// Share that was right.
    pub accuracy: f64,
}

/// How good predicted probabilities of decided votes are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Mean of `-ln p(chosen)`, nats.
    pub log_loss: f64,
    /// Mean of `(1 - p(chosen))^2`.
    pub brier: f64,
    /// Mean over votes of |confidence - accuracy| of their bin (Guo et al. 2017, eq. 3).
    pub ece: f64,
    /// Bins of equal width from one half to 1. A prediction's confidence is `max(p, 1 - p)`: which of two answers is called
    /// the first does not matter.
    pub bins: Vec<Bin>,
}

const BINS: usize = 10;

/// Judges `p(chosen)` of each decided vote. `None` without votes.
pub fn calibration(chosen: &[f64]) -> Option<Calibration> {
    if chosen.is_empty() {
        return None;
    }
    let n = chosen.len() as f64;
    let mean = |f: fn(f64) -> f64| chosen.iter().map(|p| f(*p)).sum::<f64>() / n;
    let width = 0.5 / BINS as f64;
    let mut sums = [(0usize, 0.0, 0.0); BINS];
    for p in chosen {
        let confidence = p.max(1.0 - p);
        let right = if *p > 0.5 { 1.0 } else { f64::from(u8::from(*p == 0.5)) / 2.0 };
        let bin = &mut sums[(((confidence - 0.5) / width) as usize).min(BINS - 1)];
        *bin = (bin.0 + 1, bin.1 + confidence, bin.2 + right);
    }
    let bins: Vec<Bin> = sums
        .iter()
        .enumerate()
        .filter(|(_, (votes, _, _))| *votes > 0)
        .map(|(i, (votes, confidence, right))| Bin {
            from: 0.5 + i as f64 * width,
            to: 0.5 + (i + 1) as f64 * width,
            votes: *votes,
            confidence: confidence / *votes as f64,
            accuracy: right / *votes as f64,
        })
        .collect();
    let ece = bins.iter().map(|b| b.votes as f64 / n * (b.confidence - b.accuracy).abs()).sum();
    Some(Calibration { log_loss: mean(log_loss), brier: mean(|p| (1.0 - p).powi(2)), ece, bins })
}

/// `-ln p`, nats, of the probability of what happened. At most 708: a probability of exactly 0 would make one vote's loss infinite, and floats end at
/// about e^-745. Of NaN it is NaN.
pub fn log_loss(p: f64) -> f64 {
    if p.is_nan() { p } else { -p.max(f64::MIN_POSITIVE).ln() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let got = calibration(&[0.9, 0.9, 0.9, 0.1, 0.5]).unwrap();
        // Four at confidence .9, three of them right; one coin toss.
        assert_eq!(got.bins.len(), 2);
        assert_eq!((got.bins[1].votes, got.bins[1].accuracy), (4, 0.75));
        assert!((got.ece - 0.8 * 0.15).abs() < 1e-12, "{got:?}");
        assert!((got.brier - (3.0 * 0.01 + 0.81 + 0.25) / 5.0).abs() < 1e-12);
        let by_hand = -(3.0 * 0.9f64.ln() + 0.1f64.ln() + 0.5f64.ln()) / 5.0;
        assert!((got.log_loss - by_hand).abs() < 1e-12);
        assert!(calibration(&[]).is_none() && calibration(&[0.0]).unwrap().log_loss.is_finite());
        assert_eq!(calibration(&[1.0]).unwrap().bins[0].to, 1.0);
        // A number that is none is not hidden as a large loss.
        assert!(log_loss(f64::NAN).is_nan() && calibration(&[0.5, f64::NAN]).unwrap().log_loss.is_nan());
        assert!((log_loss(0.0) - 708.396).abs() < 1e-3);
    }
}
