//! Win rates and diversity of sampled answers.

use std::collections::HashSet;

use nalgebra::{DMatrix, DVector};

use crate::{Prior, logistic};

/// 1 if the first is larger, one half if the two are equal, else 0.
pub fn half_for_equal(first: f64, second: f64) -> f64 {
    if first > second { 1.0 } else { f64::from(u8::from(first == second)) / 2.0 }
}

/// (wins of `ours` over `theirs`, ties counted half; number of comparisons), over all pairs of two sets of scores.
pub fn win_rate(ours: &[f64], theirs: &[f64]) -> (f64, usize) {
    let wins = ours.iter().flat_map(|a| theirs.iter().map(move |b| half_for_equal(*a, *b))).sum();
    (wins, ours.len() * theirs.len())
}

/// A comparison: how often ours wins (1, 0, or one half), and by how much ours is longer.
pub type Contest = (f64, f64);

/// The win rate among answers of the same length (after AlpacaEval 2, Dubois et al. 2024): `s(a)` of a logistic regression
/// `P(win) = s(a + b tanh(d / sd))` on the difference `d` in length, with a prior of variance 100 on both numbers. One half without comparisons.
pub fn length_controlled(contests: &[Contest]) -> f64 {
    let n = contests.len();
    let spread = (contests.iter().map(|(_, d)| d * d).sum::<f64>() / n.max(1) as f64).sqrt();
    let relative = |d: f64| if spread > 0.0 { (d / spread).tanh() } else { 0.0 };
    let x = DMatrix::from_fn(n, 2, |i, j| if j == 0 { 1.0 } else { relative(contests[i].1) });
    let y: Vec<f64> = contests.iter().map(|c| c.0).collect();
    let fit = logistic(&x, &y, &vec![1.0; n], &Prior::ridge(0.01, DVector::zeros(2)));
    1.0 / (1.0 + (-fit.mode[0]).exp())
}

/// Distinct n-grams of words over all n-grams of the texts (Li et al. 2016); 0 without any.
pub fn distinct_n<T: AsRef<str>>(texts: &[T], n: usize) -> f64 {
    let (mut all, mut distinct) = (0usize, HashSet::new());
    for text in texts {
        let words: Vec<String> = text.as_ref().split_whitespace().map(str::to_lowercase).collect();
        for gram in words.windows(n) {
            all += 1;
            distinct.insert(gram.join(" "));
        }
    }
    distinct.len() as f64 / all.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wins_count_one_and_ties_half() {
        assert_eq!(win_rate(&[1.0, 2.0], &[1.0, 0.0, 3.0]), (1.0 + 0.5 + 2.0, 6));
    }

    #[test]
    fn what_length_explains_is_no_win() {
        // Ours wins exactly as often as it is longer: nothing is left at equal length.
        let mut contests = vec![(1.0, 5.0); 80];
        contests.extend(vec![(0.0, 5.0); 20]);
        contests.extend(vec![(1.0, -5.0); 2]);
        contests.extend(vec![(0.0, -5.0); 8]);
        let plain = contests.iter().map(|c| c.0).sum::<f64>() / contests.len() as f64;
        assert!(plain > 0.7 && (length_controlled(&contests) - 0.5).abs() < 0.01, "{}", length_controlled(&contests));
        // Three of four whatever the length.
        let even: Vec<(f64, f64)> =
            (0..400).map(|i| (f64::from(u8::from(i % 4 != 0)), f64::from(i / 4 % 7) - 3.0)).collect();
        assert!((length_controlled(&even) - 0.75).abs() < 0.005);
        let same: Vec<(f64, f64)> = (0..400).map(|i| (f64::from(u8::from(i % 4 != 0)), 0.0)).collect();
        assert!((length_controlled(&same) - 0.75).abs() < 0.005);
        assert_eq!(length_controlled(&[]), 0.5);
    }

    #[test]
    fn distinct_n_by_hand() {
        assert_eq!(distinct_n(&["a b a", "A b"], 1), 2.0 / 5.0);
        assert_eq!(distinct_n(&["a b a", "A b"], 2), 2.0 / 3.0);
        assert_eq!(distinct_n(&["a"], 2), 0.0);
    }
}
