//! What training reads off hidden states: the log-probability of a row's answer, and its pooled hidden state.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use crate::adapters::RowFactors;
use crate::cpu::fused::{self, Logits};
use crate::layout::{Layout, Tree};
use crate::rows::Batch;
use crate::token_row::TokenRow;
use crate::{Bank, Lm, Place};

/// Tokens whose logits exist at one time: `[B, T, V]` never does.
const CHUNK_TOKENS: i64 = 512;

/// Log-probability of each row's answer given its prompt, summed over answer tokens: `[rows]`, float32.
///
/// `hidden` `[N, E]` is what the last block gave. The vocabulary projection is computed at answer tokens only.
pub fn answer_logp(lm: &Lm, batch: &Batch, hidden: &Tensor) -> Tensor {
    let owner = batch.answer_lengths().iter().enumerate().flat_map(|(r, n)| vec![r as i64; *n]).collect::<Vec<_>>();
    let logp = answer_token_logp(lm, batch, hidden, 1.0); // [M]
    let zeros = Tensor::zeros([batch.rows.len() as i64], (Kind::Float, lm.device));
    zeros.index_add(0, &Tensor::from_slice(&owner).to_device(lm.device), &logp)
}

/// Log-probability of each answer token of each row under logits divided by `temperature`: `[M]`, float32, M counted by
/// [`Batch::answer_lengths`].
pub fn answer_token_logp(lm: &Lm, batch: &Batch, hidden: &Tensor, temperature: f64) -> Tensor {
    let targets: Vec<i64> =
        batch.rows.iter().flat_map(|(row, _)| &row.ids[row.answer_start.max(1)..]).copied().collect();
    let normed = answer_hidden(lm, batch, hidden);
    let normed = if temperature == 1.0 { normed } else { normed / temperature }; // logits are linear in it
    token_logp(lm, &normed, &Tensor::from_slice(&targets).to_device(lm.device))
}

/// The normed hidden state `[M, E]` from which each answer token is predicted, in the model's type: the state in which the token is
/// an action.
pub fn answer_hidden(lm: &Lm, batch: &Batch, hidden: &Tensor) -> Tensor {
    // An answer's first token is predicted at the prompt's last; a row always has a prompt token.
    let before = |(row, at): &(TokenRow, Vec<i64>)| at[row.answer_start.max(1) - 1..row.ids.len() - 1].to_vec();
    let places: Vec<i64> = batch.rows.iter().flat_map(before).collect();
    lm.final_norm(&hidden.index_select(0, &Tensor::from_slice(&places).to_device(lm.device)))
}

/// Logits `[N, V]`, in the model's type, of hidden states `[N, E]` behind the last block.
pub fn logits_of(lm: &Lm, hidden: &Tensor) -> Tensor {
    lm.logits(&lm.final_norm(hidden))
}

/// Log-probability of each target `[M]` under the logits of normed hidden states `[M, E]`: `[M]`, float32.
///
/// With gradients, a chunk's derivative with respect to its hidden states, `(onehot - softmax) W`, is computed beside its value while its logits exist:
/// one vector of E numbers a token is kept instead of one of V. In a narrow type 1 is subtracted from the target's probability in float32, before it is
/// rounded: near 1 the difference of rounded numbers would be 0, and learning would stop.
pub fn token_logp(lm: &Lm, hidden: &Tensor, targets: &Tensor) -> Tensor {
    let m = hidden.size()[0];
    let (frozen, trained) = (hidden.detach(), hidden.requires_grad());
    let (mut values, mut slopes) = (Vec::new(), Vec::new());
    no_grad(|| {
        for start in (0..m).step_by(CHUNK_TOKENS as usize) {
            let len = CHUNK_TOKENS.min(m - start);
            let (h, target) = (frozen.narrow(0, start, len), targets.narrow(0, start, len).unsqueeze(1));
            let mut p = lm.logits(&h); // [C, V]
            let narrow = p.kind() != Kind::Float;
            let logits = match (trained, narrow) {
                (false, _) => Logits::Stay,
                (true, false) => Logits::Probabilities,
                (true, true) => Logits::LessTarget,
            };
            let log_softmax = if fused::fits(&p) { fused::log_softmax_into } else { fused::plain_log_softmax_into };
            values.push(log_softmax(&mut p, &target.squeeze_dim(1), logits));
            if trained && narrow {
                slopes.push(-p.matmul(lm.head_weight())); // [C, E]
            } else if trained {
                let own = lm.head_weight().index_select(0, &target.squeeze_dim(1));
                slopes.push(own - p.matmul(lm.head_weight()));
            }
        }
    });
    let value = Tensor::cat(&values, 0); // [M]
    if !trained {
        return value;
    }
    // The value of a constant, with the slope of a line through it.
    let line = (hidden - frozen) * Tensor::cat(&slopes, 0);
    value + line.to_kind(Kind::Float).sum_dim_intlist(1, false, Kind::Float)
}

