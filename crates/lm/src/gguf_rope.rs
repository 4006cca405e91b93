//! How a GGUF file scales positions, as config.json says it.

use problem::Result;
use rlx_gguf::GgufFile;
use serde_json::{Value, json};

use crate::gguf_file::{File, dequantised};

/// Factors of the frequencies of positions, as llama.cpp's converter stores those of Llama 3.
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";

/// `rope_scaling` of config.json: what the file's keys and its tensor of frequencies say, as transformers writes it.
pub(crate) fn rope(file: &File, content: &GgufFile, head: usize) -> Result<Value> {
    let key = |name: &str| format!("llama.rope.scaling.{name}");
    let factor = match file.real_if_there(&key("factor"))? {
        None => file.real_if_there("llama.rope.scale_linear")?, // its older name
        given => given,
    };
    let factor = factor.filter(|factor| *factor != 0.0); // llama.cpp's "not given"
    // As llama.cpp: a factor without a type is a linear one.
    let kind = match file.metadata.get(&key("type")) {
        Some(_) => file.text(&key("type"))?,
        None if factor.is_some() => "linear",
        None => "none",
    };
    if let Some(found) = file.real_if_there(&key("attn_factor"))?.filter(|factor| *factor != 1.0 && *factor != 0.0) {
        return Err(file.wrong(format!("`{}` to be 1", key("attn_factor")), found.to_string()));
    }
    let stored = content.tensors.contains_key(ROPE_FREQS);
    if stored && kind != "none" {
        let found = format!("`{ROPE_FREQS}` as well as scaling of the type `{kind}`");
        return Err(file.wrong("one scaling of positions", found));
    }
    let factor_of = |kind: &str| {
        factor.ok_or_else(|| file.wrong(format!("`{}` with the type `{kind}`", key("factor")), "none of that name"))
    };
    match kind {
        "none" if stored => llama3(file, content, head),
        "none" => Ok(Value::Null),
        "linear" if factor == Some(1.0) => Ok(Value::Null),
        "linear" => Ok(json!({"rope_type": "linear", "factor": factor_of(kind)?})),
        "yarn" => {
            let others =
                ["yarn_log_multiplier", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow"];
            if let Some(other) = others.iter().find(|name| file.metadata.contains_key(&key(name))) {
                return Err(file.wrong("YaRN with its usual numbers", format!("`{}`", key(other))));
            }
            let original = file.number_if_there(&key("original_context_length"))?;
            let original = original.map_or_else(|| file.number("llama.context_length"), Ok)?;
            Ok(json!({"rope_type": "yarn", "factor": factor_of(kind)?, "original_max_position_embeddings": original}))
        }
        other => {
            let expected = format!("`{}` to be `none`, `linear` or `yarn`", key("type"));
            Err(file.wrong(expected, format!("`{other}`, which is not supported")))
        }
    }
}

/// Llama 3's scaling whose factors the tensor of frequencies holds: the file keeps what it makes of each frequency, not its numbers.
/// They are found by trying those that models have.
pub(crate) fn llama3(file: &File, content: &GgufFile, head: usize) -> Result<Value> {
    let (stored, _) = dequantised(file, content, ROPE_FREQS)?;
    if stored.iter().all(|f| *f == 1.0) {
        return Ok(Value::Null);
    }
    if stored.len() != head / 2 {
        let expected = format!("`{ROPE_FREQS}` with a factor for each of {} frequencies", head / 2);
        return Err(file.wrong(expected, stored.len().to_string()));
    }
    let original = file.number_if_there("llama.rope.scaling.original_context_length")?;
    let wrong = || {
        file.wrong(
            format!("`{ROPE_FREQS}` of Llama 3's scaling"),
            "factors that no numbers of it that models have give",
        )
    };
    let (factor, low, high, original) = llama3_of(&stored, freq_base(file)?, original).ok_or_else(wrong)?;
    Ok(json!({"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
              "original_max_position_embeddings": original}))
}

/// The numbers of Llama 3's scaling (factor, low and high frequency factor, original context) whose factors of `stored.len()` frequencies
/// are these. `original` is tried first.
pub(crate) fn llama3_of(stored: &[f32], theta: f64, original: Option<usize>) -> Option<(f64, f64, f64, usize)> {
    let d = 2.0 * stored.len() as f64;
    let plain: Vec<f64> = (0..stored.len()).map(|i| theta.powf(-2.0 * i as f64 / d)).collect();
    let factor = f64::from(stored.iter().copied().fold(0.0, f32::max));
    let originals: Vec<usize> = original.into_iter().chain((4..=20).rev().map(|n| 1 << n)).collect();
    let borders = [(1.0, 4.0), (1.0, 2.0), (1.0, 8.0), (1.0, 32.0)];
    // Llama's own borders come first.
    let mut tries = borders.iter().flat_map(|(low, high)| originals.iter().map(|o| (factor, *low, *high, *o)));
    tries.find(|(factor, low, high, original)| {
        let wanted = |f: &f64| f / crate::parts::llama3(*f, *factor, *low, *high, *original as f64);
        plain.iter().zip(stored).all(|(f, stored)| (wanted(f) / f64::from(*stored) - 1.0).abs() < 1e-4)
    })
}

pub(crate) fn freq_base(file: &File) -> Result<f64> {
    Ok(file.real_if_there("llama.rope.freq_base")?.unwrap_or(10_000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_llama_3_are_found_again_from_the_factors_that_a_file_keeps() {
        for (factor, original, theta, pairs) in
            [(8.0, 8192, 5e5, 64), (32.0, 8192, 5e5, 32), (16.0, 4096, 1e4, 64), (4.0, 32_768, 1e6, 48)]
        {
            let factors = |low: f64, high: f64| -> Vec<f32> {
                let of = |i: usize| {
                    let f = f64::powf(theta, -(i as f64) / pairs as f64);
                    (f / crate::parts::llama3(f, factor, low, high, f64::from(original))) as f32
                };
                (0..pairs).map(of).collect()
            };
            let found = llama3_of(&factors(1.0, 4.0), theta, None);
            assert_eq!(found, Some((factor, 1.0, 4.0, original as usize)));
            let found = llama3_of(&factors(1.3, 3.7), theta, None);
            assert_eq!(found, None, "numbers that no model has");
        }
    }
}
