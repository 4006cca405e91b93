//! Simulated raters: a fixed taste for features, and votes by Bradley-Terry.

use rand::Rng;
use stats::sigmoid;

/// A judgement of two answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The first is better.
    First,
    /// The second is better.
    Second,
    /// They differ by less than the rater can tell.
    Tie,
}

/// What a rater truly thinks of a text with these feature scores: the mean of weight times score.
pub fn truth(weights: &[f64], scores: &[f64]) -> f64 {
    weights.iter().zip(scores).map(|(w, s)| w * s).sum::<f64>() / weights.len() as f64
}

/// The Bradley-Terry scale at which votes on pairs with these differences in truth agree with the truth in a share
/// `agreement` (in .5 to 1, both excluded) of cases: the mean of `sigmoid(scale |difference|)` equals it. By bisection.
///
/// `None` if no scale reaches it, because too many differences are zero.
pub fn agreement_scale(differences: &[f64], agreement: f64) -> Option<f64> {
    let mean = |scale: f64| {
        differences.iter().map(|d| sigmoid(scale * d.abs())).sum::<f64>() / differences.len().max(1) as f64
    };
    let (mut low, mut high) = (0.0, 1.0);
    while mean(high) < agreement {
        high *= 2.0;
        if high > 1e6 {
            return None;
        }
    }
    for _ in 0..100 {
        let middle = f64::midpoint(low, high);
        if mean(middle) < agreement { low = middle } else { high = middle }
    }
    Some(f64::midpoint(low, high))
}

/// One vote on a pair whose first answer is better by `difference` in truth.
pub fn vote(difference: f64, scale: f64, tie_width: f64, rng: &mut impl Rng) -> Choice {
    let draw: f64 = rng.random(); // drawn in any case: a pair's draw does not depend on other pairs being ties
    if difference.abs() < tie_width {
        Choice::Tie
    } else if draw < sigmoid(scale * difference) {
        Choice::First
    } else {
        Choice::Second
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn scale_gives_the_wanted_agreement() {
        // One difference d: sigmoid(s d) = .8 means s = ln 4 / d.
        assert!((agreement_scale(&[0.5], 0.8).unwrap() - 4f64.ln() / 0.5).abs() < 1e-9);
        let differences: Vec<f64> = (1..200).map(|i| f64::from(i) / 50.0 - 2.0).collect();
        let scale = agreement_scale(&differences, 0.8).unwrap();
        let mut rng = rand::rngs::StdRng::seed_from_u64(3);
        let (mut agree, mut decided) = (0, 0);
        for d in differences.iter().cycle().take(40_000) {
            match vote(*d, scale, 0.0, &mut rng) {
                Choice::First => agree += i32::from(*d > 0.0),
                Choice::Second => agree += i32::from(*d < 0.0),
                Choice::Tie => continue,
            }
            decided += 1;
        }
        let share = f64::from(agree) / f64::from(decided);
        assert!((share - 0.8).abs() < 0.01, "{share}"); // standard error .002
        assert_eq!(agreement_scale(&[0.0, 0.0, 1.0], 0.9), None);
    }

    #[test]
    fn close_pairs_are_ties_and_truth_is_a_mean() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(3);
        assert_eq!(vote(0.05, 9.0, 0.1, &mut rng), Choice::Tie);
        assert_eq!(vote(-5.0, 9.0, 0.1, &mut rng), Choice::Second);
        assert!((truth(&[1.0, -1.0], &[2.0, 0.5]) - 0.75).abs() < 1e-12);
    }
}
