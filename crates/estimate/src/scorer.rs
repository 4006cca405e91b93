//! One interface for every reward model: whoever re-ranks, makes pairs or trains a policy asks for rewards here.

/// Rewards of answers for a person, with their uncertainty.
pub trait Scorer {
    /// What can go wrong.
    type Error;

    /// For each (prompt, answer) the reward that `user` would give, and its standard error (0 where a model has none).
    ///
    /// # Errors
    /// Such as a user or a text that the model does not know.
    fn scores(&mut self, user: &str, texts: &[(&str, &str)]) -> Result<Vec<(f64, f64)>, Self::Error>;

    /// The best of a prompt's answers by `score - caution * standard error`: the index, or none without answers.
    ///
    /// # Errors
    /// Those of [`Self::scores`].
    fn best_of(
        &mut self,
        user: &str,
        prompt: &str,
        answers: &[&str],
        caution: f64,
    ) -> Result<Option<usize>, Self::Error> {
        let texts: Vec<(&str, &str)> = answers.iter().map(|a| (prompt, *a)).collect();
        let (means, errors): (Vec<f64>, Vec<f64>) = self.scores(user, &texts)?.into_iter().unzip();
        Ok(most_careful(&means, &errors, caution))
    }
}

/// The index of the largest `mean - caution * error`; none of none.
pub fn most_careful(means: &[f64], errors: &[f64], caution: f64) -> Option<usize> {
    let careful = |i: usize| means[i] - caution * errors[i];
    (0..means.len()).max_by(|a, b| careful(*a).total_cmp(&careful(*b)))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct ByLength;

    impl Scorer for ByLength {
        type Error = std::convert::Infallible;

        fn scores(&mut self, _: &str, texts: &[(&str, &str)]) -> Result<Vec<(f64, f64)>, Self::Error> {
            Ok(texts.iter().map(|(_, a)| (a.len() as f64, (a.len() as f64).powi(2) / 8.0)).collect())
        }
    }

    #[test]
    fn caution_prefers_what_is_sure() {
        let best = |caution| ByLength.best_of("ann", "", &["a", "abc", "abcdef"], caution).unwrap();
        assert_eq!((best(0.0), best(1.0), best(10.0)), (Some(2), Some(1), Some(0)));
        assert_eq!(ByLength.best_of("ann", "", &[], 0.0).unwrap(), None);
    }
}
