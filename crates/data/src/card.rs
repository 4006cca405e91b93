//! `datasets/<name>/card.toml`: where a data set is from, and which of its columns means what.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::error::invalid;

/// A data set's description.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Short name.
    pub name: String,
    /// Where it comes from.
    pub source: String,
    /// Under which licence.
    pub licence: String,
    /// Its columns.
    pub layout: Layout,
}

/// The shape of the source's rows, with the names of its columns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Layout {
    /// Two answers as shown and a label that says which is better.
    Votes {
        /// Column of the user's id.
        user_id: String,
        /// Column of the prompt, a text.
        prompt: String,
        /// Column of a system instruction.
        system: Option<String>,
        /// Column of the answer shown first.
        response_a: String,
        /// Column of the answer shown second.
        response_b: String,
        /// Column of the label.
        label: String,
        /// The label's value where the first answer is better.
        label_a: String,
        /// The label's value where the second answer is better.
        label_b: String,
        /// The label's value for ties.
        label_tie: String,
        /// Column that says `train`, `dev` or `test`.
        split: Option<String>,
    },
    /// A better and a worse answer.
    Pairs {
        /// Column of the user's id.
        user_id: String,
        /// Column of the prompt, a text.
        prompt: String,
        /// Column of a system instruction.
        system: Option<String>,
        /// Column of the better answer.
        chosen: String,
        /// Column of the worse answer.
        rejected: String,
        /// Column that says `train`, `dev` or `test`.
        split: Option<String>,
    },
}

impl Card {
    /// Reads a card; an unknown key is an error.
    pub fn read(path: &Path) -> Result<Self> {
        toml::from_str(&fs_err::read_to_string(path)?).map_err(|e| {
            invalid(path.display(), "a data set card", e.to_string(), "datasets/simulated/card.toml is an example")
        })
    }
}
