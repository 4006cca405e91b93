//! Splits by prompt: no prompt stands on two sides.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use text::Message;

/// Which part a vote belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// To learn from.
    Train,
    /// To choose settings by.
    Dev,
    /// To report, looked at last.
    Test,
}

impl Split {
    /// `train`, `dev`, `test`
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Dev => "dev",
            Self::Test => "test",
        }
    }

    /// The split of this name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Train, Self::Dev, Self::Test].into_iter().find(|s| s.name() == name)
    }
}

/// Where a vote's split comes from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SplitRule {
    /// The column that the card names.
    Column,
    /// By a hash of the prompt: independent of the order of rows and of file sharding.
    Prompt {
        /// Share of prompts for `dev`.
        dev: f64,
        /// Share of prompts for `test`.
        test: f64,
    },
}

/// What two prompts must share to count as one: roles and letters, whatever case, marks and spaces.
pub(crate) fn normalised(prompt: &[Message]) -> String {
    let mut out = String::new();
    for message in prompt.iter().filter(|m| m.role != "system") {
        out.push_str(&message.role);
        for word in message.content.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()) {
            out.push(' ');
            out.push_str(&word.to_lowercase());
        }
        out.push('\n');
    }
    out
}

/// The split of a prompt by hash.
pub(crate) fn by_prompt(prompt: &[Message], seed: u64, dev: f64, test: f64) -> Split {
    let mut hash = Sha256::new();
    hash.update(seed.to_le_bytes());
    hash.update(normalised(prompt).as_bytes());
    let head: [u8; 8] = hash.finalize()[..8].try_into().expect("32 bytes");
    let share = u64::from_le_bytes(head) as f64 / u64::MAX as f64;
    if share < test {
        Split::Test
    } else if share < test + dev {
        Split::Dev
    } else {
        Split::Train
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_duplicates_fall_on_one_side_and_shares_are_met() {
        let at = |text: &str| by_prompt(&[Message::user(text)], 7, 0.1, 0.3);
        let same = |a: &str, b: &str| normalised(&[Message::user(a)]) == normalised(&[Message::user(b)]);
        assert!(same("How are you?", "  how ARE you") && !same("How are you?", "How is she?"));
        assert_eq!(at("How are you?"), at("  how ARE you"));
        let n = 4000;
        let test = (0..n).filter(|i| at(&format!("prompt {i}")) == Split::Test).count() as f64 / f64::from(n);
        let dev = (0..n).filter(|i| at(&format!("prompt {i}")) == Split::Dev).count() as f64 / f64::from(n);
        assert!((test - 0.3).abs() < 0.03 && (dev - 0.1).abs() < 0.02, "{test} {dev}"); // errors .007, .005
    }
}
