//! Llama's and Mistral's first tokenizers, which come from SentencePiece: how transformers reads a `tokenizer.json` of their class.

use serde_json::{Value, json};

/// The bytes of a `tokenizer.json`, changed as transformers 5 changes it for `LlamaTokenizer` and `LlamaTokenizerFast`: it takes vocabulary, merges,
/// added tokens and post-processor from the file, and writes spaces as U+2581 in its own way. Without `legacy = true` one is put before
/// the beginning of a text only, and not after every special token too, as most of these files have it. Files of other classes, and those that go by
/// bytes (Llama 3), stay as they are.
pub(crate) fn as_its_class_reads(bytes: Vec<u8>, config: &Value) -> Vec<u8> {
    let class = config["tokenizer_class"].as_str().unwrap_or_default();
    if !matches!(class, "LlamaTokenizer" | "LlamaTokenizerFast") {
        return bytes;
    }
    let Ok(mut value) = serde_json::from_slice::<Value>(&bytes) else { return bytes };
    let by_bytes = ["pre_tokenizer", "decoder"].iter().any(|part| value[part].to_string().contains("\"ByteLevel\""));
    if by_bytes || value["model"]["type"] != "BPE" || !value.is_object() {
        return bytes;
    }
    let prefix = config["add_prefix_space"].as_bool().unwrap_or(true);
    let scheme = match (prefix, config["legacy"] == true) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    value["normalizer"] = Value::Null;
    value["pre_tokenizer"] =
        json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": false});
    value["decoder"] = json!({"type": "Sequence", "decoders": decoders});
    if let Some(model) = value["model"].as_object_mut() {
        model.insert("fuse_unk".into(), json!(true));
        model.insert("byte_fallback".into(), json!(true));
        model.insert("dropout".into(), Value::Null);
    }
    value.to_string().into_bytes()
}
