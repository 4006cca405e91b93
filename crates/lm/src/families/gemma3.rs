//! Gemma 3, text only: norms around attention and MLP, five sliding blocks to a full one, two rotary bases (Gemma Team
//! 2025).

use problem::Result;
use serde::Deserialize;
use tch::Tensor;

use super::checks;
use super::family::{Config, Family, refuse, windows};
use crate::parts::{
    Activation, Attention, GatedMlp, Heads, Linear, Positions, RmsNorm, Rope, RopeConfig, Rotary, Scaling, Style,
    positive,
};
use crate::pass::Pass;
use crate::shape::Shape;
use crate::source::Scope;

/// `config.json`
#[derive(Debug, Deserialize)]
pub(super) struct Gemma3Config {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: usize,
    num_attention_heads: i64,
    num_key_value_heads: i64,
    head_dim: i64,
    max_position_embeddings: Option<i64>,
    rms_norm_eps: f64,
    query_pre_attn_scalar: f64,
    sliding_window: i64,
    /// Without `layer_types`: every so-manieth block is full.
    /// transformers writes `_sliding_window_pattern` beside it, and does not read it.
    sliding_window_pattern: Option<usize>,
    layer_types: Option<Vec<String>>,
    hidden_activation: Option<String>,
    rope_theta: Option<f64>,
    rope_local_base_freq: Option<f64>,
    rope_scaling: Option<Scaling>,
    rope_parameters: Option<RopeParameters>,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    use_bidirectional_attention: bool,
    tie_word_embeddings: Option<bool>,
}

/// transformers 5 keeps both rotary embeddings under one key.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RopeParameters {
    full_attention: Option<Scaling>,
    sliding_attention: Option<Scaling>,
}

impl Config for Gemma3Config {
    const BASE_PREFIX: &str = "model";
    const DEFAULTS: &[(&str, i64)] =
        &[("max_position_embeddings", 131_072), ("sliding_window", 4096), ("head_dim", 256)];
    const OWN: &[&str] = &[
        "query_pre_attn_scalar",
        "head_dim",
        "sliding_window",
        "sliding_window_pattern",
        "_sliding_window_pattern",
        "layer_types",
        "rope_local_base_freq",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "attention_bias",
        "use_bidirectional_attention",
        "hidden_act", // transformers reads `hidden_activation` alone
    ];

    fn shape(&self, place: &str) -> Result<Shape> {
        for (field, found) in [
            ("attn_logit_softcapping", self.attn_logit_softcapping),
            ("final_logit_softcapping", self.final_logit_softcapping),
        ] {
            if let Some(found) = found {
                return Err(refuse(place, field, "null", found.to_string()));
            }
        }
        if self.use_bidirectional_attention {
            return Err(refuse(place, "use_bidirectional_attention", "false", "true"));
        }
        Ok(Shape {
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            blocks: self.num_hidden_layers,
            heads: Heads {
                queries: self.num_attention_heads,
                key_values: self.num_key_value_heads,
                size: self.head_dim,
            },
            max_positions: self.max_position_embeddings,
        })
    }