/// Which hidden states of a row a reward is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// The row's last token: the end of turn. What sequence classifiers do.
    Last,
    /// The mean over the answer's tokens.
    Mean,
}

/// The normed hidden state of each row, pooled: `[rows, E]`, float32.
pub fn pooled_hidden(lm: &Lm, batch: &Batch, hidden: &Tensor, pooling: Pooling) -> Tensor {
    let (mut places, mut owner, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    for (r, (row, at)) in batch.rows.iter().enumerate() {
        let start = if pooling == Pooling::Last { row.ids.len() - 1 } else { row.answer_start };
        for place in &at[start..] {
            places.push(*place);
            owner.push(r as i64);
            weights.push(1.0 / (at.len() - start) as f32);
        }
    }
    let index = |v: &[i64]| Tensor::from_slice(v).to_device(lm.device);
    let y = lm.final_norm(&hidden.index_select(0, &index(&places))).to_kind(Kind::Float); // [M, E]
    let weighted = y * Tensor::from_slice(&weights).to_device(lm.device).unsqueeze(1);
    let zeros = Tensor::zeros([batch.rows.len() as i64, lm.shape.hidden_size], (Kind::Float, lm.device));
    zeros.index_add(0, &index(&owner), &weighted)
}

/// Hidden states behind the last block without gradients, `[N, E]`.
pub fn forward(lm: &Lm, batch: &Batch, adapter: Option<&RowFactors>) -> Tensor {
    no_grad(|| {
        let pass = lm.over(&batch.layout, adapter, None);
        lm.blocks(batch.x.shallow_clone(), batch.blocks.clone(), &pass)
    })
}

/// Logits `[T, V]` of one row, float32.
pub fn full_logits(lm: &Lm, ids: &[i64], adapter: Option<(&Bank, Place)>) -> Tensor {
    let last = hidden_states(lm, ids, adapter).pop().expect("the embedding at least");
    no_grad(|| lm.logits(&last).to_kind(Kind::Float))
}

/// Hidden states of one row, `[T, E]` each: the embedding's, then behind every block, the last one normed (as
/// transformers' `output_hidden_states` gives them).
pub fn hidden_states(lm: &Lm, ids: &[i64], adapter: Option<(&Bank, Place)>) -> Vec<Tensor> {
    no_grad(|| {
        let tree = Tree::new(&[ids]);
        let layout = Layout::new(&[&tree], 1, lm.kind, lm.device);
        let factors = adapter.map(|(bank, user)| bank.rows(&[user], &[ids.len()]));
        let pass = lm.over(&layout, factors.as_ref(), None);
        let mut states = vec![lm.embed(ids, &layout.positions)];
        for block in 0..lm.depth() {
            states.push(lm.blocks(states[block].shallow_clone(), block..block + 1, &pass));
        }
        let last = states.pop().expect("the embedding at least");
        states.push(lm.final_norm(&last));
        states
    })
}
