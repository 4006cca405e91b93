//! Texts as vectors: what a frozen base makes of them in the middle, where linear rewards read best.

use data::Vote;
use lm::{Lm, Pooling, Prefix, RowCounts};
use problem::Result;
use text::{OverLong, Tokenizer};

use crate::Texts;

/// Distinct texts of some votes, embedded.
#[derive(Clone, Debug)]
pub struct Embedded {
    /// Hidden states behind a block, normed as the last block's are, pooled over the answer: one `[E]` a text.
    pub texts: Vec<Vec<f32>>,
    /// Characters of each text's answer.
    pub lengths: Vec<usize>,
    /// For each vote that was kept its index among those given, and the rows of its chosen and rejected text.
    pub votes: Vec<(usize, usize, usize)>,
    /// Rows left out or changed.
    pub rows: RowCounts,
}

/// Embeds the texts of votes behind block `depth` of the base.
///
/// # Errors
/// A text over the limit, where that is an error.
pub fn embed(
    lm: &Lm,
    tokenizer: &Tokenizer,
    votes: &[Vote],
    depth: usize,
    pooling: Pooling,
    (max_row_tokens, over_long): (usize, OverLong),
    mut progress: impl FnMut(usize, usize),
) -> Result<Embedded> {
    let texts = Texts::new(tokenizer, votes.iter().collect(), max_row_tokens, over_long)?;
    let count = texts.rows.len();
    let mut lengths = vec![0; count];
    let mut kept = Vec::new();
    let mut given = votes.iter().enumerate();
    for (vote, (chosen, rejected)) in texts.votes.iter().zip(&texts.pairs) {
        lengths[*chosen] = vote.chosen.chars().count();
        lengths[*rejected] = vote.rejected.chars().count();
        let (index, _) = given.find(|(_, v)| std::ptr::eq(*v, *vote)).expect("kept in order");
        kept.push((index, *chosen, *rejected));
    }
    let mut done = 0;
    let prefix = Prefix::new(lm, texts.rows, depth..depth, |n| {
        done += n;
        progress(done, count);
    })?;
    let all: Vec<usize> = (0..count).collect();
    let mut out = vec![Vec::new(); count];
    for groups in prefix.passes(&all) {
        let batch = prefix.batch(lm, &groups);
        let pooled = tch::no_grad(|| lm::pooled_hidden(lm, &batch, &lm::forward(lm, &batch, None), pooling));
        for (number, row) in groups.into_iter().flatten().enumerate() {
            out[row] = Vec::<f32>::try_from(pooled.get(number as i64)).expect("a vector of float32");
        }
    }
    Ok(Embedded { texts: out, lengths, votes: kept, rows: texts.counts })
}
