//! Grouped-query attention with rotary positions.

use tch::Tensor;

use crate::parts::{Linear, RmsNorm};
use crate::pass::Pass;

/// Numbers of heads, and their size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heads {
    /// H
    pub(crate) queries: i64,
    /// Heads of keys and values; a divisor of H.
    pub(crate) key_values: i64,
    /// D
    pub(crate) size: i64,
}

/// Attention of one block.
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) block: usize,
    pub(crate) heads: Heads,
    /// Queries, keys and values.
    pub(crate) qkv: Linear,
    /// Norms of each head's queries and keys.
    pub(crate) norms: Option<(RmsNorm, RmsNorm)>,
    pub(crate) o: Linear,
    /// `1 / sqrt(D)` unless given.
    pub(crate) scale: Option<f64>,
    /// A query sees so many tokens, itself included.
    pub(crate) window: Option<i64>,
    /// Which of the pass's rotary embeddings.
    pub(crate) rope: usize,
}

impl Attention {
    pub(crate) fn forward(&self, x: &Tensor, pass: &Pass) -> Tensor {
        let n = x.size()[0];
        let outputs = self.qkv.forward_all(x, pass);
        let heads = |i: usize| outputs[i].view([n, -1, self.heads.size]); // [N, H, D]
        let (mut q, mut k, v) = (heads(0), heads(1), heads(2));
        if let Some((q_norm, k_norm)) = &self.norms {
            (q, k) = (q_norm.forward(&q), k_norm.forward(&k));
        }
        let rope = &pass.ropes[self.rope];
        let attended = pass.attend(self.block, &rope.apply(&q), &rope.apply(&k), &v, self.scale, self.window);
        self.o.forward(&attended, pass)
    }
}
