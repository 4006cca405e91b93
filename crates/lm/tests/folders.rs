//! config.json: every key that changes what a model computes is honoured, or refused by its name; weights are finite; folders that are no
//! model are called what they are.

use std::path::Path;

use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::common::{Families, float32, golden, tiny, write_family};

/// What loading a family says with other keys in its config.json.
fn said(golden: &Families, family: &str, keys: &Value) -> String {
    let folder = tempfile::tempdir().unwrap();
    let family = &golden.families[family];
    write_family(folder.path(), family);
    let mut config = family.config.clone();
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    run::write_json(&folder.path().join("config.json"), &config).unwrap();
    lm::Lm::load(folder.path(), &float32()).map_or_else(|e| format!("{e}; {}", e.hint().unwrap()), |_| "loaded".into())
}

#[test]
fn a_key_that_changes_the_model_is_refused_by_its_name_and_one_that_does_not_passes() {
    let golden: Families = golden("families.json");
    for (family, keys, name) in [
        ("llama", json!({"quantization_config": {"quant_method": "awq", "bits": 4}}), "awq 4-bit; quantised"),
        (
            "gpt2",
            json!({"quantization_config": {"quant_method": "compressed-tensors"}}),
            "compressed-tensors; quantised",
        ),
        ("qwen3", json!({"quantization_config": {"quant_method": "fp8"}}), "`quantization_config`"),
        ("mistral, sliding window", json!({"quantization_config": {"quant_method": "hqq", "quant_config": {}}}), "hqq"),
        ("gemma3", json!({"quantization_config": {"quant_method": "mxfp4"}}), "mxfp4"),
        ("llama", json!({"quantization": {"group_size": 64, "bits": 4}}), "`quantization`"),
        ("llama", json!({"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}), "`auto_map`"),
        (
            "llama",
            json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}}),
            "`longrope`",
        ),
        ("gpt2", json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), "`rope_scaling`"),
        ("gptj", json!({"rope_theta": 5e5}), "`rope_theta`"),
        ("llama", json!({"partial_rotary_factor": 0.5}), "`partial_rotary_factor`"),
        ("gpt_neox", json!({"partial_rotary_factor": 0.25}), "`partial_rotary_factor`"),
        ("llama", json!({"sliding_window": 8}), "`sliding_window`"),
        ("gpt_neox", json!({"sliding_window": 8}), "`sliding_window`"),
        ("llama", json!({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}), "`layer_types`"),
        ("qwen2", json!({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}), "`layer_types`"),
        ("mistral, sliding window", json!({"layer_types": ["full_attention"]}), "`layer_types`"),
        ("llama", json!({"scale_attn_by_inverse_layer_idx": true}), "`scale_attn_by_inverse_layer_idx`"),
        ("gptj", json!({"scale_attn_weights": false}), "`scale_attn_weights`"),
        ("llama", json!({"attn_logit_softcapping": 50.0}), "`attn_logit_softcapping`"),
        ("gemma3", json!({"attn_logit_softcapping": 50.0}), "`attn_logit_softcapping`"),
        ("gemma3", json!({"final_logit_softcapping": 30.0}), "`final_logit_softcapping`"),
        ("gemma3", json!({"use_bidirectional_attention": true}), "`use_bidirectional_attention`"),
        ("llama", json!({"logit_scale": 0.0625}), "`logit_scale`"),
        ("llama", json!({"embedding_multiplier": 12.0}), "`embedding_multiplier`"),
        ("llama", json!({"residual_multiplier": 0.22}), "`residual_multiplier`"),
        ("llama", json!({"attention_multiplier": 0.125}), "`attention_multiplier`"),
        ("llama", json!({"num_local_experts": 8}), "`num_local_experts`"),
        ("mistral, sliding window", json!({"attention_bias": true}), "`attention_bias`"),
        ("gpt2", json!({"mlp_bias": true}), "`mlp_bias`"),
        ("gpt2", json!({"add_cross_attention": true}), "`add_cross_attention`"),
        ("llama", json!({"hidden_act": "gelu_fast"}), "`hidden_act`"),
        ("gpt2", json!({"activation_function": "relu"}), "`activation_function`"),
        ("gemma3", json!({"hidden_activation": "quick_gelu"}), "`hidden_activation`"),
        ("llama", json!({"tie_word_embeddings": true}), "which config.json ties it to"),
        ("llama, biases, tied", json!({"tie_word_embeddings": false}), "`lm_head.weight`"),
        ("qwen3", json!({"head_dim": null}), "shape"),
        ("llama", json!({"num_key_value_heads": null}), "shape"),
    ] {
        let said = said(&golden, family, &keys);
        assert!(said.contains(name), "{family}, {keys}: {said}");
    }
    for (family, keys) in [
        (
            "llama",
            json!({"quantization_config": null, "sliding_window": null, "layer_types": null, "rope_scaling": null}),
        ),
        ("llama", json!({"pretraining_tp": 2, "attention_bias": null, "mlp_bias": null, "attention_dropout": 0.1})),
        ("llama", json!({"sliding_window": 64, "use_sliding_window": false, "partial_rotary_factor": 1.0})),
        (
            "llama",
            json!({"auto_map": {"AutoTokenizer": "tokenization_x.X"}, "logit_scale": 1.0, "num_local_experts": 0}),
        ),
        ("qwen2", json!({"use_sliding_window": null, "sliding_window": 8, "layer_types": ["full_attention"]})),
        // As transformers writes a Gemma 3 that it has read.
        ("gemma3", json!({"sliding_window_pattern": 6, "_sliding_window_pattern": 6})),
        ("gpt2", json!({"rope_scaling": null, "reorder_and_upcast_attn": true, "scale_attn_weights": null})),
    ] {
        assert_eq!(said(&golden, family, &keys), "loaded", "{family}, {keys}");
    }
}

