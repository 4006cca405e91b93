//! GPT-NeoX and Pythia: rotary positions on a part of each head, attention beside the MLP (Black et al. 2022).

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
pub(super) struct GptNeoXConfig {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: usize,
    num_attention_heads: i64,
    max_position_embeddings: Option<i64>,
    layer_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    rotary_pct: Option<f64>,
    rotary_emb_base: Option<f64>,
    #[serde(flatten)]
    rope: RopeConfig,
    use_parallel_residual: Option<bool>,
    attention_bias: Option<bool>,
    #[serde(default)]
    tie_word_embeddings: bool,
}

impl Config for GptNeoXConfig {
    const BASE_PREFIX: &str = "gpt_neox";
    const DEFAULTS: &[(&str, i64)] = &[("max_position_embeddings", 2048)];
    const OWN: &[&str] = &[
        "rotary_pct",
        "rotary_emb_base",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "partial_rotary_factor",
        "use_parallel_residual",
        "attention_bias",
    ];
    const BUFFERS: &[&str] = &["attention.bias", "attention.masked_bias", "rotary_emb.inv_freq"];

    fn shape(&self, _place: &str) -> Result<Shape> {
        let heads = self.num_attention_heads;
        Ok(Shape {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            blocks: self.num_hidden_layers,
            heads: Heads { queries: heads, key_values: heads, size: self.hidden_size / heads.max(1) },
            max_positions: self.max_position_embeddings,
        })
    }

    fn build(self, weights: &Scope, shape: &Shape, place: &str) -> Result<Box<dyn Family>> {
        let (e, m) = (self.hidden_size, self.intermediate_size);
        let eps = checks::epsilon(self.layer_norm_eps.unwrap_or(1e-5), place)?;
        checks::whole_heads(shape.heads, e, place)?;
        let bias = self.attention_bias.unwrap_or(true);
        let activation = Activation::named(self.hidden_act.as_deref().unwrap_or("gelu"), "hidden_act", place)?;
        let model = weights.pp("gpt_neox");
        let embed_in = model.tensor("embed_in.weight", &[self.vocab_size, e])?;
        let mut layers = Vec::with_capacity(shape.blocks);
        for block in 0..shape.blocks {
            let layer = model.block("layers", block);
            let (attention, mlp) = (layer.pp("attention"), layer.pp("mlp"));
            layers.push(Block {
                index: block,
                heads: shape.heads,
                parallel: self.use_parallel_residual.unwrap_or(true),
                input_layernorm: layer.layer_norm("input_layernorm", e, eps)?,
                post_attention_layernorm: layer.layer_norm("post_attention_layernorm", e, eps)?,
                query_key_value: attention.linear("query_key_value", e, 3 * e, bias)?,
                dense: attention.linear("dense", e, e, bias)?,
                dense_h_to_4h: mlp.linear("dense_h_to_4h", e, m, true)?,
                dense_4h_to_h: mlp.linear("dense_4h_to_h", m, e, true)?,
                activation,
            });
        }
        let final_layer_norm = model.layer_norm("final_layer_norm", e, eps)?;
        weights.also_called("embed_out.weight", "lm_head.weight"); // transformers 5's name
        let tied = self.tie_word_embeddings.then_some(&embed_in);
        let embed_out = weights.head("embed_out", tied, e, self.vocab_size, false)?;
        let share = self.rope.partial_rotary_factor().or(self.rotary_pct).unwrap_or(0.25);
        let rotated = checks::rotated((shape.heads.size as f64 * share) as i64, shape.heads, place)?;
        self.rope.refuse_another_share(share, place)?;
        let default_theta = self.rotary_emb_base.unwrap_or(10_000.0);
        let of = Positions { rotated, default_theta, most: shape.max_positions, place };
        let frequencies = self.rope.frequencies(of, weights.device())?;
        let rotary = Rotary::new(frequencies, Style::Halves, weights.kind());
        Ok(Box::new(GptNeoX { embed_in, layers, final_layer_norm, embed_out, rotary }))
    }
}

#[derive(Debug)]
struct Block {
    index: usize,
    heads: Heads,
    parallel: bool,
    input_layernorm: LayerNorm,
    post_attention_layernorm: LayerNorm,
    query_key_value: Linear,
    dense: Linear,
    dense_h_to_4h: Linear,
    dense_4h_to_h: Linear,
    activation: Activation,
}

impl Block {
    fn attention(&self, x: &Tensor, pass: &Pass) -> Tensor {
        let d = self.heads.size;
        // The checkpoint keeps each head's query, key and value together.
        let qkv = self.query_key_value.forward(x, pass).view([x.size()[0], self.heads.queries, 3 * d]);
        let part = |i: i64| qkv.narrow(2, i * d, d); // [N, H, D]
        let rope = &pass.ropes[0];
        let attended = pass.attend(self.index, &rope.apply(&part(0)), &rope.apply(&part(1)), &part(2), None, None);
        self.dense.forward(&attended, pass)
    }

    fn mlp(&self, x: &Tensor, pass: &Pass) -> Tensor {
        self.dense_4h_to_h.forward(&self.activation.apply(&self.dense_h_to_4h.forward(x, pass)), pass)
    }
}

#[derive(Debug)]
struct GptNeoX {
    embed_in: Tensor, // [V, E]
    layers: Vec<Block>,
    final_layer_norm: LayerNorm,
    embed_out: Linear,
    rotary: Rotary,
}

impl Family for GptNeoX {
    fn embed(&self, ids: &Tensor, _positions: &Tensor) -> Tensor {
        Tensor::embedding(&self.embed_in, ids, -1, false, false)
    }

    fn ropes(&self, positions: &Tensor) -> Vec<Rope> {
        vec![self.rotary.at(positions)]
    }

    fn block(&self, index: usize, x: &Tensor, pass: &Pass) -> Tensor {
        let b = &self.layers[index];
        let attended = b.attention(&b.input_layernorm.forward(x), pass);
        if b.parallel {
            return x + attended + b.mlp(&b.post_attention_layernorm.forward(x), pass);
        }
        let x = x + attended;
        &x + b.mlp(&b.post_attention_layernorm.forward(&x), pass)
    }

    fn final_norm(&self, x: &Tensor) -> Tensor {
        self.final_layer_norm.forward(x)
    }

    fn head(&self) -> &Linear {
        &self.embed_out
    }
}