    fn build(self, weights: &Scope, shape: &Shape, place: &str) -> Result<Box<dyn Family>> {
        let (e, m, heads) = (self.hidden_size, self.intermediate_size, shape.heads);
        let eps = checks::epsilon(self.rms_norm_eps, place)?;
        let window = checks::window(self.sliding_window, place)?;
        let query_scale = positive(self.query_pre_attn_scalar, place, "query_pre_attn_scalar")?;
        let (q, kv) = (heads.queries * heads.size, heads.key_values * heads.size);
        let named = self.hidden_activation.as_deref().unwrap_or("gelu_pytorch_tanh");
        let activation = Activation::named(named, "hidden_activation", place)?;
        let pattern = self.sliding_window_pattern.unwrap_or(6);
        if pattern == 0 {
            return Err(refuse(place, "sliding_window_pattern", "a number from 1", "0"));
        }
        let windows = windows(self.layer_types.as_deref(), window, shape.blocks, place)?.unwrap_or_else(|| {
            (0..shape.blocks).map(|b| (!(b + 1).is_multiple_of(pattern)).then_some(window)).collect()
        });
        let model = weights.pp("model");
        let embed_tokens = model.tensor("embed_tokens.weight", &[self.vocab_size, e])?;
        let mut layers = Vec::with_capacity(shape.blocks);
        for (block, window) in windows.iter().enumerate() {
            let layer = model.block("layers", block);
            let norm = |name: &str, size| -> Result<RmsNorm> {
                Ok(RmsNorm::around_one(&layer.tensor(&format!("{name}.weight"), &[size])?, eps))
            };
            let (attention, mlp) = (layer.pp("self_attn"), layer.pp("mlp"));
            layers.push(Block {
                input_layernorm: norm("input_layernorm", e)?,
                attention: Attention {
                    block,
                    heads,
                    qkv: Linear::together(vec![
                        attention.linear("q_proj", e, q, self.attention_bias)?,
                        attention.linear("k_proj", e, kv, self.attention_bias)?,
                        attention.linear("v_proj", e, kv, self.attention_bias)?,
                    ]),
                    norms: Some((norm("self_attn.q_norm", heads.size)?, norm("self_attn.k_norm", heads.size)?)),
                    o: attention.linear("o_proj", q, e, self.attention_bias)?,
                    scale: Some(query_scale.powf(-0.5)),
                    window: *window,
                    rope: usize::from(window.is_some()),
                },
                post_attention_layernorm: norm("post_attention_layernorm", e)?,
                pre_feedforward_layernorm: norm("pre_feedforward_layernorm", e)?,
                mlp: GatedMlp::new(
                    mlp.linear("gate_proj", e, m, false)?,
                    mlp.linear("up_proj", e, m, false)?,
                    mlp.linear("down_proj", m, e, false)?,
                    activation,
                ),
                post_feedforward_layernorm: norm("post_feedforward_layernorm", e)?,
            });
        }
        let norm = RmsNorm::around_one(&model.tensor("norm.weight", &[e])?, eps);
        let tied = self.tie_word_embeddings.unwrap_or(true).then_some(&embed_tokens);
        let lm_head = weights.head("lm_head", tied, e, self.vocab_size, false)?;
        // As transformers reads them: `rope_scaling` is of the full blocks alone.
        let both = self.rope_parameters.unwrap_or_default();
        let full = both.full_attention.unwrap_or_default().updated(self.rope_scaling);
        let full = RopeConfig::new(self.rope_theta.unwrap_or(1e6), Some(full));
        let local = self.rope_local_base_freq.unwrap_or(1e4);
        let sliding = RopeConfig::new(local, both.sliding_attention);
        let rotary = |config: &RopeConfig| -> Result<Rotary> {
            config.refuse_another_share(1.0, place)?;
            let of = Positions { rotated: heads.size, default_theta: 1e6, most: shape.max_positions, place };
            Ok(Rotary::new(config.frequencies(of, weights.device())?, Style::Halves, weights.kind()))
        };
        let rotaries = [rotary(&full)?, rotary(&sliding)?];
        // The factor is rounded to the weights' type, as published code does.
        let scale = Tensor::from((e as f64).sqrt()).to_kind(weights.kind()).double_value(&[]);
        Ok(Box::new(Gemma3 { embed_tokens, scale, layers, norm, lm_head, rotaries }))
    }
}

#[derive(Debug)]
struct Block {
    input_layernorm: RmsNorm,
    attention: Attention,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    mlp: GatedMlp,
    post_feedforward_layernorm: RmsNorm,
}

#[derive(Debug)]
struct Gemma3 {
    embed_tokens: Tensor, // [V, E]
    scale: f64,
    layers: Vec<Block>,
    norm: RmsNorm,
    lm_head: Linear,
    rotaries: [Rotary; 2], // of full blocks, of sliding ones
}

impl Family for Gemma3 {
    fn embed(&self, ids: &Tensor, _positions: &Tensor) -> Tensor {
        Tensor::embedding(&self.embed_tokens, ids, -1, false, false) * self.scale
    }

    fn ropes(&self, positions: &Tensor) -> Vec<Rope> {
        self.rotaries.iter().map(|r| r.at(positions)).collect()
    }

    fn block(&self, index: usize, x: &Tensor, pass: &Pass) -> Tensor {
        let b = &self.layers[index];
        let attended = b.attention.forward(&b.input_layernorm.forward(x), pass);
        let x = x + b.post_attention_layernorm.forward(&attended);
        let y = b.mlp.forward(&b.pre_feedforward_layernorm.forward(&x), pass);
        x + b.post_feedforward_layernorm.forward(&y)
    }

    fn final_norm(&self, x: &Tensor) -> Tensor {
        self.norm.forward(x)
    }

    fn head(&self) -> &Linear {
        &self.lm_head
    }
}