#[test]
fn a_table_of_positions_that_names_only_its_base_is_honoured() {
    let golden: Families = golden("families.json");
    let logits = |keys: &Value| {
        let folder = tempfile::tempdir().unwrap();
        let family = &golden.families["llama"];
        write_family(folder.path(), family);
        let mut config = family.config.clone();
        config.as_object_mut().unwrap().remove("rope_parameters");
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        run::write_json(&folder.path().join("config.json"), &config).unwrap();
        let lm = lm::Lm::load(folder.path(), &float32()).unwrap();
        lm::full_logits(&lm, &[1, 2, 3, 4, 5], None)
    };
    let plain = logits(&json!({"rope_theta": 5e5}));
    let table = logits(&json!({"rope_theta": 1e4, "rope_scaling": {"rope_theta": 5e5}}));
    assert!(plain.equal(&table) && !plain.equal(&logits(&json!({"rope_theta": 1e4}))));
}

#[test]
fn a_key_that_is_left_out_has_transformers_default() {
    let golden: Families = golden("families.json");
    let context = |family: &str, removed: &[&str]| {
        let folder = tempfile::tempdir().unwrap();
        let family = &golden.families[family];
        write_family(folder.path(), family);
        let mut config = family.config.clone();
        removed.iter().for_each(|key| drop(config.as_object_mut().unwrap().remove(*key)));
        run::write_json(&folder.path().join("config.json"), &config).unwrap();
        lm::Lm::load(folder.path(), &float32()).map(|lm| lm.context()).map_err(|e| e.to_string())
    };
    assert_eq!(context("llama", &[]), Ok(64));
    assert_eq!(context("llama", &["max_position_embeddings"]), Ok(2048));
    assert_eq!(context("gpt_neox", &["max_position_embeddings"]), Ok(2048));
    assert_eq!(context("qwen2", &["max_position_embeddings"]), Ok(32_768));
    // Four heads are not shared among the eight key/value heads of Mistral's default: a null means as many as heads, absence does not.
    let said = context("mistral, sliding window", &["num_key_value_heads"]).unwrap_err();
    assert!(said.contains("8 key/value heads"), "{said}");
    let said = context("qwen2", &["num_key_value_heads"]).unwrap_err();
    assert!(said.contains("32 key/value heads"), "{said}");
}

#[test]
fn no_position_beyond_the_context_is_computed() {
    let golden: Families = golden("families.json");
    for family in ["gpt2", "llama", "llama, RoPE yarn"] {
        let lm = tiny(&golden.families[family], &float32());
        let row = |tokens: usize| lm::TokenRow { ids: vec![1; tokens], answer_start: 1 };
        lm::Prefix::new(&lm, vec![row(3), row(64)], 0..lm.depth(), |_| ()).unwrap();
        let error = lm::Prefix::new(&lm, vec![row(3), row(65)], 0..lm.depth(), |_| ()).unwrap_err();
        assert!(error.to_string().contains("at most 64 tokens, found 65") && error.kind() == problem::Kind::User);
    }
}

#[test]
fn weights_that_are_not_finite_are_named_with_their_place() {
    let golden: Families = golden("families.json");
    let family = &golden.families["gpt2"];
    let folder = tempfile::tempdir().unwrap();
    let name = "transformer.h.1.attn.c_proj.weight";
    for (number, kind, spelled) in [
        (f64::NAN, Kind::Float, "NaN"),
        (f64::INFINITY, Kind::Half, "infinity"),
        (f64::NEG_INFINITY, Kind::BFloat16, "-infinity"),
        (f64::NAN, Kind::Double, "NaN"),
    ] {
        write_family(folder.path(), family);
        let path = folder.path().join("model.safetensors");
        let mut tensors: Vec<(String, Tensor)> =
            lm::read_tensors(&path, tch::Device::Cpu, Some(kind)).unwrap().by_name.into_iter().collect();
        let damaged = tensors.iter().find(|(n, _)| n == name).unwrap();
        _ = damaged.1.get(2).get(5).fill_(number);
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        lm::write_tensors(&path, &tensors, None).unwrap();
        let error = lm::Lm::load(folder.path(), &float32()).unwrap_err();
        let wanted = format!("tensor `{name}`: expected finite numbers, found {spelled} at [2, 5]");
        assert!(error.to_string().contains(&wanted) && error.kind() == problem::Kind::User, "{error}");
    }
}

