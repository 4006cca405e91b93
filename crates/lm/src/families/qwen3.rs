//! Qwen3: Llama with norms on each head's queries and keys (Yang et al. 2025).

use problem::Result;
use serde::Deserialize;

use super::family::{Config, Family};
use super::llama::{Llama, LlamaConfig, Variation};
use super::qwen2::{QWEN, sliding};
use crate::shape::Shape;
use crate::source::Scope;

/// `config.json`
#[derive(Debug, Deserialize)]
pub(super) struct Qwen3Config {
    #[serde(flatten)]
    llama: LlamaConfig,
    use_sliding_window: Option<bool>,
    sliding_window: Option<i64>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
}

impl Config for Qwen3Config {
    const BASE_PREFIX: &str = "model";
    const DEFAULTS: &[(&str, i64)] = &[
        ("num_key_value_heads", 32),
        ("sliding_window", 4096),
        ("max_position_embeddings", 32_768),
        ("head_dim", 128),
    ];
    const OWN: &[&str] = QWEN;

    fn shape(&self, place: &str) -> Result<Shape> {
        self.llama.shape(place)
    }

    fn build(self, weights: &Scope, shape: &Shape, place: &str) -> Result<Box<dyn Family>> {
        let bias = self.llama.attention_bias.unwrap_or(false);
        let windows = sliding(
            self.use_sliding_window.unwrap_or(false),
            self.sliding_window,
            self.max_window_layers,
            self.layer_types.as_deref(),
            shape.blocks,
            place,
        )?;
        let variation = Variation { qkv_bias: bias, o_bias: bias, head_norms: true, windows };
        Ok(Box::new(Llama::new(&self.llama, &variation, weights, shape, place)?))
    }
}
