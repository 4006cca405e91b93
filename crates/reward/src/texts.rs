//! Distinct (prompt, answer) texts of some votes as token rows, each tokenised and kept once.

use std::collections::HashMap;

use data::Vote;
use lm::TokenRow;
use text::{Ending, Message, Tokenizer};

use crate::{Error, Result};

/// Rows of distinct texts, and where each vote's two texts are among them.
#[derive(Debug, Default)]
pub struct Texts {
    /// One row for every distinct text.
    pub rows: Vec<TokenRow>,
    /// (chosen, rejected) of every vote, as indices of rows.
    pub votes: Vec<(usize, usize)>,
    /// Rows whose first answer token begins inside the prompt.
    pub straddling: usize,
}

impl Texts {
    /// Tokenises the texts of `votes`; a row over `max_row_tokens` is an error.
    pub fn new<'a>(
        tokenizer: &Tokenizer,
        votes: impl IntoIterator<Item = &'a Vote>,
        max_row_tokens: usize,
    ) -> Result<Self> {
        let mut out = Self::default();
        let mut known: HashMap<(&[Message], &str), usize> = HashMap::new();
        for vote in votes {
            let mut index = |answer: &'a str| -> Result<usize> {
                let key = (vote.prompt.as_slice(), answer);
                if let Some(i) = known.get(&key) {
                    return Ok(*i);
                }
                let row = tokenizer.row(&vote.prompt, answer, Ending::Finished)?;
                if row.ids.len() > max_row_tokens {
                    return Err(Error::Invalid {
                        place: vote.source_row.clone(),
                        expected: format!("at most {max_row_tokens} tokens of prompt and answer"),
                        found: row.ids.len().to_string(),
                        hint: "raise `max_row_tokens` or drop the row".into(),
                    });
                }
                out.straddling += usize::from(row.straddles);
                out.rows.push(row.into());
                known.insert(key, out.rows.len() - 1);
                Ok(out.rows.len() - 1)
            };
            let pair = (index(&vote.chosen)?, index(&vote.rejected)?);
            out.votes.push(pair);
        }
        Ok(out)
    }

    /// Tokens of a vote's two rows.
    pub fn tokens(&self, vote: usize) -> usize {
        let (chosen, rejected) = self.votes[vote];
        self.rows[chosen].ids.len() + self.rows[rejected].ids.len()
    }
}
