//! The texts of some votes as token rows.

use data::Vote;
use lm::{RowCounts, RowSet, TokenRow};
use problem::Result;
use text::{Ending, OverLong, Tokenizer};

/// Rows of distinct texts, and where each vote's two texts are among them.
#[derive(Debug)]
pub(crate) struct Texts<'a> {
    /// One row for every distinct text.
    pub(crate) rows: Vec<TokenRow>,
    /// Votes with both rows within the limit ...
    pub(crate) votes: Vec<&'a Vote>,
    /// ... and their (chosen, rejected), as indices of rows.
    pub(crate) pairs: Vec<(usize, usize)>,
    /// Rows left out or changed.
    pub(crate) counts: RowCounts,
}

/// Refuses votes whose rows are over the limit, before any work: those on which the model is judged are read only when it is fitted.
///
/// # Errors
/// A row over the limit where that is an error.
pub fn refuse_long<'a>(
    tokenizer: &'a Tokenizer,
    votes: impl Iterator<Item = &'a Vote>,
    max_row_tokens: usize,
    over_long: OverLong,
) -> Result<()> {
    if over_long == OverLong::Drop {
        return Ok(()); // no row is an error
    }
    Texts::new(tokenizer, votes.collect(), max_row_tokens, over_long).map(drop)
}

impl<'a> Texts<'a> {
    /// Tokenises the texts of `votes`; a vote one of whose rows is left out is left out.
    pub(crate) fn new(
        tokenizer: &'a Tokenizer,
        votes: Vec<&'a Vote>,
        max_row_tokens: usize,
        over_long: OverLong,
    ) -> Result<Self> {
        let mut set = RowSet::new(tokenizer, max_row_tokens, over_long);
        let (mut kept, mut pairs) = (Vec::new(), Vec::new());
        for vote in votes {
            let mut index =
                |answer: &'a str, ending: Ending| set.index(&vote.prompt, answer, ending, || vote.source_row.clone());
            let chosen = index(&vote.chosen, vote.chosen_ending())?;
            let rejected = index(&vote.rejected, vote.rejected_ending())?;
            if let Some(pair) = chosen.zip(rejected) {
                kept.push(vote);
                pairs.push(pair);
            }
        }
        Ok(Self { rows: set.rows, votes: kept, pairs, counts: set.counts })
    }

    /// Tokens of a vote's two rows.
    pub(crate) fn tokens(&self, vote: usize) -> usize {
        let (chosen, rejected) = self.pairs[vote];
        self.rows[chosen].ids.len() + self.rows[rejected].ids.len()
    }
}
