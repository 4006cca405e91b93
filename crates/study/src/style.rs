//! Interpretable style features of an English text, counted from its words and marks.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Scores are clipped at so many standard deviations.
pub const CLIP: f64 = 2.0;

/// One thing that can be counted in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// `you`, `your`, ...
    SecondPerson,
    /// `I`, `my`, `we`, ...
    FirstPerson,
    /// The word `and`.
    And,
    /// The word `the`.
    The,
    /// `it`, `this`, `that`, ...
    Pointing,
    /// `can`, `may`, `should`, ...
    Modal,
    /// `not`, `never`, `don't`, ...
    Negation,
    /// Words that end in -ing.
    Ing,
    /// Words that end in -ly.
    Adverb,
    /// Words of nine letters or more, beyond the third.
    LongWord,
    /// Commas beyond the first.
    Comma,
    /// Apostrophes.
    Apostrophe,
    /// Words joined by a hyphen.
    Hyphen,
    /// Words beyond the thirty-fifth.
    Length,
    /// Capitalised words inside a sentence.
    Capital,
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphabetic() && c != '\'').map(|w| w.trim_matches('\'')).filter(|w| !w.is_empty())
}

fn count_in(text: &str, list: &[&str]) -> usize {
    words(text).filter(|w| list.contains(&w.to_lowercase().as_str())).count()
}

impl Feature {
    /// How often the text has it; 0 is absent.
    pub fn count(self, text: &str) -> usize {
        match self {
            Self::SecondPerson => {
                count_in(text, &["you", "your", "yours", "yourself", "you're", "you'll", "you've", "you'd"])
            }
            Self::FirstPerson => count_in(
                text,
                &["i", "me", "my", "mine", "i'm", "i've", "i'll", "i'd", "we", "us", "our", "we're", "we'll", "we've"],
            ),
            Self::And => count_in(text, &["and"]),
            Self::The => count_in(text, &["the"]),
            Self::Pointing => count_in(text, &["it", "its", "it's", "this", "that", "these", "those", "that's"]),
            Self::Modal => count_in(text, &["can", "could", "may", "might", "must", "would", "should", "will"]),
            Self::Negation => words(text)
                .map(str::to_lowercase)
                .filter(|w| ["not", "no", "never", "nor", "cannot"].contains(&w.as_str()) || w.ends_with("n't"))
                .count(),
            Self::Ing => words(text).filter(|w| w.len() > 4 && w.to_lowercase().ends_with("ing")).count(),
            Self::Adverb => words(text).filter(|w| w.len() > 4 && w.to_lowercase().ends_with("ly")).count(),
            Self::LongWord => words(text).filter(|w| w.chars().count() >= 9).count().saturating_sub(3),
            Self::Comma => text.matches(',').count().saturating_sub(1),
            Self::Apostrophe => text.matches(['\'', '’']).count(),
            Self::Hyphen => {
                let chars: Vec<char> = text.chars().collect();
                chars.windows(3).filter(|w| w[1] == '-' && w[0].is_alphanumeric() && w[2].is_alphanumeric()).count()
            }
            Self::Length => words(text).count().saturating_sub(35),
            Self::Capital => {
                let tokens: Vec<&str> = text.split_whitespace().collect();
                tokens
                    .windows(2)
                    .filter(|w| {
                        !w[0].ends_with(['.', '!', '?', ':', '"', '”'])
                            && w[1].chars().next().is_some_and(char::is_uppercase)
                            && w[1].chars().nth(1).is_some_and(char::is_lowercase)
                    })
                    .count()
            }
        }
    }
}

/// Mean and deviation of each feature over a set of texts, fixed before anybody votes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scaler {
    /// What is counted.
    pub features: Vec<Feature>,
    /// Mean count.
    pub mean: Vec<f64>,
    /// Standard deviation of the count (population).
    pub deviation: Vec<f64>,
    /// Share of texts that have the feature at all.
    pub present: Vec<f64>,
}

impl Scaler {
    /// Measures `features` on `texts`.
    pub fn fit<T: AsRef<str>>(features: &[Feature], texts: &[T]) -> Self {
        let n = texts.len().max(1) as f64;
        let mut out = Self { features: features.to_vec(), mean: vec![], deviation: vec![], present: vec![] };
        for feature in features {
            let counts: Vec<f64> = texts.iter().map(|t| feature.count(t.as_ref()) as f64).collect();
            let mean = counts.iter().sum::<f64>() / n;
            out.mean.push(mean);
            out.deviation.push((counts.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / n).sqrt());
            out.present.push(counts.iter().filter(|c| **c > 0.0).count() as f64 / n);
        }
        out
    }

    /// z-scores of a text, clipped at [`CLIP`]; 0 for a feature that did not vary.
    pub fn scores(&self, text: &str) -> Vec<f64> {
        let each = self.features.iter().zip(&self.mean).zip(&self.deviation);
        each.map(|((feature, mean), deviation)| {
            if *deviation == 0.0 {
                return 0.0;
            }
            ((feature.count(text) as f64 - mean) / deviation).clamp(-CLIP, CLIP)
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_hand() {
        let text =
            "You're right, and it's the well-known Mayor of Paris who isn't coming, really: can we go, you and I?";
        let counts = |f: Feature| f.count(text);
        assert_eq!(counts(Feature::SecondPerson), 2); // You're, you
        assert_eq!(counts(Feature::FirstPerson), 2); // we, I
        assert_eq!(counts(Feature::And), 2);
        assert_eq!(counts(Feature::The), 1);
        assert_eq!(counts(Feature::Pointing), 1); // it's
        assert_eq!(counts(Feature::Modal), 1); // can
        assert_eq!(counts(Feature::Negation), 1); // isn't
        assert_eq!(counts(Feature::Ing), 1); // coming
        assert_eq!(counts(Feature::Adverb), 1); // really
        assert_eq!(counts(Feature::Comma), 2); // three, beyond the first
        assert_eq!(counts(Feature::Apostrophe), 3);
        assert_eq!(counts(Feature::Hyphen), 1);
        assert_eq!(counts(Feature::Capital), 2); // Mayor, Paris; `I` has no second letter
        assert_eq!(counts(Feature::Length), 0);
        assert_eq!(Feature::LongWord.count("extraordinary circumstances necessitate uncomplicated solutions"), 2);
        assert_eq!(Feature::Length.count(&"a ".repeat(40)), 5);
    }

    #[test]
    fn scores_are_standardised_and_clipped() {
        // Counts 0, 0, 0, 4: mean 1, deviation sqrt(3).
        let texts = ["a", "b", "c", "the the the the"];
        let scaler = Scaler::fit(&[Feature::The, Feature::Comma], &texts);
        assert_eq!((scaler.mean[0], scaler.present[0]), (1.0, 0.25));
        let z = |t: &str| scaler.scores(t);
        assert!((z("a")[0] + 1.0 / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(z(&"the ".repeat(30))[0], CLIP);
        assert_eq!(z("x, y, z")[1], 0.0); // commas never varied
    }
}
