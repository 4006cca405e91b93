//! Token rows, the frozen prefix of the network, and the two things that training reads off a row: the log-probability
//! of its answer and its pooled hidden state.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use crate::Lm;
use crate::bank::RowFactors;

/// One prompt with its answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenRow {
    /// Ids, `[T]`.
    pub ids: Vec<i64>,
    /// Index of the answer's first token.
    pub answer_start: usize,
}

impl From<text::Row> for TokenRow {
    fn from(row: text::Row) -> Self {
        Self { ids: row.ids, answer_start: row.answer_start }
    }
}

/// Tokens of one forward pass without gradients, padding included.
const PREFIX_TOKENS: usize = 4096;

/// Hidden states of distinct rows right below the first adapted block: nothing that training changes reaches them, so
/// they are computed once.
#[derive(Debug)]
pub struct Prefix {
    rows: Vec<TokenRow>,
    hidden: Vec<Tensor>, // [T, E] each, in the model's type
    first_block: usize,
}

impl Prefix {
    /// Runs the blocks below `first_block` over every row, in batches of similar length.
    pub fn new(lm: &Lm, rows: Vec<TokenRow>, first_block: usize, mut progress: impl FnMut(usize)) -> Self {
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|i| (rows[*i].ids.len(), *i));
        let mut hidden: Vec<Option<Tensor>> = (0..rows.len()).map(|_| None).collect();
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            let fits = |n: usize| rows[rest[n - 1]].ids.len() * n <= PREFIX_TOKENS;
            let take = (1..=rest.len()).take_while(|n| *n == 1 || fits(*n)).last().unwrap_or(1);
            let (batch, later) = rest.split_at(take);
            rest = later;
            let x = no_grad(|| {
                let ids = pad_ids(lm, batch.iter().map(|i| rows[*i].ids.as_slice()));
                lm.blocks(lm.embed(&ids), 0..first_block, &lm.rope_range(ids.size()[1]), None)
            });
            for (n, i) in batch.iter().enumerate() {
                hidden[*i] = Some(x.get(n as i64).narrow(0, 0, rows[*i].ids.len() as i64).copy());
            }
            progress(take);
        }
        Self { rows, hidden: hidden.into_iter().flatten().collect(), first_block }
    }

    /// The rows, in the order in which they are indexed.
    pub fn rows(&self) -> &[TokenRow] {
        &self.rows
    }

    /// Hidden states `[B, T, E]` behind all blocks, with the adapter, of the rows `batch`.
    fn finish(&self, lm: &Lm, batch: &[usize], adapter: Option<&RowFactors>) -> Tensor {
        let hidden: Vec<&Tensor> = batch.iter().map(|i| &self.hidden[*i]).collect();
        let x = Tensor::pad_sequence(&hidden, true, 0.0, "right"); // [B, T, E]
        let rope = lm.rope_range(x.size()[1]);
        lm.blocks(x, self.first_block..lm.depth(), &rope, adapter)
    }
}

/// Ids `[B, T]`, padded on the right with 0: causality and the answer's positions keep padding out of every result.
fn pad_ids<'a>(lm: &Lm, rows: impl Iterator<Item = &'a [i64]>) -> Tensor {
    let rows: Vec<Tensor> = rows.map(Tensor::from_slice).collect();
    Tensor::pad_sequence(&rows, true, 0.0, "right").to_device(lm.device)
}

/// Log-probability of each row's answer given its prompt, summed over answer tokens: `[B]`, float32.
///
/// The vocabulary projection is computed at answer tokens only.
pub fn answer_logp(lm: &Lm, prefix: &Prefix, batch: &[usize], adapter: Option<&RowFactors>) -> Tensor {
    let y = prefix.finish(lm, batch, adapter); // [B, T, E]
    let t_max = y.size()[1];
    let (mut positions, mut targets, mut owner) = (Vec::new(), Vec::new(), Vec::new());
    for (b, i) in batch.iter().enumerate() {
        let row = &prefix.rows[*i];
        // An answer's first token is predicted at the prompt's last; a row always has a prompt token (`answer_start > 0`).
        for t in row.answer_start.max(1)..row.ids.len() {
            positions.push(b as i64 * t_max + t as i64 - 1);
            targets.push(row.ids[t]);
            owner.push(b as i64);
        }
    }
    let index = |v: &[i64]| Tensor::from_slice(v).to_device(lm.device);
    let y = y.view([-1, lm.config.hidden_size]).index_select(0, &index(&positions)); // [N, E]
    let logits = lm.logits(&lm.final_norm(&y)).to_kind(Kind::Float); // [N, V]
    let chosen = logits.gather(1, &index(&targets).unsqueeze(1), false).squeeze_dim(1); // [N]
    let logp = chosen - logits.logsumexp(1, false);
    Tensor::zeros([batch.len() as i64], (Kind::Float, lm.device)).index_add(0, &index(&owner), &logp)
}

/// Which hidden states of a row a reward is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// The row's last token: the end of turn. What sequence classifiers do.
    Last,
    /// The mean over the answer's tokens.
    Mean,
}

/// The normed hidden state of each row, pooled: `[B, E]`, float32.
pub fn pooled_hidden(
    lm: &Lm,
    prefix: &Prefix,
    batch: &[usize],
    adapter: Option<&RowFactors>,
    pooling: Pooling,
) -> Tensor {
    let y = prefix.finish(lm, batch, adapter); // [B, T, E]
    let t_max = y.size()[1];
    let (mut positions, mut owner, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    for (b, i) in batch.iter().enumerate() {
        let row = &prefix.rows[*i];
        let end = row.ids.len();
        let start = if pooling == Pooling::Last { end - 1 } else { row.answer_start };
        for t in start..end {
            positions.push(b as i64 * t_max + t as i64);
            owner.push(b as i64);
            weights.push(1.0 / (end - start) as f32);
        }
    }
    let index = |v: &[i64]| Tensor::from_slice(v).to_device(lm.device);
    let e = lm.config.hidden_size;
    let y = lm.final_norm(&y.view([-1, e]).index_select(0, &index(&positions))).to_kind(Kind::Float); // [N, E]
    let weighted = y * Tensor::from_slice(&weights).to_device(lm.device).unsqueeze(1);
    Tensor::zeros([batch.len() as i64, e], (Kind::Float, lm.device)).index_add(0, &index(&owner), &weighted)
}

/// Logits `[T, V]` of one row, float32.
pub fn full_logits(lm: &Lm, ids: &[i64], adapter: Option<&RowFactors>) -> Tensor {
    no_grad(|| {
        let ids = pad_ids(lm, std::iter::once(ids));
        let x = lm.blocks(lm.embed(&ids), 0..lm.depth(), &lm.rope_range(ids.size()[1]), adapter);
        lm.logits(&lm.final_norm(&x)).squeeze_dim(0).to_kind(Kind::Float)
    })
}
