//! Mistral: Llama with a sliding window in every block (Jiang et al. 2023).

use problem::Result;
use serde::Deserialize;

use super::llama::{Llama, LlamaConfig, Variation};
use super::{Config, Family, checks};
use crate::shape::Shape;
use crate::source::Scope;

/// `config.json`
#[derive(Debug, Deserialize)]
pub(super) struct MistralConfig {
    #[serde(flatten)]
    llama: LlamaConfig,
    sliding_window: Option<i64>,
}

impl Config for MistralConfig {
    const BASE_PREFIX: &str = "model";

    fn shape(&self, place: &str) -> Result<Shape> {
        let mut shape = self.llama.shape(place)?;
        shape.heads.key_values = self.llama.num_key_value_heads.unwrap_or(8); // transformers' default
        Ok(shape)
    }

    fn build(self, weights: &Scope, shape: &Shape, place: &str) -> Result<Box<dyn Family>> {
        let window = self.sliding_window.map(|tokens| checks::window(tokens, place)).transpose()?;
        let windows = vec![window; shape.blocks];
        Ok(Box::new(Llama::new(&self.llama, &Variation { windows, ..Variation::default() }, weights, shape, place)?))
    }
}