/// What loading a folder with these files says, with the hint.
fn of_files(files: &[(&str, &[u8])]) -> String {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), files);
    let error = lm::ModelConfig::read(folder.path()).and_then(|_| lm::weight_files(folder.path())).unwrap_err();
    assert_eq!(error.kind(), problem::Kind::User, "{error}");
    format!("{error}; {}", error.hint().unwrap())
}

fn write(folder: &Path, files: &[(&str, &[u8])]) {
    for (name, bytes) in files {
        let path = folder.join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, bytes).unwrap();
    }
}

#[test]
fn folders_are_called_what_they_are() {
    let golden: Families = golden("families.json");
    let config = serde_json::to_vec(&golden.families["llama"].config).unwrap();
    let config = ("config.json", config.as_slice());
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n".as_slice();
    let adapter = br#"{"peft_type": "IA3", "base_model_name_or_path": "org/base"}"#.as_slice();
    for (files, said) in [
        (vec![], "an empty folder"),
        (vec![config, ("pytorch_model.bin", b"PK")], "pickled tensors, pytorch_model.bin"),
        (vec![config, ("model.pt", b"PK")], "pickled tensors, model.pt"),
        (vec![("model.ckpt", b"PK")], "pickled tensors, model.ckpt"),
        (vec![config, ("consolidated.00.pth", b"PK")], "the authors' own layout"),
        (vec![("params.json", b"{}"), ("consolidated.safetensors", b"x")], "the authors' own layout"),
        (vec![config, ("model.onnx", b"x")], "weights for ONNX, model.onnx"),
        (vec![config, ("tf_model.h5", b"x")], "weights for TensorFlow"),
        (vec![config, ("flax_model.msgpack", b"x")], "weights for Flax"),
        (vec![("x-Q4_K_M.gguf", b"GGUF")], "`idiolect import x-Q4_K_M.gguf FOLDER`"),
        (vec![config, ("model-00001-of-00002.safetensors", b"x")], "without an index"),
        (vec![config], "no weights"),
        (vec![("notes.txt", b"x")], "no config.json in it; it has notes.txt"),
        (
            vec![("adapter_config.json", adapter), ("adapter_model.safetensors", b"x")],
            "a PEFT adapter (IA3) of org/base",
        ),
        (vec![config, ("adapter_config.json", adapter)], "a PEFT adapter (IA3) of org/base"),
        (vec![config, ("model.safetensors", pointer)], "pointers of Git LFS in the place of model.safetensors"),
        (vec![config, ("model.safetensors", b"x"), ("vocab.json", pointer)], "in the place of vocab.json"),
        (vec![("config.json", pointer)], "in the place of config.json"),
        (
            vec![config, ("quantize_config.json", b"{}"), ("model.safetensors", b"x")],
            "quantised checkpoints are not read",
        ),
        (vec![("snapshots/abc/config.json", b"{}"), ("refs/main", b"abc\n")], "snapshots/abc"),
        (vec![("models--a--b/snapshots/c/config.json", b"{}")], "models--a--b/snapshots/<commit>"),
        (vec![("checkpoint-90/config.json", b"{}"), ("checkpoint-500/config.json", b"{}")], "checkpoint-500"),
        (vec![("checkpoint-5/adapter_config.json", b"{}")], "1 checkpoints of adapters"),
        (vec![("original/params.json", b"{}"), ("hf/config.json", b"{}")], "but one in hf"),
        (
            vec![config, ("model.safetensors.index.json", br#"{"weight_map": {"a": "x.safetensors"}}"#)],
            "none named x.safetensors",
        ),
        (
            vec![config, ("model.safetensors.index.json", br#"{"weight_map": {"a": "../x.safetensors"}}"#)],
            "names of files in the same folder",
        ),
        (vec![config, ("model.safetensors.index.json", br#"{"weight_map": {"a": 5}}"#)], "names of files"),
    ] {
        let found = of_files(&files);
        assert!(found.contains(said), "{:?}: {found}", files.iter().map(|f| f.0).collect::<Vec<_>>());
    }
}

#[test]
fn what_travels_with_a_model_is_everything_small_but_weights_and_code() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let travel: &[&str] = &["LICENSE", "additional_chat_templates/tools.jinja", "config.json", "tokenizer.model"];
    let left: &[&str] = &[
        "additional_chat_templates/x.py",
        ".gitattributes",
        "pytorch_model.bin",
        "modeling.py",
        "report.json",
        "train.jsonl",
        "adapter_config.json",
    ];
    write(from.path(), &[travel, left].concat().iter().map(|name| (*name, b"x".as_slice())).collect::<Vec<_>>());
    let copied = lm::copy_companions(from.path(), to.path()).unwrap();
    assert_eq!(copied.files.iter().map(|f| f.to_str().unwrap()).collect::<Vec<_>>(), travel);
    assert_eq!(copied.left, ["adapter_config.json", "modeling.py", "pytorch_model.bin", "train.jsonl"]);
    assert!(travel.iter().all(|name| to.path().join(name).exists()));
    assert!(left.iter().all(|name| !to.path().join(name).exists()));
}
