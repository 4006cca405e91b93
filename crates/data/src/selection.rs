//! Which votes are kept, how they are split, and what is said of it afterwards.

use std::collections::BTreeMap;

use problem::{Result, invalid};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Card, Leakage, SplitRule, Whole};

/// What becomes of a row that is not as the card says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BadRows {
    /// Ingestion ends with the row's place.
    #[default]
    Error,
    /// It is left out and counted.
    Drop,
}

/// What becomes of a vote that repeats another of the same user on the same texts with the same choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Duplicates {
    /// It counts again.
    #[default]
    Keep,
    /// It is left out and counted.
    Drop,
}

/// Which votes are kept, and how they are split.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// Users with fewer decided training votes are dropped and counted (with held-out users: fewer decided votes). Votes of weight 0 are no votes.
    pub min_votes: usize,
    /// Where the split comes from.
    pub split: SplitRule,
    /// Is a dropped user an error?
    pub strict: bool,
    /// Only so many users, those with the most decided training votes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_users: Option<usize>,
    /// In every split, all users are cut to the votes of the one with the fewest.
    #[serde(default)]
    pub equalise: bool,
    /// Users' shares go as their votes to the power `1 / user_temperature`: 1 keeps all, larger is more equal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_temperature: Option<f64>,
    /// No more votes of a user in any split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_votes_per_user: Option<usize>,
    /// What becomes of a row that is not as the card says.
    #[serde(default)]
    pub bad_rows: BadRows,
    /// What becomes of repeated votes.
    #[serde(default)]
    pub duplicates: Duplicates,
}

impl Selection {
    /// All votes of all users.
    pub fn all(split: SplitRule) -> Self {
        Self {
            min_votes: 0,
            split,
            strict: false,
            top_users: None,
            equalise: false,
            user_temperature: None,
            max_votes_per_user: None,
            bad_rows: BadRows::Error,
            duplicates: Duplicates::Keep,
        }
    }

    /// Do fates depend on a user's other votes, or on all prompts?
    pub(crate) fn needs_facts(&self) -> bool {
        let by_row = matches!(self.split, SplitRule::Column | SplitRule::Prompt { .. } | SplitRule::Group { .. });
        let shares = self.equalise || self.user_temperature.is_some() || self.max_votes_per_user.is_some();
        !by_row || shares || self.duplicates == Duplicates::Drop
    }

    pub(crate) fn check(&self, card: &Card) -> Result<()> {
        let place = "the selection";
        if let Some(found) = self.split.problem() {
            let hint = "shares lie between 0 and 1 and add up to 1 at most; folds count from 0";
            return Err(invalid(place, "a split that can be", found, hint));
        }
        if self.user_temperature.is_some_and(|t| t.is_nan() || t < 1.0) {
            let found = format!("{:?}", self.user_temperature);
            return Err(invalid(place, "a user_temperature of at least 1", found, "1 keeps every vote"));
        }
        let by_file = !card.columns.split_files.is_empty();
        if self.split == SplitRule::Column && card.columns.split.is_none() && !by_file {
            let hint = "name it under [columns] in the card, or split by prompt: `split = { by = \"prompt\", dev = 0.1, test = 0.2 }`";
            return Err(invalid(format!("card `{}`", card.name), "a column with the split", "none", hint));
        }
        let over_groups = matches!(self.split, SplitRule::Group { .. } | SplitRule::Folds { over: Whole::Group, .. });
        if over_groups && card.columns.group.is_none() {
            let hint = "name `group` under [columns] in the card";
            return Err(invalid(format!("card `{}`", card.name), "a column with the group", "none", hint));
        }
        Ok(())
    }
}

/// Counts of everything, kept and dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Files of the source.
    pub files: usize,
    /// Rows of the source.
    pub rows: usize,
    /// Votes that the rows make: a ranking makes several.
    pub votes: usize,
    /// Votes kept, ties included.
    pub kept: usize,
    /// Of these, ties.
    pub ties: usize,
    /// Users kept.
    pub users: usize,
    /// Users below the minimum, with their decided training votes.
    pub dropped_users: BTreeMap<String, usize>,
    /// Users all of whose votes weigh 0, with the number of these votes: they are left out.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub users_without_weight: BTreeMap<String, usize>,
    /// Users that others of the top left no place for.
    pub users_beyond_the_top: usize,
    /// Votes dropped, by reason.
    pub dropped: BTreeMap<String, usize>,
    /// Votes kept, by split.
    pub splits: BTreeMap<String, usize>,
    /// Distinct prompts, by split; near-duplicates count as one.
    pub prompts: BTreeMap<String, usize>,
    /// What stands on two sides: nothing, or ingestion fails.
    pub leakage: Leakage,
    /// Columns of the source that nothing reads, sorted.
    #[serde(default)]
    pub unused_columns: Vec<String>,
    /// Sentences on columns that may be missed: those that look usable, and those that only some files have.
    #[serde(default)]
    pub column_notes: Vec<String>,
    /// What was decided from the files and values themselves: separators, units of times, messages written as text, files left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}
