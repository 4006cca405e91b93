//! What a set of token rows left out or changed, for reports.

use serde::{Deserialize, Serialize};

/// What a set of rows left out or changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowCounts {
    /// Rows over the limit, left out.
    pub dropped: usize,
    /// Rows whose prompt lost its first tokens.
    pub truncated: usize,
    /// Rows whose first answer token begins inside the prompt.
    pub straddling: usize,
}

impl std::fmt::Display for RowCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { dropped, truncated, straddling } = self;
        write!(f, "rows over the limit: {dropped} dropped, {truncated} cut; straddling the boundary: {straddling}")
    }
}
