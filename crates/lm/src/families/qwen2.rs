//! Qwen2 and Qwen2.5: Llama with biases on queries, keys and values (Yang et al. 2024).

use problem::Result;
use serde::Deserialize;

use super::checks;
use super::family::{Config, Family, refuse, windows};
use super::llama::{Llama, LlamaConfig, Variation};
use crate::shape::Shape;
use crate::source::Scope;

/// `config.json`
#[derive(Debug, Deserialize)]
pub(super) struct Qwen2Config {
    #[serde(flatten)]
    llama: LlamaConfig,
    use_sliding_window: Option<bool>,
    sliding_window: Option<i64>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
}

impl Config for Qwen2Config {
    const BASE_PREFIX: &str = "model";
    const DEFAULTS: &[(&str, i64)] =
        &[("num_key_value_heads", 32), ("sliding_window", 4096), ("max_position_embeddings", 32_768)];
    const OWN: &[&str] = QWEN;

    fn shape(&self, place: &str) -> Result<Shape> {
        self.llama.shape(place)
    }

    fn build(self, weights: &Scope, shape: &Shape, place: &str) -> Result<Box<dyn Family>> {
        let windows = sliding(
            self.use_sliding_window.unwrap_or(false),
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

/// Keys that both Qwens read beyond sizes. Qwen2 has biases whatever `attention_bias` says.
pub(super) const QWEN: &[&str] = &[
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "attention_bias",
    "head_dim",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "layer_types",
];

/// Windows as both Qwens define them: used only on request, from block `max_window_layers` (transformers' default: 28).
pub(super) fn sliding(
    on: bool,
    window: Option<i64>,
    first: Option<usize>,
    layer_types: Option<&[String]>,
    blocks: usize,
    place: &str,
) -> Result<Vec<Option<i64>>> {
    let Some(window) = window.filter(|_| on) else {
        let expected = "`full_attention` in every block, since `use_sliding_window` or `sliding_window` is off";
        return match layer_types.unwrap_or_default().iter().find(|kind| *kind != "full_attention") {
            Some(other) => Err(refuse(place, "layer_types", expected, format!("`{other}`"))),
            None => Ok(Vec::new()),
        };
    };
    let (window, first) = (checks::window(window, place)?, first.unwrap_or(28));
    Ok(windows(layer_types, window, blocks, place)?
        .unwrap_or_else(|| (0..blocks).map(|block| (block >= first).then_some(window)).collect()))
}
