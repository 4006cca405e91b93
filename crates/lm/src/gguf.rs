//! From a GGUF file of the Llama family to a Hugging Face folder in float32.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::path::Path;

use problem::{Problem, Result, invalid};
use rlx_gguf::{GgufFile, MetaValue};
use serde_json::{Value, json};
use tch::Tensor;

use crate::weights::write_tensors;

/// What an import did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportReport {
    /// Tensors written.
    pub tensors: usize,
    /// Numbers in them.
    pub parameters: usize,
    /// Of how many tensors each GGUF type was.
    pub types: Vec<(String, usize)>,
}

/// The beginning of a value: a list may hold millions.
fn shown(value: &MetaValue) -> String {
    match value {
        MetaValue::Array(items) => format!("a list of {}", items.len()),
        MetaValue::String(text) => format!("{:?}", text.chars().take(80).collect::<String>()),
        other => format!("{other:?}"),
    }
}

/// GGUF stores float32; the shortest decimal that gives it back is what the author wrote (1e-05, not 9.9999997e-06).
fn decimal(value: &MetaValue) -> Option<f64> {
    match value {
        MetaValue::F32(value) if value.is_finite() => Some(value.to_string().parse().expect("a float's own text")),
        _ => None,
    }
}

/// Keys after `llama.` that decide config.json.
const READ: [&str; 22] = [
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
const UNREAD: [&str; 3] = ["rope.scaling.finetuned", "tensor_data_layout", "pooling_type"];

struct File<'a> {
    path: &'a Path,
    metadata: &'a HashMap<String, MetaValue>,
}

