//! From a GGUF file of the Llama family to a Hugging Face folder in float32.

use std::collections::HashMap;
use std::fmt::Display;
use std::path::Path;

use problem::{Problem, Result, invalid};
use rlx_gguf::{GgufFile, MetaValue};
use serde_json::json;
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
        match self.get(key)? {
            // GGUF stores float32; the shortest decimal that gives it back is what the author wrote (1e-05, not 9.9999997e-06).
            MetaValue::F32(value) if value.is_finite() => Ok(value.to_string().parse().expect("a float's own text")),
            other => Err(self.wrong(format!("a float under `{key}`"), shown(other))),
        }
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
    let vocabulary = file.vocabulary(file.number("llama.context_length")?)?;
    let names = names(&file, &content)?;
    let (tensors, types) = tensors(&file, &content, &names)?;
    let vocab_size = tensors[0].1.size()[0];
    if vocabulary.tokens.len() as i64 > vocab_size {
        return Err(file.wrong(
            format!("at most {vocab_size} tokens, the rows of the embedding"),
            vocabulary.tokens.len().to_string(),
        ));
    }
    let config = config(&file, &vocabulary, vocab_size, !content.tensors.contains_key("output.weight"))?;
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

/// The tensors of a plain Llama: GGUF's names and the published ones. Another tensor in the file is an error.
fn names(file: &File, content: &GgufFile) -> Result<Vec<(String, String)>> {
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
    // `rope_freqs` would change the positions, a bias the layers: nothing of a file is left out in silence.
    let mut unknown: Vec<&String> =
        content.tensors.keys().filter(|k| !names.iter().any(|(theirs, _)| theirs == *k)).collect();
    unknown.sort();
    if !unknown.is_empty() {
        return Err(file.wrong("only the tensors of a plain Llama", format!("also {unknown:?}")));
    }
    Ok(names)
}

/// How many tensors are of each GGUF type.
type Types = std::collections::BTreeMap<String, usize>;

/// The tensors in float32 under their published names, and their types in the file.
fn tensors(file: &File, content: &GgufFile, names: &[(String, String)]) -> Result<(Vec<(String, Tensor)>, Types)> {
    let (heads, kv_heads) = (file.number("llama.attention.head_count")?, file.number("llama.attention.head_count_kv")?);
    let mut tensors = Vec::with_capacity(names.len());
    let mut types = Types::new();
    for (theirs, ours) in names {
        let stored =
            content.get(theirs).ok_or_else(|| file.wrong(format!("a tensor `{theirs}`"), "none of that name"))?;
        *types.entry(format!("{:?}", stored.dtype)).or_default() += 1;
        let read = run::unless_it_panics(|| content.dequant_f32(theirs));
        let unreadable = || damaged(file.path, &format!("`{theirs}`, of which the reader cannot make sense"));
        let (values, mut shape) = read.ok_or_else(unreadable)?.map_err(|e| damaged(file.path, &e))?;
        shape.reverse(); // GGUF names the innermost size first
        let axes = if theirs.ends_with("_norm.weight") { 1 } else { 2 };
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

/// `config.json`.
fn config(file: &File, vocabulary: &text::Vocabulary, vocab_size: i64, tied: bool) -> Result<serde_json::Value> {
    Ok(json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "attention_bias": false, "attention_dropout": 0.0, "mlp_bias": false,
        "bos_token_id": vocabulary.bos_id, "eos_token_id": vocabulary.eos_id, "pad_token_id": vocabulary.pad_id,
        "hidden_size": file.number("llama.embedding_length")?,
        "intermediate_size": file.number("llama.feed_forward_length")?,
        "num_hidden_layers": file.number("llama.block_count")?,
        "num_attention_heads": file.number("llama.attention.head_count")?,
        "num_key_value_heads": file.number("llama.attention.head_count_kv")?,
        "max_position_embeddings": vocabulary.context_length,
        "rms_norm_eps": file.real("llama.attention.layer_norm_rms_epsilon")?,
        "rope_theta": file.real("llama.rope.freq_base")?, "rope_scaling": null,
        "initializer_range": 0.02, "tie_word_embeddings": tied, "torch_dtype": "float32", "use_cache": true,
        "vocab_size": vocab_size,
    }))
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

/// `[heads * D, in]` with each head's rows as pairs (0, D/2), (1, D/2 + 1), ... to the order 0, 1, ...
fn halves(tensor: &Tensor, heads: i64) -> Tensor {
    let (rows, columns) = tensor.size2().expect("a matrix");
    tensor.view([heads, rows / heads / 2, 2, columns]).transpose(1, 2).reshape([rows, columns])
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
