//! `config.json` of the Llama family, under its published names.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::Result;
use crate::error::invalid;

/// What decides a Llama's shape. Fields that are absent in a file take transformers' defaults.
#[derive(Clone, Debug, Deserialize)]
pub struct LlamaConfig {
    /// V
    pub vocab_size: i64,
    /// E
    pub hidden_size: i64,
    /// Width of the gated MLP.
    pub intermediate_size: i64,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// H
    pub num_attention_heads: i64,
    /// Heads of keys and values; H unless given.
    num_key_value_heads: Option<i64>,
    /// D; E / H unless given.
    head_dim: Option<i64>,
    /// Longest context in tokens.
    pub max_position_embeddings: i64,
    /// Epsilon of the RMS norms.
    pub rms_norm_eps: f64,
    #[serde(default = "ten_thousand")]
    rope_theta: f64,
    rope_parameters: Option<Value>,
    rope_scaling: Option<Value>,
    /// Is the output projection the embedding?
    #[serde(default)]
    pub tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default)]
    model_type: String,
}

fn ten_thousand() -> f64 {
    10_000.0
}

fn silu() -> String {
    "silu".into()
}

impl LlamaConfig {
    /// Reads and checks `config.json`. What this code does not compute is refused, never ignored.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let bytes = fs_err::read(&path)?;
        let place = path.display();
        let config: Self = serde_json::from_slice(&bytes).map_err(|e| {
            invalid(&place, "a Llama configuration", e.to_string(), "point at a folder that holds a Llama model")
        })?;
        let refuse = |field: &str, expected: &str, found: String| {
            Err(invalid(format!("{place}, `{field}`"), expected, found, "this model is not supported yet"))
        };
        if config.model_type != "llama" {
            return refuse("model_type", "`llama`", format!("`{}`", config.model_type));
        }
        if config.hidden_act != "silu" {
            return refuse("hidden_act", "`silu`", format!("`{}`", config.hidden_act));
        }
        if config.attention_bias || config.mlp_bias {
            return refuse("attention_bias, mlp_bias", "false", "true".into());
        }
        for (field, rope) in [("rope_scaling", &config.rope_scaling), ("rope_parameters", &config.rope_parameters)] {
            if let Some(Value::Object(map)) = rope {
                let kind = map.get("rope_type").or_else(|| map.get("type")).and_then(Value::as_str);
                if kind.is_some_and(|k| k != "default") {
                    return refuse(field, "no RoPE scaling", format!("{kind:?}"));
                }
            }
        }
        let heads = config.num_attention_heads;
        if heads <= 0 || config.hidden_size % heads != 0 || heads % config.num_key_value_heads().max(1) != 0 {
            let found = format!("{heads} heads, {} key/value heads", config.num_key_value_heads());
            return refuse(
                "num_attention_heads",
                "a divisor of hidden_size and a multiple of the key/value heads",
                found,
            );
        }
        Ok(config)
    }

    /// Heads of keys and values.
    pub fn num_key_value_heads(&self) -> i64 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    /// D
    pub fn head_dim(&self) -> i64 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// Base of the rotary frequencies (transformers 5 moved it into `rope_parameters`).
    pub fn rope_theta(&self) -> f64 {
        let nested = self.rope_parameters.as_ref().and_then(|p| p.get("rope_theta")).and_then(Value::as_f64);
        nested.unwrap_or(self.rope_theta)
    }
}
