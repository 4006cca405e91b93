//! A model's sizes.

use crate::parts::Heads;

/// A model's sizes, whatever its family calls them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// V
    pub vocab_size: i64,
    /// E
    pub hidden_size: i64,
    /// Number of blocks.
    pub blocks: usize,
    pub(crate) heads: Heads,
    /// Longest context in tokens, where the configuration tells.
    pub max_positions: Option<i64>,
}
