//! GPT-2: learnt positions, layer norms, weights stored as `[in, out]` (Radford et al. 2019).

use problem::Result;
use serde::Deserialize;
use tch::Tensor;

use super::checks;
use super::family::{Config, Family};
use crate::parts::{Activation, Heads, LayerNorm, Linear, Rope};
use crate::pass::Pass;
use crate::shape::Shape;
use crate::source::Scope;

/// `config.json`
#[derive(Debug, Deserialize)]
pub(super) struct Gpt2Config {
    vocab_size: i64,
    n_positions: i64,
    n_embd: i64,
    n_layer: usize,
    n_head: i64,
    n_inner: Option<i64>,
    layer_norm_epsilon: Option<f64>,
    activation_function: Option<String>,
    scale_attn_weights: Option<bool>,
    scale_attn_by_inverse_layer_idx: Option<bool>,
    tie_word_embeddings: Option<bool>,
}

impl Config for Gpt2Config {
    const BASE_PREFIX: &str = "transformer";
    const BUFFERS: &[&str] = &["attn.bias", "attn.masked_bias"];
    /// `reorder_and_upcast_attn` computes the same in another order, in float32: the same function.
    const OWN: &[&str] = &["scale_attn_weights", "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"];

    fn shape(&self, _place: &str) -> Result<Shape> {
        let size = self.n_embd / self.n_head.max(1);
        Ok(Shape {
            vocab_size: self.vocab_size,
            hidden_size: self.n_embd,
            blocks: self.n_layer,
            heads: Heads { queries: self.n_head, key_values: self.n_head, size },
            max_positions: Some(self.n_positions),
        })
    }

    fn build(self, weights: &Scope, shape: &Shape, place: &str) -> Result<Box<dyn Family>> {
        let (e, eps) = (self.n_embd, checks::epsilon(self.layer_norm_epsilon.unwrap_or(1e-5), place)?);
        checks::whole_heads(shape.heads, e, place)?;
        let inner = self.n_inner.unwrap_or(4 * e);
        let activation =
            Activation::named(self.activation_function.as_deref().unwrap_or("gelu_new"), "activation_function", place)?;
        let model = weights.pp("transformer");
        let wte = model.tensor("wte.weight", &[self.vocab_size, e])?;
        let wpe = model.tensor("wpe.weight", &[self.n_positions, e])?;
        let mut blocks = Vec::with_capacity(shape.blocks);
        for block in 0..shape.blocks {
            let h = model.block("h", block);
            blocks.push(Block {
                index: block,
                heads: shape.heads,
                scale: self.scale(block, shape.heads),
                ln_1: h.layer_norm("ln_1", e, eps)?,
                c_attn: h.pp("attn").conv1d("c_attn", e, 3 * e)?,
                c_proj: h.pp("attn").conv1d("c_proj", e, e)?,
                ln_2: h.layer_norm("ln_2", e, eps)?,
                c_fc: h.pp("mlp").conv1d("c_fc", e, inner)?,
                mlp_c_proj: h.pp("mlp").conv1d("c_proj", inner, e)?,
                activation,
            });
        }
        let ln_f = model.layer_norm("ln_f", e, eps)?;
        let tied = self.tie_word_embeddings.unwrap_or(true).then_some(&wte);
        let lm_head = weights.head("lm_head", tied, e, self.vocab_size, false)?;
        Ok(Box::new(Gpt2 { wte, wpe, blocks, ln_f, lm_head }))
    }
}

impl Gpt2Config {
    /// What a block's scores of attention are multiplied by: `1 / sqrt(D)`, unless the configuration says otherwise.
    fn scale(&self, block: usize, heads: Heads) -> f64 {
        let of_size = if self.scale_attn_weights.unwrap_or(true) { (heads.size as f64).powf(-0.5) } else { 1.0 };
        let by_block = self.scale_attn_by_inverse_layer_idx.unwrap_or(false);
        if by_block { of_size / (block as f64 + 1.0) } else { of_size }
    }
}

#[derive(Debug)]
struct Block {
    index: usize,
    heads: Heads,
    /// What scores of attention are multiplied by.
    scale: f64,
    ln_1: LayerNorm,
    c_attn: Linear,
    c_proj: Linear,
    ln_2: LayerNorm,
    c_fc: Linear,
    mlp_c_proj: Linear,
    activation: Activation,
}

#[derive(Debug)]
struct Gpt2 {
    wte: Tensor, // [V, E]
    wpe: Tensor, // [positions, E]
    blocks: Vec<Block>,
    ln_f: LayerNorm,
    lm_head: Linear,
}

impl Family for Gpt2 {
    fn embed(&self, ids: &Tensor, positions: &Tensor) -> Tensor {
        let look_up = |table: &Tensor, index: &Tensor| Tensor::embedding(table, index, -1, false, false);
        look_up(&self.wte, ids) + look_up(&self.wpe, positions)
    }

    fn ropes(&self, _positions: &Tensor) -> Vec<Rope> {
        vec![]
    }

    fn block(&self, index: usize, x: &Tensor, pass: &Pass) -> Tensor {
        let b = &self.blocks[index];
        let n = x.size()[0];
        let qkv = b.c_attn.forward(&b.ln_1.forward(x), pass).view([n, 3, b.heads.queries, b.heads.size]);
        let part = |i: i64| qkv.select(1, i); // [N, H, D]
        let attended = pass.attend(b.index, &part(0), &part(1), &part(2), Some(b.scale), None);
        let x = x + b.c_proj.forward(&attended, pass);
        let h = b.activation.apply(&b.c_fc.forward(&b.ln_2.forward(&x), pass));
        x + b.mlp_c_proj.forward(&h, pass)
    }

    fn final_norm(&self, x: &Tensor) -> Tensor {
        self.ln_f.forward(x)
    }

    fn head(&self) -> &Linear {
        &self.lm_head
    }
}
