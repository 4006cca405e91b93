//! What simulated annotators truly prefer, and the prompts that they are asked about.

use std::collections::BTreeMap;
use std::path::Path;

use problem::{Result, invalid};
use serde::{Deserialize, Serialize};
use text::{Answer, Message};

use crate::rater::truth;
use crate::style::Scaler;

/// The prompts file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompts {
    /// To learn from.
    pub train: Vec<String>,
    /// To mend by.
    pub dev: Vec<String>,
    /// To report, looked at last.
    pub held_out: Vec<String>,
}

impl Prompts {
    /// Reads the file; a prompt that stands twice is an error.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |expected: &str, found: String| {
            invalid(path.display().to_string(), expected, found, "datasets/everyday/prompts.toml is an example")
        };
        let text = fs_err::read_to_string(path)?;
        let prompts: Self =
            toml::from_str(&text).map_err(|e| wrong("the lists `train`, `dev` and `held_out`", e.to_string()))?;
        let mut seen = std::collections::HashSet::new();
        for prompt in prompts.train.iter().chain(&prompts.dev).chain(&prompts.held_out) {
            if !seen.insert(prompt.to_lowercase()) {
                return Err(wrong("every prompt once", format!("`{prompt}` twice")));
            }
        }
        if [&prompts.train, &prompts.dev, &prompts.held_out].iter().any(|list| list.is_empty()) {
            return Err(wrong("prompts in every list", "an empty list".into()));
        }
        Ok(prompts)
    }

    /// A prompt as a conversation.
    pub fn conversation(system: Option<&str>, prompt: &str) -> Vec<Message> {
        system.map(Message::system).into_iter().chain([Message::user(prompt)]).collect()
    }
}

/// `truth.json`: all that decides what a rater thinks of a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Truth {
    /// Features, standardised on the base's training samples.
    pub scaler: Scaler,
    /// Weights by rater.
    pub raters: BTreeMap<String, Vec<f64>>,
    /// Bradley-Terry scale of the votes.
    pub scale: f64,
    /// System instruction in front of every prompt.
    pub system: Option<String>,
    /// All prompts.
    pub prompts: Prompts,
}

impl Truth {
    /// What `rater` truly thinks of a text.
    pub fn of(&self, rater: &str, text: &str) -> Option<f64> {
        Some(truth(self.raters.get(rater)?, &self.scaler.scores(text)))
    }
}

/// What every user thinks of the answers to each prompt: `[user][prompt][answer]`.
pub type Rates = Vec<Vec<Vec<f64>>>;

impl Truth {
    /// What each of `users`, raters, truly thinks of answers `[prompt][answer]`.
    pub fn rates(&self, users: &[String], answers: &[Vec<Answer>]) -> Rates {
        let think = |user: &String, a: &Answer| self.of(user, &a.text).unwrap_or_default();
        let of_user = |u: &String| answers.iter().map(|list| list.iter().map(|a| think(u, a)).collect()).collect();
        users.iter().map(of_user).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_in_two_lists_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), "train = ['a', 'b']\ndev = ['c']\nheld_out = ['B']").unwrap();
        assert!(Prompts::read(file.path()).unwrap_err().to_string().contains("`B` twice"));
    }
}
