//! Qwen2 and Qwen2.5: Llama with biases on queries, keys and values (Yang et al. 2024).

use problem::Result;
use serde::Deserialize;

use super::llama::{Llama, LlamaConfig, Variation};
use super::{Config, Family, checks, windows};
use crate::shape::Shape;
use crate::source::Scope;

/// `config.json`
#[derive(Debug, Deserialize)]
pub(super) struct Qwen2Config {
    #[serde(flatten)]
    llama: LlamaConfig,
    #[serde(default)]
    use_sliding_window: bool,
    sliding_window: Option<i64>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
}

impl Config for Qwen2Config {
    const BASE_PREFIX: &str = "model";

    fn shape(&self, place: &str) -> Result<Shape> {
        self.llama.shape(place)
    }

    fn build(self, weights: &Scope, shape: &Shape, place: &str) -> Result<Box<dyn Family>> {
        let windows = sliding(
            self.use_sliding_window,
            self.sliding_window,
            self.max_window_layers,
            self.layer_types.as_deref(),
            shape.blocks,
            place,
        )?;
        let variation = Variation { qkv_bias: true, windows, ..Variation::default() };
        Ok(Box::new(Llama::new(&self.llama, &variation, weights, shape, place)?))
    }
}

/// Windows as both Qwens define them: used only on request, from block `max_window_layers` (transformers' default: 28).
pub(super) fn sliding(
    on: bool,
    window: Option<i64>,
    first: Option<usize>,
    layer_types: Option<&[String]>,
    blocks: usize,
    place: &str,
) -> Result<Vec<Option<i64>>> {
    let Some(window) = window.filter(|_| on) else { return Ok(Vec::new()) };
    let (window, first) = (checks::window(window, place)?, first.unwrap_or(28));
    Ok(windows(layer_types, window, blocks, place)?
        .unwrap_or_else(|| (0..blocks).map(|block| (block >= first).then_some(window)).collect()))
}
