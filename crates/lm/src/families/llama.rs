//! Llama 1 to 3, SmolLM2, TinyLlama: RMS norms, rotary positions, grouped-query attention, gated MLP (Touvron et al.
//! 2023).

use problem::Result;
use serde::Deserialize;
use tch::Tensor;

use super::checks;
use super::family::{Config, Family};
use crate::parts::{
    Activation, Attention, GatedMlp, Heads, Linear, Positions, PreNormBlock, RmsNorm, Rope, RopeConfig, Rotary, Style,
};
use crate::pass::Pass;
use crate::shape::Shape;
use crate::source::Scope;

/// `config.json`; absent fields take transformers' defaults.
#[derive(Debug, Deserialize)]
pub(super) struct LlamaConfig {
    pub(super) vocab_size: i64,
    pub(super) hidden_size: i64,
    pub(super) intermediate_size: i64,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: i64,
    pub(super) num_key_value_heads: Option<i64>,
    pub(super) head_dim: Option<i64>,
    pub(super) max_position_embeddings: Option<i64>,
    pub(super) rms_norm_eps: f64,
    #[serde(flatten)]
    pub(super) rope: RopeConfig,
    #[serde(default)]
    pub(super) tie_word_embeddings: bool,
    pub(super) attention_bias: Option<bool>,
    pub(super) mlp_bias: Option<bool>,
    pub(super) hidden_act: Option<String>,
}

/// Keys that Llama and all its relatives read beyond sizes.
pub(super) const LLAMA: &[&str] = &[
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "attention_bias",
    "mlp_bias",
    "head_dim",
];

/// What Llama's relatives do otherwise.
#[derive(Debug, Default)]
pub(super) struct Variation {
    /// Biases of queries, keys and values; Llama's `attention_bias` covers the output projection as well.
    pub(super) qkv_bias: bool,
    pub(super) o_bias: bool,
    /// Norms of each head's queries and keys.
    pub(super) head_norms: bool,
    /// Window of each block; none at all if empty.
    pub(super) windows: Vec<Option<i64>>,
}

impl Config for LlamaConfig {
    const BASE_PREFIX: &str = "model";
    const DEFAULTS: &[(&str, i64)] = &[("max_position_embeddings", 2048)];
    const OWN: &[&str] = LLAMA;
    const BUFFERS: &[&str] = &["rotary_emb.inv_freq"];

    fn shape(&self, _place: &str) -> Result<Shape> {
        let heads = self.num_attention_heads.max(1);
        Ok(Shape {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            blocks: self.num_hidden_layers,
            heads: Heads {
                queries: self.num_attention_heads,
                key_values: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
                size: self.head_dim.unwrap_or(self.hidden_size / heads),
            },
            max_positions: self.max_position_embeddings,
        })
    }

    fn build(self, weights: &Scope, shape: &Shape, place: &str) -> Result<Box<dyn Family>> {
        let bias = self.attention_bias.unwrap_or(false);
        let variation = Variation { qkv_bias: bias, o_bias: bias, ..Variation::default() };
        Ok(Box::new(Llama::new(&self, &variation, weights, shape, place)?))
    }
}

/// The model, which Qwen and Mistral are variations of.
#[derive(Debug)]
pub(super) struct Llama {
    embed_tokens: Tensor, // [V, E]
    layers: Vec<PreNormBlock>,
    norm: RmsNorm,
    lm_head: Linear,
    rotary: Rotary,
}

impl Llama {
    pub(super) fn new(
        config: &LlamaConfig,
        variation: &Variation,
        weights: &Scope,
        shape: &Shape,
        place: &str,
    ) -> Result<Self> {
        let (e, m) = (config.hidden_size, config.intermediate_size);
        let eps = checks::epsilon(config.rms_norm_eps, place)?;
        let (heads, mlp_bias) = (shape.heads, config.mlp_bias.unwrap_or(false));
        let (q, kv) = (heads.queries * heads.size, heads.key_values * heads.size);
        let activation = Activation::named(config.hidden_act.as_deref().unwrap_or("silu"), "hidden_act", place)?;
        let model = weights.pp("model");
        let embed_tokens = model.tensor("embed_tokens.weight", &[config.vocab_size, e])?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for block in 0..config.num_hidden_layers {
            let layer = model.block("layers", block);
            let norm = |name: &str, size| -> Result<RmsNorm> { Ok(RmsNorm::new(&layer.tensor(name, &[size])?, eps)) };
            let (attention, mlp) = (layer.pp("self_attn"), layer.pp("mlp"));
            let norms = if variation.head_norms {
                let of = |name| norm(name, heads.size);
                Some((of("self_attn.q_norm.weight")?, of("self_attn.k_norm.weight")?))
            } else {
                None
            };
            layers.push(PreNormBlock {
                input_layernorm: norm("input_layernorm.weight", e)?,
                attention: Attention {
                    block,
                    heads,
                    qkv: Linear::together(vec![
                        attention.linear("q_proj", e, q, variation.qkv_bias)?,
                        attention.linear("k_proj", e, kv, variation.qkv_bias)?,
                        attention.linear("v_proj", e, kv, variation.qkv_bias)?,
                    ]),
                    norms,
                    o: attention.linear("o_proj", q, e, variation.o_bias)?,
                    scale: None,
                    window: variation.windows.get(block).copied().flatten(),
                    rope: 0,
                },
                post_attention_layernorm: norm("post_attention_layernorm.weight", e)?,
                mlp: GatedMlp::new(
                    mlp.linear("gate_proj", e, m, mlp_bias)?,
                    mlp.linear("up_proj", e, m, mlp_bias)?,
                    mlp.linear("down_proj", m, e, mlp_bias)?,
                    activation,
                ),
            });
        }
        let norm = RmsNorm::new(&model.tensor("norm.weight", &[e])?, eps);
        let tied = config.tie_word_embeddings.then_some(&embed_tokens);
        let lm_head = weights.head("lm_head", tied, e, config.vocab_size, false)?;
        config.rope.refuse_another_share(1.0, place)?;
        let of = Positions { rotated: heads.size, default_theta: 10_000.0, most: shape.max_positions, place };
        let frequencies = config.rope.frequencies(of, weights.device())?;
        let rotary = Rotary::new(frequencies, Style::Halves, weights.kind());
        Ok(Self { embed_tokens, layers, norm, lm_head, rotary })
    }
}

impl Family for Llama {
    fn embed(&self, ids: &Tensor, _positions: &Tensor) -> Tensor {
        Tensor::embedding(&self.embed_tokens, ids, -1, false, false)
    }

    fn ropes(&self, positions: &Tensor) -> Vec<Rope> {
        vec![self.rotary.at(positions)]
    }

    fn block(&self, index: usize, x: &Tensor, pass: &Pass) -> Tensor {
        self.layers[index].forward(x, pass)
    }

    fn final_norm(&self, x: &Tensor) -> Tensor {
        self.norm.forward(x)
    }

    fn head(&self) -> &Linear {
        &self.lm_head
    }
}
