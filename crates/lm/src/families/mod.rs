//! One file per family, in the shape of its published checkpoint: the configuration under its published field names,
//! weight paths as the checkpoint spells them.

pub(crate) mod checks;
mod family;
mod gemma3;
mod gpt2;
mod gpt_neox;
mod gptj;
mod keys;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;

use problem::{Result, invalid};
use serde_json::Value;

use crate::shape::Shape;
use crate::source::Scope;

use family::Config;
pub(crate) use family::Family;

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
    let mut config = config.clone();
    if let Some(fields) = config.as_object_mut() {
        for (key, default) in C::DEFAULTS {
            fields.entry(*key).or_insert_with(|| (*default).into());
        }
    }
    serde_json::from_value(config).map_err(|e| {
        let expected = "the fields of this family's configuration";
        invalid(place, expected, e.to_string(), "fetch the model's config.json again")
    })
}

fn shape_as<C: Config>(config: &Value, place: &str) -> Result<Shape> {
    keys::refuse_others(config, C::OWN, place)?;
    let shape = parse::<C>(config, place)?.shape(place)?;
    checks::sizes(&shape, place)?;
    Ok(shape)
}

fn build_as<C: Config>(config: &Value, weights: &Scope, place: &str) -> Result<Box<dyn Family>> {
    let shape = shape_as::<C>(config, place)?;
    weights.prepare(C::BASE_PREFIX, C::BUFFERS);
    parse::<C>(config, place)?.build(weights, &shape, place)
}
