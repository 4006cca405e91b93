//! The response filter: what no user's preference can buy.

use problem::{Result, invalid};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Responses that no policy is to give. They score below every other response that the rewards can tell apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Guard {
    /// No floor.
    Off,
    /// A floor.
    On {
        /// Phrases, whatever their case; as whole words.
        blocked: Vec<String>,
        /// Fewer words than this are no response.
        least_words: usize,
    },
}

impl Guard {
    /// Is this a response that the guard lets pass?
    pub fn passes(&self, text: &str) -> bool {
        match self {
            Self::Off => true,
            Self::On { blocked, least_words } => {
                let said = words(text);
                said.len() >= *least_words
                    && !blocked.iter().any(|phrase| {
                        let phrase = words(phrase);
                        said.windows(phrase.len()).any(|w| w == phrase)
                    })
            }
        }
    }

    /// Refuses phrases without a word, which would block everything.
    pub fn check(&self, place: &str) -> Result<()> {
        match self {
            Self::On { blocked, .. } if blocked.iter().any(|p| words(p).is_empty()) => Err(invalid(
                format!("{place}, `guard.blocked`"),
                "phrases of at least one word",
                "one without",
                "remove it",
            )),
            _ => Ok(()),
        }
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|w| !w.is_empty()).map(str::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrases_are_found_as_words_in_any_case() {
        let guard = Guard::On { blocked: vec!["drink bleach".into(), "idiot".into()], least_words: 1 };
        assert!(guard.passes("Bleach is no drink."));
        assert!(!guard.passes("Just DRINK\nbleach!"));
        assert!(guard.passes("idiotic"));
        assert!(!guard.passes("You, idiot."));
        assert!(!guard.passes("  "));
        assert!(Guard::Off.passes(""));
        assert!(Guard::On { blocked: vec!["!".into()], least_words: 0 }.check("ppo").is_err());
    }
}
