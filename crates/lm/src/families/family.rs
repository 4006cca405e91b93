//! What every family is for the rest of the crate, and what their files share.

use std::fmt::Debug;

use problem::{Problem, Result, invalid};
use serde::de::DeserializeOwned;
use tch::Tensor;

use crate::parts::{Linear, Rope};
use crate::pass::Pass;
use crate::shape::Shape;
use crate::source::Scope;

/// A causal language model: embedding, blocks, final norm, vocabulary projection.
pub(crate) trait Family: Debug {
    /// `[N, E]` of ids and positions `[N]`.
    fn embed(&self, ids: &Tensor, positions: &Tensor) -> Tensor;
    /// The rotary embeddings that its blocks use, at positions `[N]`.
    fn ropes(&self, positions: &Tensor) -> Vec<Rope>;
    /// Runs one block over `[N, E]`.
    fn block(&self, index: usize, x: &Tensor, pass: &Pass) -> Tensor;
    /// The norm behind the last block.
    fn final_norm(&self, x: &Tensor) -> Tensor;
    /// The vocabulary projection.
    fn head(&self) -> &Linear;
}

/// `config.json`, read as one family's.
pub(crate) trait Config: DeserializeOwned {
    /// `transformer` or `model`: what published names may leave out in front.
    const BASE_PREFIX: &str;
    /// Ends of names that hold no weights: tables that old checkpoints stored.
    const BUFFERS: &[&str] = &[];
    /// Numbers that transformers takes where a configuration leaves a key out (a null is something else).
    const DEFAULTS: &[(&str, i64)] = &[];
    /// Keys that this family reads or judges by itself, of those in [`super::keys`].
    const OWN: &[&str] = &[];
    /// Sizes, checked; what this code does not compute is refused.
    fn shape(&self, place: &str) -> Result<Shape>;
    /// The model, its weights taken from `weights`.
    fn build(self, weights: &Scope, shape: &Shape, place: &str) -> Result<Box<dyn Family>>;
}

/// Refuses a field's value.
pub(super) fn refuse(place: &str, field: &str, expected: &str, found: impl Into<String>) -> Problem {
    invalid(format!("{place}, `{field}`"), expected, found, "this model is not supported yet")
}

/// The window of each block from `layer_types`, where a checkpoint gives them.
pub(super) fn windows(
    layer_types: Option<&[String]>,
    window: i64,
    blocks: usize,
    place: &str,
) -> Result<Option<Vec<Option<i64>>>> {
    let Some(types) = layer_types else { return Ok(None) };
    if types.len() != blocks {
        return Err(refuse(place, "layer_types", &format!("one for each of {blocks} blocks"), types.len().to_string()));
    }
    let of = |kind: &String| match kind.as_str() {
        "full_attention" => Ok(None),
        "sliding_attention" => Ok(Some(window)),
        other => Err(refuse(place, "layer_types", "`full_attention` or `sliding_attention`", format!("`{other}`"))),
    };
    Ok(Some(types.iter().map(of).collect::<Result<Vec<_>>>()?))
}
