//! What the blocks of one forward pass share: where the tokens lie, rotary embeddings, adapters, the cache.

use std::cell::RefCell;

use tch::Tensor;

use crate::adapters::RowFactors;
use crate::cache::Cache;
use crate::cpu::fused;
use crate::layout::Layout;
use crate::parts::Rope;

/// Where a pass's tokens are.
#[derive(Debug)]
pub(crate) enum Tokens<'a> {
    /// Whole sequences, from their first token.
    Sequences(&'a Layout),
    /// One new token a row; everything before it is in the cache.
    Next,
}

/// One forward pass.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    pub(crate) tokens: Tokens<'a>,
    pub(crate) ropes: Vec<Rope>,
    pub(crate) adapter: Option<&'a RowFactors>,
    pub(crate) cache: Option<&'a RefCell<Cache>>,
}

impl Pass<'_> {
    /// Attention of queries `[N, H, D]` over keys and values `[N, KVH, D]` of block `block`, `[N, H * D]`. Scores are
    /// scaled by `scale`, `1 / sqrt(D)` unless given; a query sees the last `window` tokens, itself included.
    pub(crate) fn attend(
        &self,
        block: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        scale: Option<f64>,
        window: Option<i64>,
    ) -> Tensor {
        if let Some(cache) = self.cache {
            cache.borrow_mut().write(block, k, v);
        }
        match (&self.tokens, self.cache) {
            (Tokens::Sequences(layout), _) if fused::attends(q) => {
                let (n, _, d) = q.size3().expect("three axes");
                let scale = scale.unwrap_or_else(|| (d as f64).powf(-0.5));
                fused::attention(q, k, v, &layout.spans, layout.seen(window), scale).view([n, -1])
            }
            (Tokens::Sequences(layout), _) => {
                let groups = q.size()[1] / k.size()[1];
                let (q, k, v) = (layout.spread(q), layout.spread(k), layout.spread(v));
                let mask = layout.mask(window);
                let (k, v) = (repeat_heads(k, groups), repeat_heads(v, groups));
                let causal = mask.is_none();
                let y = Tensor::scaled_dot_product_attention(&q, &k, &v, mask.as_ref(), 0.0, causal, scale, false);
                layout.gather(&y)
            }
            (Tokens::Next, Some(cache)) => cache.borrow().attend(block, q, scale, window),
            (Tokens::Next, None) => unreachable!("decoding has a cache"),
        }
    }
}

/// `[B, KVH, T, D]` to `[B, KVH * groups, T, D]`, each head repeated.
fn repeat_heads(x: Tensor, groups: i64) -> Tensor {
    if groups == 1 {
        return x;
    }
    let (b, h, t, d) = x.size4().expect("four axes");
    x.unsqueeze(2).expand([b, h, groups, t, d], false).reshape([b, h * groups, t, d])
}
