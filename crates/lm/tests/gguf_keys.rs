//! GGUF metadata: what changes the model reaches config.json, or is refused by the key's name.

use rlx_gguf::MetaValue;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::common::float32;
use crate::damage::{gguf_with, read_gguf};

fn text(value: &str) -> MetaValue {
    MetaValue::String(value.into())
}

/// config.json of the import, and the logits of the imported model.
fn imported(keys: &[(&str, MetaValue)], tensors: &[(String, Vec<f32>)]) -> problem::Result<(Value, Tensor)> {
    let folder = tempfile::tempdir().unwrap();
    read_gguf(folder.path(), &gguf_with(keys, tensors))?;
    let out = folder.path().join("out");
    let lm = lm::Lm::load(&out, &float32())?;
    Ok((run::read_json(&out.join("config.json")).unwrap(), lm::full_logits(&lm, &[1, 2, 3, 4, 5, 6, 7, 8], None)))
}

/// The logits of the plain import with another config.json.
fn twin(changes: &Value) -> Tensor {
    let folder = tempfile::tempdir().unwrap();
    read_gguf(folder.path(), &gguf_with(&[], &[])).unwrap();
    let out = folder.path().join("out");
    let mut config: Value = run::read_json(&out.join("config.json")).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    run::write_json(&out.join("config.json"), &config).unwrap();
    lm::full_logits(&lm::Lm::load(&out, &float32()).unwrap(), &[1, 2, 3, 4, 5, 6, 7, 8], None)
}

#[test]
fn scaling_of_positions_is_kept() {
    let plain = twin(&json!({}));
    let number = MetaValue::F32;
    let linear = json!({"rope_type": "linear", "factor": 4.0});
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16});
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                        "original_max_position_embeddings": 32});
    let key = "llama.rope.scaling.";
    let [kind, factor, original] = ["type", "factor", "original_context_length"].map(|name| format!("{key}{name}"));
    let freqs = [("rope_freqs.weight".to_owned(), vec![1.0f32, 8.0])];
    for (keys, tensors, scaling) in [
        (vec![(kind.as_str(), text("linear")), (&factor, number(4.0))], &[][..], linear.clone()),
        (vec![(factor.as_str(), number(4.0))], &[], linear.clone()), // llama.cpp's default type
        (vec![("llama.rope.scale_linear", number(4.0))], &[], linear),
        (vec![(kind.as_str(), text("yarn")), (&factor, number(4.0)), (&original, MetaValue::U32(16))], &[], yarn),
        (vec![(original.as_str(), MetaValue::U32(32))], &freqs, llama3),
        (vec![(kind.as_str(), text("none")), (&factor, number(4.0))], &[], Value::Null),
    ] {
        // Frequencies of 1 and 0.0316 turns: both kinds of Llama 3's.
        let base = json!({"rope_theta": 1000.0, "rope_scaling": scaling});
        let mut keys = keys.clone();
        keys.push(("llama.rope.freq_base", number(1000.0)));
        let (config, logits) = imported(&keys, tensors).unwrap();
        assert_eq!((&config["rope_scaling"], &config["rope_theta"]), (&scaling, &json!(1000.0)), "{keys:?}");
        assert_eq!(logits, twin(&base), "{keys:?}");
        assert!(scaling.is_null() || (logits - &plain).abs().max().double_value(&[]) > 1e-6, "{keys:?}");
    }
}

#[test]
fn biases_are_read_and_turned_as_the_weights_are() {
    let numbers = |n: usize| (0..n).map(|i| i as f32 * 0.1).collect::<Vec<f32>>();
    let bias = |layers: &[(&str, usize)]| -> Vec<(String, Vec<f32>)> {
        let of = |block: usize| layers.iter().map(move |(name, n)| (format!("blk.{block}.{name}.bias"), numbers(*n)));
        (0..2).flat_map(of).collect()
    };
    let attention = [("attn_q", 8), ("attn_k", 4), ("attn_v", 4), ("attn_output", 8)];
    let folder = tempfile::tempdir().unwrap();
    read_gguf(folder.path(), &gguf_with(&[], &bias(&attention))).unwrap();
    let out = folder.path().join("out");
    let config: Value = run::read_json(&out.join("config.json")).unwrap();
    assert_eq!((&config["attention_bias"], &config["mlp_bias"]), (&json!(true), &json!(false)));
    let tensors = lm::read_tensors(&out.join("model.safetensors"), tch::Device::Cpu, None).unwrap().by_name;
    // One head of k: 0 1 2 3 as pairs (0, 2), (1, 3) becomes 0 2 1 3.
    let k = &tensors["model.layers.1.self_attn.k_proj.bias"];
    assert_eq!(*k, Tensor::from_slice(&[0.0f32, 0.2, 0.1, 0.3]).to_kind(Kind::Float));
    lm::Lm::load(&out, &float32()).unwrap();
    // Some layers alone.
    let error = read_gguf(folder.path(), &gguf_with(&[], &bias(&attention[..3]))).unwrap_err().to_string();
    assert!(error.contains("blk.0.attn_output.bias"), "{error}");
    let mlp = bias(&[("ffn_gate", 12), ("ffn_up", 12), ("ffn_down", 8)]);
    let (config, _) = imported(&[], &mlp).unwrap();
    assert_eq!((&config["attention_bias"], &config["mlp_bias"]), (&json!(false), &json!(true)));
}

