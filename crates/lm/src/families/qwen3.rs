//! Qwen3: Llama with norms on each head's queries and keys (Yang et al. 2025).

use problem::Result;
use serde::Deserialize;

use super::llama::{Llama, LlamaConfig, Variation};
use super::qwen2::sliding;
use super::{Config, Family};
use crate::shape::Shape;
use crate::source::Scope;

/// `config.json`
#[derive(Debug, Deserialize)]
pub(super) struct Qwen3Config {
    #[serde(flatten)]
    llama: LlamaConfig,
    #[serde(default)]
    use_sliding_window: bool,
    sliding_window: Option<i64>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
}

impl Config for Qwen3Config {
    const BASE_PREFIX: &str = "model";

    fn shape(&self, place: &str) -> Result<Shape> {
        let mut shape = self.llama.shape(place)?;
        shape.heads.size = self.llama.head_dim.unwrap_or(128); // transformers' default
        Ok(shape)
    }

    fn build(self, weights: &Scope, shape: &Shape, place: &str) -> Result<Box<dyn Family>> {
        let bias = self.llama.attention_bias;
        let windows = sliding(
            self.use_sliding_window,
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
