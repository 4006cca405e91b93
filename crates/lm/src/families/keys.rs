//! Keys of a `config.json` that change what a model computes, and that only some families read. One that the family at hand does not read
//! is refused by its name, unless its value is the one that changes nothing.

use problem::{Result, invalid};
use serde_json::Value;

use super::family::refuse;
use crate::quantised::QUANTISED_HINT;

/// Values that change nothing, besides null.
enum Neutral {
    /// Null alone.
    Null,
    /// False, 0 and an empty list.
    Off,
    /// True.
    On,
    /// 1.
    One,
    /// Nothing but null, 0 and 1: there are no experts to choose from.
    AtMostOne,
    /// A list of this text alone.
    All(&'static str),
    /// This text.
    Text(&'static str),
    /// A window that no row is longer than.
    Window,
}

use Neutral::{All, AtMostOne, Null, Off, On, One, Text, Window};

const KEYS: [(&str, Neutral); 84] = [
    // Positions.
    ("rope_theta", Null),
    ("rope_scaling", Null),
    ("rope_parameters", Null),
    ("rope_local_base_freq", Null),
    ("rope_interleaved", Off),
    ("rotary_pct", One),
    ("rotary_dim", Null),
    ("rotary_emb_base", Null),
    ("partial_rotary_factor", One),
    ("no_rope_layers", Null),
    ("no_rope_layer_interval", Off),
    ("alibi", Off),
    ("use_alibi", Off),
    ("position_embedding_type", Text("absolute")),
    // Attention.
    ("sliding_window", Window),
    ("sliding_window_pattern", Null),
    ("_sliding_window_pattern", Null),
    ("use_sliding_window", Off),
    ("layer_types", All("full_attention")),
    ("attention_chunk_size", Null),
    ("global_attn_every_n_layers", Null),
    ("scale_attn_weights", On),
    ("scale_attn_by_inverse_layer_idx", Off),
    ("reorder_and_upcast_attn", Off),
    ("query_pre_attn_scalar", Null),
    ("attention_multiplier", Null),
    ("attn_scale", Null),
    ("attention_scale", Null),
    ("attn_logit_softcapping", Null),
    ("attention_logit_cap", Null),
    ("attention_sinks", Off),
    ("clip_qkv", Null),
    ("qk_layernorm", Off),
    ("use_qk_norm", Off),
    ("qk_norm", Off),
    ("query_key_norm", Off),
    ("multi_query", Off),
    ("head_dim", Null),
    ("kv_lora_rank", Null),
    ("q_lora_rank", Null),
    ("use_bidirectional_attention", Off),
    ("is_causal", On),
    ("add_cross_attention", Off),
    ("is_encoder_decoder", Off),
    ("cross_attention_layers", Off),
    // Biases.
    ("attention_bias", Off),
    ("attention_out_bias", Off),
    ("attn_bias", Off),
    ("qkv_bias", Off),
    ("mlp_bias", Off),
    ("use_bias", Off),
    ("bias", Off),
    ("lm_head_bias", Off),
    // Factors.
    ("final_logit_softcapping", Null),
    ("logit_softcapping", Null),
    ("final_logits_soft_cap", Null),
    ("logit_scale", One),
    ("logits_scaling", One),
    ("lm_head_multiplier", One),
    ("embedding_multiplier", One),
    ("embedding_scale", One),
    ("scale_embedding", Off),
    ("scale_emb", One),
    ("scale_depth", Null),
    ("dim_model_base", Null),
    ("residual_multiplier", One),
    ("residual_scale", One),
    ("key_multiplier", One),
    ("mlp_multipliers", Off),
    ("swiglu_limit", Null),
    // Blocks.
    ("use_parallel_residual", Off),
    ("parallel_attn", Off),
    ("num_local_experts", AtMostOne),
    ("num_experts", AtMostOne),
    ("n_routed_experts", AtMostOne),
    ("n_shared_experts", Off),
    ("num_experts_per_tok", AtMostOne),
    ("moe_intermediate_size", Off),
    ("num_nextn_predict_layers", Off),
    ("num_kv_shared_layers", Off),
    ("norm_after", Off),
    ("post_norm", Off),
    ("use_mup", Off),
    ("mup_enabled", Off),
];

/// Refuses by name what this code does not compute: weights that are quantised, a model that brings its own code, and keys of other
/// families.
pub(super) fn refuse_others(config: &Value, own: &[&str], place: &str) -> Result<()> {
    quantised(config, place)?;
    custom_code(config, place)?;
    let longest = config["max_position_embeddings"].as_i64().or(config["n_positions"].as_i64());
    for (key, neutral) in KEYS.iter().filter(|(key, _)| !own.contains(key)) {
        let value = &config[*key];
        let (changes_nothing, expected) = match neutral {
            Null => (false, "null"),
            Off => (*value == false || value.as_f64() == Some(0.0) || is_empty(value), "false, 0 or null"),
            On => (*value == true, "true"),
            One => (value.as_f64() == Some(1.0), "1"),
            AtMostOne => (value.as_f64().is_some_and(|n| n <= 1.0), "null: no experts"),
            All(text) => (value.as_array().is_some_and(|all| all.iter().all(|v| v == text)), *text),
            Text(text) => (value == text, *text),
            Window => {
                let off = config["use_sliding_window"] == false;
                let wide = value.as_i64().zip(longest).is_some_and(|(window, longest)| window >= longest);
                (off || wide, "null, or at least the longest context")
            }
        };
        if !value.is_null() && !changes_nothing {
            return Err(refuse(
                place,
                key,
                &format!("{expected}, as `{}` has it", config["model_type"].as_str().unwrap_or("?")),
                shown(value),
            ));
        }
    }
    Ok(())
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(serde_json::Map::is_empty)
}

/// The beginning of a value.
fn shown(value: &Value) -> String {
    value.to_string().chars().take(120).collect()
}

/// The keys under which programs say how they quantised the weights.
const QUANTISED: [&str; 4] = ["quantization_config", "compression_config", "quantization", "quant_config"];

fn quantised(config: &Value, place: &str) -> Result<()> {
    let Some(key) = QUANTISED.iter().find(|key| !config[**key].is_null() && !is_empty(&config[**key])) else {
        return Ok(());
    };
    let found = &config[*key];
    let method = ["quant_method", "quant_algo", "format"].iter().find_map(|key| found[*key].as_str());
    let bits = match () {
        () if found["load_in_4bit"] == true => Some(4),
        () if found["load_in_8bit"] == true => Some(8),
        () => ["bits", "nbits", "w_bit"].iter().find_map(|key| found[*key].as_i64()),
    };
    let found = match (method, bits) {
        (Some(method), Some(bits)) => format!("{method} {bits}-bit"),
        (Some(method), None) => method.to_owned(),
        (None, _) => shown(found),
    };
    let place = format!("{place}, `{key}`");
    Err(invalid(place, "weights in float32, float16 or bfloat16", found, QUANTISED_HINT))
}

fn custom_code(config: &Value, place: &str) -> Result<()> {
    let classes = config["auto_map"].as_object().into_iter().flatten();
    let Some((class, code)) = classes.into_iter().find(|(class, _)| class.starts_with("AutoModel")) else {
        return Ok(());
    };
    let place = format!("{place}, `auto_map`");
    let hint = "code that comes with a model is not run; if the weights are those of a plain model of this family, remove `auto_map`";
    Err(invalid(place, "a model that transformers itself computes", format!("{class} = {code}"), hint))
}
