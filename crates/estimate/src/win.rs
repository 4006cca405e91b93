//! Win rates and diversity of sampled answers.

use std::collections::HashSet;

/// (wins of `ours` over `theirs`, ties counted half; number of comparisons), over all pairs of two sets of scores.
pub fn win_rate(ours: &[f64], theirs: &[f64]) -> (f64, usize) {
    let wins = ours
        .iter()
        .flat_map(|a| theirs.iter().map(move |b| if a > b { 1.0 } else { f64::from(u8::from(a == b)) / 2.0 }))
        .sum();
    (wins, ours.len() * theirs.len())
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
    fn distinct_n_by_hand() {
        assert_eq!(distinct_n(&["a b a", "A b"], 1), 2.0 / 5.0);
        assert_eq!(distinct_n(&["a b a", "A b"], 2), 2.0 / 3.0);
        assert_eq!(distinct_n(&["a"], 2), 0.0);
    }
}
