//! A GGUF file: opened, its metadata read by key, its tensors as float32. Keys that this code does not read are refused here.

use std::collections::HashMap;
use std::fmt::Display;
use std::path::Path;

use problem::{Problem, Result, invalid};
use rlx_gguf::{GgufFile, MetaValue};

/// The beginning of a value: a list may hold millions.
pub(crate) fn shown(value: &MetaValue) -> String {
    match value {
        MetaValue::Array(items) => format!("a list of {}", items.len()),
        MetaValue::String(text) => format!("{:?}", text.chars().take(80).collect::<String>()),
        other => format!("{other:?}"),
    }
}

/// GGUF stores float32; the shortest decimal that gives it back is what the author wrote (1e-05, not 9.9999997e-06).
pub(crate) fn decimal(value: &MetaValue) -> Option<f64> {
    match value {
        MetaValue::F32(value) if value.is_finite() => Some(value.to_string().parse().expect("a float's own text")),
        _ => None,
    }
}

/// Keys after `llama.` that decide config.json.
pub(crate) const READ: [&str; 22] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_log_multiplier",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
];

/// Keys after `llama.` that tell of the file and do not change the model.
pub(crate) const UNREAD: [&str; 3] = ["rope.scaling.finetuned", "tensor_data_layout", "pooling_type"];

pub(crate) struct File<'a> {
    pub(crate) path: &'a Path,
    pub(crate) metadata: &'a HashMap<String, MetaValue>,
}

impl File<'_> {
    pub(crate) fn wrong(&self, expected: impl Into<String>, found: impl Into<String>) -> Problem {
        invalid(self.path.display(), expected, found, "only Llama models with a byte-level BPE vocabulary are imported")
    }

    fn get(&self, key: &str) -> Result<&MetaValue> {
        self.metadata.get(key).ok_or_else(|| self.wrong(format!("the metadata key `{key}`"), "none of that name"))
    }

    pub(crate) fn number(&self, key: &str) -> Result<usize> {
        let value = self.get(key)?;
        let number = value.as_u64().or_else(|| value.as_u32().map(u64::from)).and_then(|n| usize::try_from(n).ok());
        number.ok_or_else(|| self.wrong(format!("a number under `{key}`"), shown(value)))
    }

    pub(crate) fn real(&self, key: &str) -> Result<f64> {
        let value = self.get(key)?;
        decimal(value).ok_or_else(|| self.wrong(format!("a float under `{key}`"), shown(value)))
    }

    /// As [`Self::number`]; none where the key is not there.
    pub(crate) fn number_if_there(&self, key: &str) -> Result<Option<usize>> {
        self.metadata.get(key).map(|_| self.number(key)).transpose()
    }

    /// As [`Self::real`]; none where the key is not there.
    pub(crate) fn real_if_there(&self, key: &str) -> Result<Option<f64>> {
        self.metadata.get(key).map(|_| self.real(key)).transpose()
    }

    pub(crate) fn text(&self, key: &str) -> Result<&str> {
        let value = self.get(key)?;
        value.as_str().ok_or_else(|| self.wrong(format!("a text under `{key}`"), shown(value)))
    }

    pub(crate) fn list<T>(&self, key: &str, item: impl Fn(&MetaValue) -> Option<T>) -> Result<Vec<T>> {
        let value = self.get(key)?;
        let values = value.as_array().ok_or_else(|| self.wrong(format!("a list under `{key}`"), shown(value)))?;
        values
            .iter()
            .map(|v| item(v).ok_or_else(|| self.wrong(format!("another type in the list `{key}`"), shown(v))))
            .collect()
    }

    /// Refuses by name every key that changes what a model computes and that this code does not read, unless its value changes nothing.
    pub(crate) fn refuse_others(&self) -> Result<()> {
        let kind = self.metadata.get("general.type").and_then(MetaValue::as_str).unwrap_or("model");
        if kind != "model" {
            return Err(self.wrong("`general.type` to be `model`", format!("`{kind}`")));
        }
        if self.metadata.contains_key("split.count") && self.number("split.count")? > 1 {
            let hint = "merge the parts into one file: `llama-gguf-split --merge FIRST_PART FILE`";
            return Err(self.wrong("a whole file", "one of several parts (`split.count`)").with_hint(hint));
        }
        let longest = self.number("llama.context_length")? as f64;
        let mut keys: Vec<&String> = self.metadata.keys().collect();
        keys.sort();
        for key in keys {
            let Some(name) = key.strip_prefix("llama.") else { continue };
            let value = &self.metadata[key];
            let number =
                decimal(value).or_else(|| value.as_u64().or_else(|| value.as_u32().map(u64::from)).map(|n| n as f64));
            let off = number == Some(0.0) || matches!(value, MetaValue::Bool(false));
            let changes_nothing = match name {
                _ if READ.contains(&name) || UNREAD.contains(&name) => true,
                "attention.sliding_window" => off || number.is_some_and(|window| window >= longest),
                "attention.causal" => matches!(value, MetaValue::Bool(true)),
                "logit_scale" | "residual_scale" | "embedding_scale" => off || number == Some(1.0),
                "expert_count" | "expert_used_count" | "use_parallel_residual" | "attn_logit_softcapping" => off,
                "final_logit_softcapping" | "attention.scale" | "attention.clamp_kqv" | "attention.max_alibi_bias" => {
                    off
                }
                _ => false,
            };
            if !changes_nothing {
                let hint = "what this key says of the model is not supported yet: take the model's Hugging Face folder if its family is";
                return Err(self.wrong(format!("no `{key}`"), shown(value)).with_hint(hint));
            }
        }
        Ok(())
    }

    pub(crate) fn vocabulary(&self, context_length: usize) -> Result<text::Vocabulary> {
        if self.text("tokenizer.ggml.model")? != "gpt2" {
            return Err(self.wrong("`tokenizer.ggml.model` to be `gpt2`", self.text("tokenizer.ggml.model")?));
        }
        let id = |name: &str| self.number(&format!("tokenizer.ggml.{name}_token_id")).ok();
        let string = |v: &MetaValue| v.as_str().map(str::to_owned);
        Ok(text::Vocabulary {
            tokens: self.list("tokenizer.ggml.tokens", string)?,
            merges: self.list("tokenizer.ggml.merges", string)?,
            types: self.list("tokenizer.ggml.token_type", |v| match v {
                MetaValue::I32(n) => Some(i64::from(*n)),
                MetaValue::U32(n) => Some(i64::from(*n)),
                _ => None,
            })?,
            pre: self.text("tokenizer.ggml.pre")?.to_owned(),
            bos_id: id("bos"),
            eos_id: self.number("tokenizer.ggml.eos_token_id")?,
            unk_id: id("unknown"),
            pad_id: id("padding"),
            chat_template: self.text("tokenizer.chat_template")?.to_owned(),
            context_length,
        })
    }
}

