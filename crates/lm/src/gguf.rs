//! From a GGUF file of the Llama family to a Hugging Face folder in float32.

use std::collections::HashSet;
use std::path::Path;

use problem::Result;
use rlx_gguf::GgufFile;
use serde_json::{Value, json};
use tch::Tensor;

use crate::gguf_file::{File, dequantised, read};
use crate::gguf_rope::{ROPE_FREQS, freq_base, rope};
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
