//! Mistral: Llama with a sliding window in every block (Jiang et al. 2023).

use problem::Result;
use serde::Deserialize;

use super::checks;
use super::family::{Config, Family, refuse};
use super::llama::{Llama, LlamaConfig, Variation};
use crate::shape::Shape;
use crate::source::Scope;

/// `config.json`
#[derive(Debug, Deserialize)]
pub(super) struct MistralConfig {
    #[serde(flatten)]
    llama: LlamaConfig,
    sliding_window: Option<i64>,
    layer_types: Option<Vec<String>>,
}

impl Config for MistralConfig {
    const BASE_PREFIX: &str = "model";
    const DEFAULTS: &[(&str, i64)] =
        &[("num_key_value_heads", 8), ("sliding_window", 4096), ("max_position_embeddings", 131_072)];
    const OWN: &[&str] = &[
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "partial_rotary_factor",
        "head_dim",
        "sliding_window",
        "layer_types",
    ];

    fn shape(&self, place: &str) -> Result<Shape> {
        self.llama.shape(place)
    }

    fn build(self, weights: &Scope, shape: &Shape, place: &str) -> Result<Box<dyn Family>> {
        let window = self.sliding_window.map(|tokens| checks::window(tokens, place)).transpose()?;
        let all = if window.is_some() { "sliding_attention" } else { "full_attention" };
        if let Some(other) = self.layer_types.iter().flatten().find(|kind| *kind != all) {
            return Err(refuse(place, "layer_types", &format!("`{all}` in every block"), format!("`{other}`")));
        }
        let windows = vec![window; shape.blocks];
        Ok(Box::new(Llama::new(&self.llama, &Variation { windows, ..Variation::default() }, weights, shape, place)?))
    }
}