#[test]
fn a_key_that_changes_the_model_is_refused_by_its_name() {
    let (number, real) = (MetaValue::U32, MetaValue::F32);
    let yarn = [("llama.rope.scaling.type", text("yarn")), ("llama.rope.scaling.factor", real(2.0))];
    for (keys, said) in [
        (vec![("llama.rope.scaling.type", text("longrope")), ("llama.rope.scaling.factor", real(2.0))], "`longrope`"),
        (vec![("llama.rope.scaling.type", text("linear"))], "`llama.rope.scaling.factor`"),
        (vec![("llama.rope.scaling.attn_factor", real(1.2))], "`llama.rope.scaling.attn_factor`"),
        ([&yarn[..], &[("llama.rope.scaling.yarn_beta_fast", real(16.0))]].concat(), "yarn_beta_fast"),
        (vec![("llama.rope.dimension_count", number(2))], "`llama.rope.dimension_count` to be 4"),
        (vec![("llama.attention.key_length", number(4)), ("llama.attention.value_length", number(8))], "value_length"),
        (vec![("llama.attention.sliding_window", number(8))], "`llama.attention.sliding_window`"),
        (vec![("llama.attention.scale", real(0.1))], "`llama.attention.scale`"),
        (vec![("llama.attention.causal", MetaValue::Bool(false))], "`llama.attention.causal`"),
        (vec![("llama.attn_logit_softcapping", real(50.0))], "`llama.attn_logit_softcapping`"),
        (vec![("llama.final_logit_softcapping", real(30.0))], "`llama.final_logit_softcapping`"),
        (vec![("llama.logit_scale", real(0.1))], "`llama.logit_scale`"),
        (vec![("llama.embedding_scale", real(12.0))], "`llama.embedding_scale`"),
        (vec![("llama.expert_count", number(8))], "`llama.expert_count`"),
        (vec![("llama.attention.layer_norm_epsilon", real(1e-5))], "`llama.attention.layer_norm_epsilon`"),
        (vec![("llama.something_new", number(1))], "`llama.something_new`"),
        (vec![("llama.vocab_size", number(99))], "`llama.vocab_size` to be 24"),
        (vec![("general.type", text("adapter"))], "`general.type`"),
        (vec![("split.count", number(3))], "`split.count`"),
    ] {
        let error = imported(&keys, &[]).map(|(config, _)| config).unwrap_err();
        assert!(error.to_string().contains(said) && error.kind() == problem::Kind::User, "{keys:?}: {error}");
    }
    let odd = [("rope_freqs.weight".to_owned(), vec![3.0f32, 1.7])];
    let error = imported(&[], &odd).map(|(config, _)| config).unwrap_err().to_string();
    assert!(error.contains("`rope_freqs.weight` of Llama 3's scaling"), "{error}");
    // What tells of the file, and values that change nothing.
    let harmless = [
        ("general.license", text("mit")),
        ("llama.expert_count", number(0)),
        ("llama.attention.sliding_window", number(64)),
        ("llama.attention.key_length", number(4)),
        ("llama.attention.value_length", number(4)),
        ("llama.rope.dimension_count", number(4)),
        ("llama.rope.scaling.finetuned", MetaValue::Bool(true)),
        ("llama.tensor_data_layout", text("Meta AI original pth")),
        ("llama.vocab_size", number(24)),
    ];
    let (config, logits) = imported(&harmless, &[]).unwrap();
    assert_eq!((config["head_dim"].is_null(), logits), (true, twin(&json!({}))));
}
