//! The part of a card that describes a table of users.

use serde::{Deserialize, Serialize};

/// What the columns of a users table mean. Paths may have dots: fields of a struct.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UsersCard {
    /// Column of the user's id.
    pub user_id: String,
    /// Number columns: standardised, a missing value becomes the mean and is told by a column of its own.
    #[serde(default)]
    pub numeric: Vec<String>,
    /// Text columns: one number for each of the most frequent values, one for all others, one for a missing value.
    #[serde(default)]
    pub categorical: Vec<String>,
    /// Values of a text column that have numbers of their own.
    #[serde(default = "max_levels")]
    pub max_levels: usize,
    /// A column of lists of numbers, all of one length, taken as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding: Option<String>,
}

fn max_levels() -> usize {
    16
}
