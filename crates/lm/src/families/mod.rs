//! One file per family, in the shape of its published checkpoint: the configuration under its published field names,
//! weight paths as the checkpoint spells them.

mod checks;
mod gemma3;
mod gpt2;
mod gpt_neox;
mod gptj;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use std::fmt::Debug;

use problem::{Problem, Result, invalid};
use serde::de::DeserializeOwned;
use serde_json::Value;
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
    /// Sizes, checked; what this code does not compute is refused.
    fn shape(&self, place: &str) -> Result<Shape>;
    /// The model, its weights taken from `weights`.
    fn build(self, weights: &Scope, shape: &Shape, place: &str) -> Result<Box<dyn Family>>;
}

/// What a folder's `model_type` selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Llama,
    Qwen2,
    Qwen3,
    Mistral,
    Gemma3,
    Gpt2,
    GptNeoX,
    GptJ,
}

/// `model_type` and what it means here.
pub(crate) const KINDS: [(&str, Kind); 8] = [
    ("llama", Kind::Llama),
    ("qwen2", Kind::Qwen2),
    ("qwen3", Kind::Qwen3),
    ("mistral", Kind::Mistral),
    ("gemma3_text", Kind::Gemma3),
    ("gpt2", Kind::Gpt2),
    ("gpt_neox", Kind::GptNeoX),
    ("gptj", Kind::GptJ),
];

/// Calls `$then` with the configuration type of a kind.
macro_rules! with_config {
    ($kind:expr, $then:ident($($argument:expr),*)) => {
        match $kind {
            Kind::Llama => $then::<llama::LlamaConfig>($($argument),*),
            Kind::Qwen2 => $then::<qwen2::Qwen2Config>($($argument),*),
            Kind::Qwen3 => $then::<qwen3::Qwen3Config>($($argument),*),
            Kind::Mistral => $then::<mistral::MistralConfig>($($argument),*),
            Kind::Gemma3 => $then::<gemma3::Gemma3Config>($($argument),*),
            Kind::Gpt2 => $then::<gpt2::Gpt2Config>($($argument),*),
            Kind::GptNeoX => $then::<gpt_neox::GptNeoXConfig>($($argument),*),
            Kind::GptJ => $then::<gptj::GptJConfig>($($argument),*),
        }
    };
}

/// A configuration's sizes.
pub(crate) fn shape(kind: Kind, config: &Value, place: &str) -> Result<Shape> {
    with_config!(kind, shape_as(config, place))
}

/// The model that a configuration describes.
pub(crate) fn build(kind: Kind, config: &Value, weights: &Scope, place: &str) -> Result<Box<dyn Family>> {
    with_config!(kind, build_as(config, weights, place))
}

fn parse<C: Config>(config: &Value, place: &str) -> Result<C> {
    serde_json::from_value(config.clone()).map_err(|e| {
        invalid(
            place,
            "the fields of this family's configuration",
            e.to_string(),
            "fetch the model's config.json again",
        )
    })
}

fn shape_as<C: Config>(config: &Value, place: &str) -> Result<Shape> {
    let shape = parse::<C>(config, place)?.shape(place)?;
    checks::sizes(&shape, place)?;
    Ok(shape)
}

fn build_as<C: Config>(config: &Value, weights: &Scope, place: &str) -> Result<Box<dyn Family>> {
    let shape = shape_as::<C>(config, place)?;
    weights.prepare(C::BASE_PREFIX, C::BUFFERS);
    parse::<C>(config, place)?.build(weights, &shape, place)
}

/// Refuses a field's value.
fn refuse(place: &str, field: &str, expected: &str, found: impl Into<String>) -> Problem {
    invalid(format!("{place}, `{field}`"), expected, found, "this model is not supported yet")
}

/// The window of each block from `layer_types`, where a checkpoint gives them.
fn windows(
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
