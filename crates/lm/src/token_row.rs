//! A text as tokens.

/// One prompt with its answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenRow {
    /// Ids, `[T]`.
    pub ids: Vec<i64>,
    /// Index of the answer's first token, at least 1.
    pub answer_start: usize,
}

impl TokenRow {
    /// Tokens of the answer that something predicts.
    pub fn answer_tokens(&self) -> usize {
        self.ids.len() - self.answer_start.max(1)
    }
}

impl From<text::Row> for TokenRow {
    fn from(row: text::Row) -> Self {
        Self { ids: row.ids, answer_start: row.answer_start }
    }
}