impl File<'_> {
    fn wrong(&self, expected: impl Into<String>, found: impl Into<String>) -> Problem {
        invalid(self.path.display(), expected, found, "only Llama models with a byte-level BPE vocabulary are imported")
    }

    fn get(&self, key: &str) -> Result<&MetaValue> {
        self.metadata.get(key).ok_or_else(|| self.wrong(format!("the metadata key `{key}`"), "none of that name"))
    }

    fn number(&self, key: &str) -> Result<usize> {
        let value = self.get(key)?;
        let number = value.as_u64().or_else(|| value.as_u32().map(u64::from)).and_then(|n| usize::try_from(n).ok());
        number.ok_or_else(|| self.wrong(format!("a number under `{key}`"), shown(value)))
    }

    fn real(&self, key: &str) -> Result<f64> {
        let value = self.get(key)?;
        decimal(value).ok_or_else(|| self.wrong(format!("a float under `{key}`"), shown(value)))
    }

    /// As [`Self::number`]; none where the key is not there.
    fn number_if_there(&self, key: &str) -> Result<Option<usize>> {
        self.metadata.get(key).map(|_| self.number(key)).transpose()
    }

    /// As [`Self::real`]; none where the key is not there.
    fn real_if_there(&self, key: &str) -> Result<Option<f64>> {
        self.metadata.get(key).map(|_| self.real(key)).transpose()
    }

    fn text(&self, key: &str) -> Result<&str> {
        let value = self.get(key)?;
        value.as_str().ok_or_else(|| self.wrong(format!("a text under `{key}`"), shown(value)))
    }

    fn list<T>(&self, key: &str, item: impl Fn(&MetaValue) -> Option<T>) -> Result<Vec<T>> {
        let value = self.get(key)?;
        let values = value.as_array().ok_or_else(|| self.wrong(format!("a list under `{key}`"), shown(value)))?;
        values
            .iter()
            .map(|v| item(v).ok_or_else(|| self.wrong(format!("another type in the list `{key}`"), shown(v))))
            .collect()
    }

    /// Refuses by name every key that changes what a model computes and that this code does not read, unless its value changes nothing.
    fn refuse_others(&self) -> Result<()> {
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

    fn vocabulary(&self, context_length: usize) -> Result<text::Vocabulary> {
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

/// Writes `config.json`, `generation_config.json`, `model.safetensors` (float32) and the tokenizer's files.
///
/// GGUF stores the rows of q and k interleaved for its own rotary kernel; they are put back into the order of the
/// published checkpoints (halves).
pub fn import_gguf(path: &Path, folder: &Path) -> Result<ImportReport> {
    let content = read(path, |path| GgufFile::from_path_mmap(path))?;
    let file = File { path, metadata: &content.metadata };
    if file.text("general.architecture")? != "llama" {
        return Err(file.wrong("`general.architecture` to be `llama`", file.text("general.architecture")?));
    }
    file.refuse_others()?;
    let vocabulary = file.vocabulary(file.number("llama.context_length")?)?;
    let head = head_size(&file)?;
    let rope = rope(&file, &content, head)?;
    let (names, biases) = names(&file, &content)?;
    let (tensors, types) = tensors(&file, &content, &names)?;
    let vocab_size = tensors[0].1.size()[0];
    if vocabulary.tokens.len() as i64 > vocab_size {
        return Err(file.wrong(
            format!("at most {vocab_size} tokens, the rows of the embedding"),
            vocabulary.tokens.len().to_string(),
        ));
    }
    if let Some(said) = file.number_if_there("llama.vocab_size")?.filter(|said| *said as i64 != vocab_size) {
        let expected = format!("`llama.vocab_size` to be {vocab_size}, the rows of the embedding");
        return Err(file.wrong(expected, said.to_string()));
    }
    let tied = !content.tensors.contains_key("output.weight");
    let config = config(&file, &vocabulary, &Sizes { vocab_size, head, rope, tied, biases })?;
    let generation = json!({"bos_token_id": vocabulary.bos_id, "eos_token_id": vocabulary.eos_id,
                            "pad_token_id": vocabulary.pad_id});
    vocabulary.check(&path.display())?;
    fs_err::create_dir_all(folder)?;
    run::write_json(&folder.join("config.json"), &config)?;
    run::write_json(&folder.join("generation_config.json"), &generation)?;
    vocabulary.write(folder)?;
    write_tensors(&folder.join("model.safetensors"), &tensors, Some(("format", "pt".into())))?;
    Ok(ImportReport {
        tensors: tensors.len(),
        parameters: tensors.iter().map(|(_, t)| t.numel()).sum(),
        types: types.into_iter().collect(),
    })
}

/// The layers that may have a bias, of attention and of the MLP: GGUF's names and the published ones.
const BIASED: [&[(&str, &str)]; 2] = [
    &[
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
    ],
    &[("ffn_gate", "mlp.gate_proj"), ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")],
];

/// GGUF's name and the published name of each tensor.
type Names = Vec<(String, String)>;

/// The tensors of a Llama, and whether attention and the MLP have biases. Another tensor in the file is an error.
fn names(file: &File, content: &GgufFile) -> Result<(Names, [bool; 2])> {
    let depth = file.number("llama.block_count")?;
    // Each block has tensors; a damaged number must not become names without end.
    if depth == 0 || depth > content.tensors.len() {
        let expected = format!("`llama.block_count` to be from 1 to {}, the number of tensors", content.tensors.len());
        return Err(file.wrong(expected, depth.to_string()));
    }
    let mut names = vec![
        ("token_embd.weight".to_owned(), "model.embed_tokens.weight".to_owned()),
        ("output_norm.weight".to_owned(), "model.norm.weight".to_owned()),
    ];
    if content.tensors.contains_key("output.weight") {
        names.push(("output.weight".into(), "lm_head.weight".into()));
    }
    for i in 0..depth {
        for (theirs, ours) in [
            ("attn_norm", "input_layernorm"),
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_norm", "post_attention_layernorm"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ] {
            names.push((format!("blk.{i}.{theirs}.weight"), format!("model.layers.{i}.{ours}.weight")));
        }
    }
    let mut biases = [false; 2];
    for (layers, there) in BIASED.iter().zip(&mut biases) {
        let of_block = |i: usize| {
            layers
                .iter()
                .map(move |(theirs, ours)| (format!("blk.{i}.{theirs}.bias"), format!("model.layers.{i}.{ours}.bias")))
        };
        let all: Names = (0..depth).flat_map(of_block).collect();
        *there = all.iter().any(|(theirs, _)| content.tensors.contains_key(theirs));
        if let Some((missing, _)) = all.iter().find(|(theirs, _)| *there && !content.tensors.contains_key(theirs)) {
            let found = format!("biases without `{missing}`");
            return Err(file.wrong("biases of every layer of attention, or of the MLP, or none", found));
        }
        names.extend(all.into_iter().filter(|_| *there));
    }
    // Nothing of a file is left out in silence. What `rope_freqs` says is part of config.json.
    let known: HashSet<&str> = names.iter().map(|(theirs, _)| theirs.as_str()).chain([ROPE_FREQS]).collect();
    let mut unknown: Vec<&String> = content.tensors.keys().filter(|k| !known.contains(k.as_str())).collect();
    unknown.sort();
    if !unknown.is_empty() {
        return Err(file.wrong("only the tensors of a Llama", format!("also {unknown:?}")));
    }
    Ok((names, biases))
}

/// Factors of the frequencies of positions, as llama.cpp's converter stores those of Llama 3.
const ROPE_FREQS: &str = "rope_freqs.weight";

/// The size of a head. Keys and values of different sizes are refused, and positions that rotate a part of a head.
fn head_size(file: &File) -> Result<usize> {
    let (hidden, heads) = (file.number("llama.embedding_length")?, file.number("llama.attention.head_count")?);
    let usual = hidden / heads.max(1);
    let size = file.number_if_there("llama.attention.key_length")?.unwrap_or(usual);
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        let found = file.number_if_there(key)?;
        // Before there was `key_length`, a head's size was said by none, or by the numbers of it that are rotated.
        if let Some(found) = found.filter(|found| *found != size) {
            return Err(file.wrong(format!("`{key}` to be {size}, the size of a head"), found.to_string()));
        }
    }
    Ok(size)
}

/// `rope_scaling` of config.json: what the file's keys and its tensor of frequencies say, as transformers writes it.
fn rope(file: &File, content: &GgufFile, head: usize) -> Result<Value> {
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
fn llama3(file: &File, content: &GgufFile, head: usize) -> Result<Value> {
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
fn llama3_of(stored: &[f32], theta: f64, original: Option<usize>) -> Option<(f64, f64, f64, usize)> {
    let d = 2.0 * stored.len() as f64;
    let plain: Vec<f64> = (0..stored.len()).map(|i| theta.powf(-2.0 * i as f64 / d)).collect();
    let factor = f64::from(stored.iter().copied().fold(0.0, f32::max));
    let originals = original.into_iter().chain((4..=20).rev().map(|n| 1 << n));
    let borders = [(1.0, 4.0), (1.0, 2.0), (1.0, 8.0), (1.0, 32.0)];
    let mut tries = originals.flat_map(|original| borders.map(|(low, high)| (factor, low, high, original)));
    tries.find(|(factor, low, high, original)| {
        let wanted = |f: &f64| f / crate::parts::llama3(*f, *factor, *low, *high, *original as f64);
        plain.iter().zip(stored).all(|(f, stored)| (wanted(f) / f64::from(*stored) - 1.0).abs() < 1e-4)
    })
}

fn freq_base(file: &File) -> Result<f64> {
    Ok(file.real_if_there("llama.rope.freq_base")?.unwrap_or(10_000.0))
}

/// How many tensors are of each GGUF type.
type Types = std::collections::BTreeMap<String, usize>;

/// The tensors in float32 under their published names, and their types in the file.
fn tensors(file: &File, content: &GgufFile, names: &[(String, String)]) -> Result<(Vec<(String, Tensor)>, Types)> {
    let heads = file.number("llama.attention.head_count")?;
    let kv_heads = file.number_if_there("llama.attention.head_count_kv")?.unwrap_or(heads);
    let mut tensors = Vec::with_capacity(names.len());
    let mut types = Types::new();
    for (theirs, ours) in names {
        let stored =
            content.get(theirs).ok_or_else(|| file.wrong(format!("a tensor `{theirs}`"), "none of that name"))?;
        *types.entry(format!("{:?}", stored.dtype)).or_default() += 1;
        let (values, mut shape) = dequantised(file, content, theirs)?;
        shape.reverse(); // GGUF names the innermost size first
        let axes = if theirs.ends_with("_norm.weight") || theirs.rsplit('.').next() == Some("bias") { 1 } else { 2 };
        if shape.len() != axes || values.is_empty() || shape.iter().product::<usize>() != values.len() {
            let found = format!("{} numbers of shape {shape:?}", values.len());
            return Err(file.wrong(format!("`{theirs}` with {axes} axes"), found));
        }
        let shape: Vec<i64> = shape.into_iter().map(|d| d as i64).collect();
        let tensor = Tensor::from_slice(&values).view(shape.as_slice());
        let of_heads = |heads: usize| -> Result<Tensor> {
            let rows = shape[0] as usize;
            if heads == 0 || !rows.is_multiple_of(2) || !(rows / 2).is_multiple_of(heads) {
                let expected = format!("`{theirs}` to hold an even number of rows for each head");
                return Err(file.wrong(expected, format!("{rows} rows for {heads} heads")));
            }
            Ok(halves(&tensor, heads as i64))
        };
        let tensor = match theirs.rsplit('.').nth(1) {
            Some("attn_q") => of_heads(heads)?,
            Some("attn_k") => of_heads(kv_heads)?,
            _ => tensor,
        };
        tensors.push((ours.clone(), tensor));
    }
    Ok((tensors, types))
}

fn dequantised(file: &File, content: &GgufFile, name: &str) -> Result<(Vec<f32>, Vec<usize>)> {
    let read = run::unless_it_panics(|| content.dequant_f32(name));
    let unreadable = || damaged(file.path, &format!("`{name}`, of which the reader cannot make sense"));
    read.ok_or_else(unreadable)?.map_err(|e| damaged(file.path, &e))
}

/// What config.json says besides the file's own numbers.
struct Sizes {
    vocab_size: i64,
    head: usize,
    rope: Value,
    tied: bool,
    /// Of attention, of the MLP.
    biases: [bool; 2],
}

/// `config.json`.
fn config(file: &File, vocabulary: &text::Vocabulary, sizes: &Sizes) -> Result<Value> {
    let (hidden, heads) = (file.number("llama.embedding_length")?, file.number("llama.attention.head_count")?);
    let kv_heads = file.number_if_there("llama.attention.head_count_kv")?.unwrap_or(heads);
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "attention_bias": sizes.biases[0], "attention_dropout": 0.0, "mlp_bias": sizes.biases[1],
        "bos_token_id": vocabulary.bos_id, "eos_token_id": vocabulary.eos_id, "pad_token_id": vocabulary.pad_id,
        "hidden_size": hidden,
        "intermediate_size": file.number("llama.feed_forward_length")?,
        "num_hidden_layers": file.number("llama.block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": vocabulary.context_length,
        "rms_norm_eps": file.real("llama.attention.layer_norm_rms_epsilon")?,
        "rope_theta": freq_base(file)?, "rope_scaling": sizes.rope,
        "initializer_range": 0.02, "tie_word_embeddings": sizes.tied, "torch_dtype": "float32", "use_cache": true,
        "vocab_size": sizes.vocab_size,
    });
    if sizes.head.checked_mul(heads) != Some(hidden) {
        config["head_dim"] = sizes.head.into();
    }
    Ok(config)
}

/// Numbers in all tensors of a GGUF file, and its blocks, from its header alone.
pub fn gguf_size(path: &Path) -> Result<(usize, Option<usize>)> {
    let content = read(path, |path| GgufFile::header_from_path(path))?;
    let blocks = content.metadata.iter().find(|(key, _)| key.ends_with(".block_count"));
    let blocks = blocks.and_then(|(_, value)| value.as_u32()).map(|n| n as usize);
    let numbers = content.tensors.values().map(rlx_gguf::GgufTensor::n_elements);
    Ok((numbers.fold(0, usize::saturating_add), blocks))
}

fn read<E: Display>(path: &Path, open: impl Fn(&Path) -> std::result::Result<GgufFile, E>) -> Result<GgufFile> {
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

fn damaged(path: &Path, error: &impl Display) -> Problem {
    invalid(path.display(), "a whole GGUF file", error.to_string(), "the file is damaged or cut: fetch it again")
}

/// `[heads * D, in]`, or `[heads * D]`, with each head's rows as pairs (0, D/2), (1, D/2 + 1), ... to the order 0, 1, ...
fn halves(tensor: &Tensor, heads: i64) -> Tensor {
    let rows = tensor.size()[0];
    tensor.view([heads, rows / heads / 2, 2, -1]).transpose(1, 2).reshape(tensor.size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_become_halves() {
        // One head of four rows. llama.cpp's converter permutes 0 1 2 3 to 0 2 1 3; we undo it.
        let theirs = Tensor::from_slice(&[0.0f32, 2.0, 1.0, 3.0]).view([4, 1]);
        let ours = Tensor::from_slice(&[0.0f32, 1.0, 2.0, 3.0]).view([4, 1]);
        assert_eq!(halves(&theirs, 1), ours);
        // Two heads: each on its own.
        let theirs = Tensor::cat(&[&theirs, &(&theirs + 4.0)], 0);
        assert_eq!(halves(&theirs, 2), Tensor::arange(8, (tch::Kind::Float, tch::Device::Cpu)).view([8, 1]));
    }

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

    #[test]
    fn a_cut_or_foreign_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let zero_alignment = [
            &b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x11\0\0\0\0\0\0\0"[..],
            b"general.alignment\x04\0\0\0\0\0\0\0",
        ]
        .concat();
        for bytes in [&b""[..], b"GGUF", b"GGUF\x03\0\0\0\x01", b"not a gguf file at all", &zero_alignment] {
            fs_err::write(&path, bytes).unwrap();
            let error = import_gguf(&path, &dir.path().join("out")).unwrap_err();
            assert!(error.to_string().contains("x.gguf"), "{error}");
        }
        assert!(!dir.path().join("out").exists());
    }
}