pub(crate) fn dequantised(file: &File, content: &GgufFile, name: &str) -> Result<(Vec<f32>, Vec<usize>)> {
    let read = run::unless_it_panics(|| content.dequant_f32(name));
    let unreadable = || damaged(file.path, &format!("`{name}`, of which the reader cannot make sense"));
    read.ok_or_else(unreadable)?.map_err(|e| damaged(file.path, &e))
}

pub(crate) fn read<E: Display>(
    path: &Path,
    open: impl Fn(&Path) -> std::result::Result<GgufFile, E>,
) -> Result<GgufFile> {
    let length = fs_err::metadata(path)?.len();
    // The reader divides by `general.alignment`, which a damaged file may give as 0.
    let opened = run::unless_it_panics(|| open(path));
    let content = opened
        .ok_or_else(|| damaged(path, &"a header that its reader cannot make sense of"))?
        .map_err(|e| damaged(path, &e))?;
    for (name, tensor) in &content.tensors {
        // Every type takes more than a bit a number. The reader multiplies sizes without a look at their product, and allocates it.
        let numbers = tensor.shape.iter().try_fold(1usize, |all, size| all.checked_mul(*size));
        if numbers.is_none_or(|n| n as u64 / 8 > length) {
            let found = format!("`{name}` of shape {:?} in a file of {length} bytes", tensor.shape);
            return Err(damaged(path, &found));
        }
    }
    Ok(content)
}

pub(crate) fn damaged(path: &Path, error: &impl Display) -> Problem {
    invalid(path.display(), "a whole GGUF file", error.to_string(), "the file is damaged or cut: fetch it again")
}
