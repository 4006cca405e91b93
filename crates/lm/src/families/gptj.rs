//! GPT-J: rotary pairs that lie side by side, one norm for attention and MLP, which run in parallel (Wang and Komatsuzaki
//! 2021). P-ShareLoRA's base.

use problem::Result;
use serde::Deserialize;
use tch::Tensor;

use super::checks;
use super::family::{Config, Family};
use crate::parts::{Activation, Heads, LayerNorm, Linear, Positions, Rope, RopeConfig, Rotary, Style};
use crate::pass::Pass;
use crate::shape::Shape;
use crate::source::Scope;

/// `config.json`
#[derive(Debug, Deserialize)]
pub(super) struct GptJConfig {
    vocab_size: i64,
    n_positions: i64,
    n_embd: i64,
    n_layer: usize,
    n_head: i64,
    n_inner: Option<i64>,
    rotary_dim: Option<i64>,
    layer_norm_epsilon: Option<f64>,
    activation_function: Option<String>,
    #[serde(default)]
    tie_word_embeddings: bool,
}

impl Config for GptJConfig {
    const BASE_PREFIX: &str = "transformer";
    const DEFAULTS: &[(&str, i64)] = &[("rotary_dim", 64)];
    const OWN: &[&str] = &["rotary_dim"];
    const BUFFERS: &[&str] = &["attn.bias", "attn.masked_bias", "attn.embed_positions"];

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
        let mut blocks = Vec::with_capacity(shape.blocks);
        for block in 0..shape.blocks {
            let h = model.block("h", block);
            let (attention, mlp) = (h.pp("attn"), h.pp("mlp"));
            blocks.push(Block {
                index: block,
                heads: shape.heads,
                ln_1: h.layer_norm("ln_1", e, eps)?,
                qkv: Linear::together(vec![
                    attention.linear("q_proj", e, e, false)?,
                    attention.linear("k_proj", e, e, false)?,
                    attention.linear("v_proj", e, e, false)?,
                ]),
                out_proj: attention.linear("out_proj", e, e, false)?,
                fc_in: mlp.linear("fc_in", e, inner, true)?,
                fc_out: mlp.linear("fc_out", inner, e, true)?,
                activation,
            });
        }
        let ln_f = model.layer_norm("ln_f", e, eps)?;
        let tied = self.tie_word_embeddings.then_some(&wte);
        let lm_head = weights.head("lm_head", tied, e, self.vocab_size, true)?;
        let rotated = checks::rotated(self.rotary_dim.unwrap_or(shape.heads.size), shape.heads, place)?;
        let of = Positions { rotated, default_theta: 10_000.0, most: shape.max_positions, place };
        let frequencies = RopeConfig::default().frequencies(of, weights.device())?;
        let rotary = Rotary::new(frequencies, Style::Interleaved, weights.kind());
        Ok(Box::new(GptJ { wte, blocks, ln_f, lm_head, rotary }))
    }
}

#[derive(Debug)]
struct Block {
    index: usize,
    heads: Heads,
    ln_1: LayerNorm,
    qkv: Linear,
    out_proj: Linear,
    fc_in: Linear,
    fc_out: Linear,
    activation: Activation,
}

#[derive(Debug)]
struct GptJ {
    wte: Tensor, // [V, E]
    blocks: Vec<Block>,
    ln_f: LayerNorm,
    lm_head: Linear,
    rotary: Rotary,
}

impl Family for GptJ {
    fn embed(&self, ids: &Tensor, _positions: &Tensor) -> Tensor {
        Tensor::embedding(&self.wte, ids, -1, false, false)
    }

    fn ropes(&self, positions: &Tensor) -> Vec<Rope> {
        vec![self.rotary.at(positions)]
    }

    fn block(&self, index: usize, x: &Tensor, pass: &Pass) -> Tensor {
        let b = &self.blocks[index];
        let h = b.ln_1.forward(x);
        let outputs = b.qkv.forward_all(&h, pass);
        let heads = |i: usize| outputs[i].view([x.size()[0], b.heads.queries, b.heads.size]); // [N, H, D]
        let rope = &pass.ropes[0];
        let attended = pass.attend(b.index, &rope.apply(&heads(0)), &rope.apply(&heads(1)), &heads(2), None, None);
        let attended = b.out_proj.forward(&attended, pass);
        let mlp = b.fc_out.forward(&b.activation.apply(&b.fc_in.forward(&h, pass)), pass);
        x + attended + mlp
    }

    fn final_norm(&self, x: &Tensor) -> Tensor {
        self.ln_f.forward(x)
    }

    fn head(&self) -> &Linear {
        &self.lm_head
    }
}
