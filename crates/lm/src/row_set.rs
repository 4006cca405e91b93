//! Distinct (prompt, answer) texts as token rows, each tokenised, held against the limit and kept once.

use std::collections::HashMap;

use problem::Result;
use text::{Ending, Fitted, Message, OverLong, RowCounts, Tokenizer};

use crate::TokenRow;

/// Rows of distinct texts.
#[derive(Debug)]
pub struct RowSet<'a> {
    tokenizer: &'a Tokenizer,
    max_tokens: usize,
    over_long: OverLong,
    /// The rows, in the order in which they came.
    pub rows: Vec<TokenRow>,
    /// What was left out or changed.
    pub counts: RowCounts,
    known: HashMap<(&'a [Message], &'a str, Ending), Option<usize>>,
}

impl<'a> RowSet<'a> {
    /// An empty set; rows of more than `max_tokens`, or of more tokens than the model has positions for, follow `over_long`.
    pub fn new(tokenizer: &'a Tokenizer, max_tokens: usize, over_long: OverLong) -> Self {
        Self { tokenizer, max_tokens, over_long, rows: Vec::new(), counts: RowCounts::default(), known: HashMap::new() }
    }

    /// The index of this text's row; none if it is left out. `place` names it in an error.
    pub fn index(
        &mut self,
        prompt: &'a [Message],
        answer: &'a str,
        ending: Ending,
        place: impl FnOnce() -> String,
    ) -> Result<Option<usize>> {
        if let Some(known) = self.known.get(&(prompt, answer, ending)) {
            return Ok(*known);
        }
        let row = self.tokenizer.row(prompt, answer, ending)?;
        let straddles = row.straddles;
        let row = match self.tokenizer.fit(row, self.max_tokens, self.over_long).map_err(|e| e.within(place()))? {
            Fitted::Whole(row) => Some(row),
            Fitted::Truncated(row) => {
                self.counts.truncated += 1;
                Some(row)
            }
            Fitted::Dropped => {
                self.counts.dropped += 1;
                None
            }
        };
        let index = row.map(|row| {
            self.counts.straddling += usize::from(straddles);
            self.rows.push(row.into());
            self.rows.len() - 1
        });
        self.known.insert((prompt, answer, ending), index);
        Ok(index)
    }
}
