//! Model files of any bytes end in a model or a message, never in a panic.

use std::path::Path;

use proptest::prelude::*;
use rlx_gguf::{GgmlType, GgufWriter, MetaValue};
use serde_json::{Value, json};

use crate::common::{Families, float32, golden, write_family};

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

/// A tiny Llama as a GGUF file, its numbers in float32.
pub(crate) fn gguf() -> Vec<u8> {
    gguf_with(&[], &[])
}

/// The same with other keys, and with other tensors of one axis.
pub(crate) fn gguf_with(keys: &[(&str, MetaValue)], tensors: &[(String, Vec<f32>)]) -> Vec<u8> {
    let (vocabulary, hidden, inner) = (24, 8, 12);
    let mut file = GgufWriter::new();
    file.set_arch("llama");
    for (key, number) in [
        ("llama.block_count", 2),
        ("llama.attention.head_count", 2),
        ("llama.attention.head_count_kv", 1),
        ("llama.context_length", 64),
        ("llama.embedding_length", hidden),
        ("llama.feed_forward_length", inner),
        ("tokenizer.ggml.bos_token_id", 1),
        ("tokenizer.ggml.eos_token_id", 2),
    ] {
        file.set_meta(key, MetaValue::U32(number));
    }
    file.set_meta("llama.attention.layer_norm_rms_epsilon", MetaValue::F32(1e-5));
    file.set_meta("llama.rope.freq_base", MetaValue::F32(1e4));
    let text = |t: &str| MetaValue::String(t.into());
    for (key, value) in [("model", "gpt2"), ("pre", "smollm")] {
        file.set_meta(format!("tokenizer.ggml.{key}"), text(value));
    }
    file.set_meta("tokenizer.chat_template", text("{{ messages[0].content }}"));
    let tokens = (0..vocabulary).map(|i| text(&char::from(b'a' + i as u8).to_string())).collect();
    file.set_meta("tokenizer.ggml.tokens", MetaValue::Array(tokens));
    file.set_meta("tokenizer.ggml.merges", MetaValue::Array(vec![text("a b")]));
    file.set_meta("tokenizer.ggml.token_type", MetaValue::Array(vec![MetaValue::I32(1); vocabulary]));
    let mut tensor = |name: String, shape: &[u32]| {
        let count: u32 = shape.iter().product();
        let bytes = (0..count).flat_map(|i| (f64::from(i % 7) as f32 * 0.1 - 0.3).to_le_bytes()).collect();
        let shape = shape.iter().map(|d| *d as usize).collect();
        file.add_tensor_bytes(name, shape, GgmlType::F32, bytes).unwrap();
    };
    tensor("token_embd.weight".into(), &[hidden, vocabulary as u32]);
    tensor("output_norm.weight".into(), &[hidden]);
    for block in 0..2 {
        for (name, shape) in [
            ("attn_norm", &[hidden][..]),
            ("attn_q", &[hidden, hidden]),
            ("attn_k", &[hidden, hidden / 2]),
            ("attn_v", &[hidden, hidden / 2]),
            ("attn_output", &[hidden, hidden]),
            ("ffn_norm", &[hidden]),
            ("ffn_gate", &[hidden, inner]),
            ("ffn_up", &[hidden, inner]),
            ("ffn_down", &[inner, hidden]),
        ] {
            tensor(format!("blk.{block}.{name}.weight"), shape);
        }
    }
    for (name, numbers) in tensors {
        let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        file.add_tensor_bytes(name.clone(), vec![numbers.len()], GgmlType::F32, bytes).unwrap();
    }
    for (key, value) in keys {
        file.set_meta(*key, value.clone());
    }
    let mut bytes = std::io::Cursor::new(Vec::new());
    file.write(&mut bytes).unwrap();
    bytes.into_inner()
}

/// Everything that is done with a GGUF file.
pub(crate) fn read_gguf(folder: &Path, bytes: &[u8]) -> problem::Result<lm::ImportReport> {
    let path = folder.join("x.gguf");
    fs_err::write(&path, bytes).unwrap();
    if let Err(error) = lm::gguf_size(&path) {
        assert!(error.to_string().contains("x.gguf"), "{error}");
    }
    let out = folder.join("out");
    let report = lm::import_gguf(&path, &out);
    match &report {
        Ok(_) => _ = lm::Lm::load(&out, &float32()).map(|lm| forward(&lm)),
        Err(error) => assert!(error.kind() == problem::Kind::User, "{error}"),
    }
    report
}

fn forward(lm: &lm::Lm) {
    if lm.shape.vocab_size > 5 {
        _ = lm::full_logits(lm, &[1, 2, 3, 4, 5], None);
    }
}

#[derive(Clone, Debug)]
enum Damage {
    Cut(u16),
    Byte(u16, u8),
    Word(u16, u64),
    /// Another number in the place of one that is there, `n` as an u64.
    Number(u64, u64),
    Text(&'static str, &'static str),
    Head(Vec<u8>),
}

fn odd_number() -> impl Strategy<Value = u64> {
    prop_oneof![
        prop::sample::select(vec![
            0,
            1,
            2,
            3,
            u64::MAX,
            u64::MAX / 2,
            1 << 31,
            1 << 32,
            1 << 40,
            1 << 61,
            1 << 62,
            1 << 63,
            0x4000_0000_0000_0001
        ]),
        any::<u64>(),
    ]
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        1 => any::<u16>().prop_map(Damage::Cut),
        3 => (any::<u16>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        3 => (any::<u16>(), odd_number()).prop_map(|(at, word)| Damage::Word(at, word)),
        4 => (prop::sample::select(vec![2, 4, 8, 12, 24, 1, 64]), odd_number()).prop_map(|(old, new)| Damage::Number(old, new)),
        1 => prop::sample::select(vec![("attn_q", "attn_k"), ("attn_k", "attn_q"), ("llama.block_count", "llama.clock_bount"),
            ("output_norm", "output_nor2"), ("gpt2", "gpt3"), ("smollm", "gpt-2\0")]).prop_map(|(a, b)| Damage::Text(a, b)),
        1 => prop::collection::vec(any::<u8>(), 0..60).prop_map(Damage::Head),
    ]
}

fn apply(bytes: &mut Vec<u8>, damage: &Damage, header: usize) {
    let at = |place: u16| place as usize % header.min(bytes.len()).max(1);
    match damage {
        Damage::Cut(place) => bytes.truncate(at(*place) * 2),
        Damage::Byte(place, byte) => {
            let at = at(*place);
            bytes.get_mut(at).into_iter().for_each(|b| *b = *byte);
        }
        Damage::Word(place, word) => {
            let at = at(*place);
            bytes.iter_mut().skip(at).zip(word.to_le_bytes()).for_each(|(b, w)| *b = w);
        }
        Damage::Number(old, new) => {
            let (old, new) = (old.to_le_bytes(), new.to_le_bytes());
            let places: Vec<usize> =
                (0..header.min(bytes.len().saturating_sub(8))).filter(|i| bytes[*i..][..8] == old).collect();
            if let Some(place) = places.get(new[1] as usize % places.len().max(1)) {
                bytes[*place..][..8].copy_from_slice(&new);
            }
        }
        Damage::Text(old, new) => {
            if let Some(place) = bytes.windows(old.len()).position(|w| w == old.as_bytes()) {
                bytes[place..][..new.len()].copy_from_slice(new.as_bytes());
            }
        }
        Damage::Head(head) => bytes.iter_mut().skip(4).zip(head).for_each(|(b, h)| *b = *h),
    }
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn any_gguf_bytes_end_in_a_model_or_a_message(damages in prop::collection::vec(damage(), 1..4)) {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = gguf();
        let header = bytes.len() / 2;
        for damage in &damages {
            apply(&mut bytes, damage, header);
        }
        _ = read_gguf(folder.path(), &bytes);
    }
}

#[test]
fn numbers_of_a_gguf_that_no_model_has_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(read_gguf(folder.path(), &gguf()).unwrap().tensors, 20);
    lm::Lm::load(&folder.path().join("out"), &float32()).unwrap();
    // The value of a key, and the sizes of a tensor.
    let with = |key: &str, value: u32| {
        let mut bytes = gguf();
        let at = bytes.windows(key.len()).position(|w| w == key.as_bytes()).unwrap() + key.len() + 4;
        bytes[at..][..4].copy_from_slice(&value.to_le_bytes());
        read_gguf(folder.path(), &bytes).unwrap_err().to_string()
    };
    let said = with("llama.block_count", u32::MAX);
    assert!(said.contains("`llama.block_count` to be from 1 to 20, the number of tensors"), "{said}");
    let said = with("llama.attention.head_count", 0);
    assert!(said.contains("rows for 0 heads"), "{said}");
    let said = with("llama.attention.head_count_kv", 3);
    assert!(said.contains("4 rows for 3 heads"), "{said}");
    let said = with("tokenizer.ggml.eos_token_id", 99);
    assert!(said.contains("the id of the eos token to be one of 24, found 99"), "{said}");
    let shaped = |sizes: [u64; 2]| {
        let mut bytes = gguf();
        let name = b"token_embd.weight";
        let at = bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4;
        bytes[at..][..8].copy_from_slice(&sizes[0].to_le_bytes());
        bytes[at + 8..][..8].copy_from_slice(&sizes[1].to_le_bytes());
        read_gguf(folder.path(), &bytes).unwrap_err().to_string()
    };
    for sizes in [[1 << 62, 1], [1 << 32, 1 << 32], [1 << 31, 1 << 31], [1 << 40, 1], [0, 24], [u64::MAX, u64::MAX]] {
        let said = shaped(sizes);
        assert!(said.contains("token_embd.weight"), "{sizes:?}: {said}");
    }
}

fn odd() -> impl Strategy<Value = Value> {
    prop_oneof![
        prop::sample::select(vec![
            json!(null),
            json!(true),
            json!(0),
            json!(-1),
            json!(1),
            json!(2),
            json!(3),
            json!(5),
            json!(31),
            json!(i64::MAX),
            json!(i64::MIN),
            json!(u64::MAX),
            json!(1u64 << 32),
            json!(1e300),
            json!(-1e-300),
            json!(0.5),
            json!(0.0),
            json!("x"),
            json!([]),
            json!({}),
            json!(["full_attention"]),
            json!(["sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention"]),
            json!({"rope_type": "llama3", "factor": 0, "low_freq_factor": 1, "high_freq_factor": 1, "original_max_position_embeddings": 0}),
            json!({"rope_type": "linear", "factor": 0}),
            json!({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 8}),
            json!({"type": "dynamic", "factor": 2}),
        ]),
        any::<i64>().prop_map(|n| json!(n)),
        any::<f64>().prop_map(|x| json!(x)),
    ]
}

/// Every key that any family reads.
const KEYS: [&str; 40] = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
    "hidden_act",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "layer_types",
    "query_pre_attn_scalar",
    "sliding_window_pattern",
    "n_positions",
    "n_embd",
    "n_layer",
    "n_head",
    "n_inner",
    "layer_norm_epsilon",
    "layer_norm_eps",
    "rotary_pct",
    "rotary_dim",
    "rotary_emb_base",
    "rope_local_base_freq",
    "model_type",
    "factor",
    "beta_fast",
    "attention_factor",
    "partial_rotary_factor",
    "quantization_config",
    "auto_map",
];

proptest! {
    #![proptest_config(cases(1000))]

    #[test]
    fn any_values_in_a_config_end_in_a_model_or_a_message(
        family in any::<prop::sample::Index>(),
        changes in prop::collection::vec((prop::sample::select(KEYS.to_vec()), odd(), any::<bool>()), 1..4),
    ) {
        thread_local! {
            static FAMILIES: Vec<(String, tempfile::TempDir, Value)> = golden::<Families>("families.json").families.into_iter().map(|(name, family)| {
                let folder = tempfile::tempdir().unwrap();
                write_family(folder.path(), &family);
                (name, folder, family.config)
            }).collect();
        }
        FAMILIES.with(|families| {
            let (_, folder, config) = family.get(families);
            let mut config = config.clone();
            for (key, odd, nested) in &changes {
                let map = config.as_object_mut().unwrap();
                let map = match map.get("rope_parameters") {
                    Some(Value::Object(_)) if *nested => map["rope_parameters"].as_object_mut().unwrap(),
                    _ => map,
                };
                if *odd == json!(31) { map.remove(*key); } else { map.insert((*key).to_owned(), odd.clone()); }
            }
            run::write_json(&folder.path().join("config.json"), &config).unwrap();
            _ = lm::ModelConfig::read(folder.path());
            if let Ok(lm) = lm::Lm::load(folder.path(), &float32()) {
                forward(&lm);
            }
        });
    }
}

#[test]
fn numbers_of_a_config_that_no_model_has_are_refused_by_name() {
    let golden: Families = golden("families.json");
    let folder = tempfile::tempdir().unwrap();
    for (family, key, value, said) in [
        ("llama", "num_attention_heads", json!(0), "number of heads: expected a number from 1"),
        ("llama", "num_attention_heads", json!(i64::MAX), "number of heads: expected a number from 1"),
        ("llama", "num_hidden_layers", json!(1u64 << 60), "number of blocks: expected a number from 1 to 16384"),
        ("llama", "head_dim", json!(-8), "size of a head"),
        ("gptj", "rotary_dim", json!(3), "numbers of a head that are rotated: expected pairs, found 3"),
        ("llama", "vocab_size", json!(0), "size of the vocabulary"),
        ("llama", "rms_norm_eps", json!(-1.0), "epsilon of the norms"),
        ("llama", "max_position_embeddings", json!(-1), "number of positions"),
        ("llama", "rope_parameters", json!({"rope_theta": 0.0}), "`rope_theta`: expected a positive number, found 0"),
        (
            "llama",
            "rope_parameters",
            json!({"rope_type": "linear", "factor": 0}),
            "`factor`: expected a positive number",
        ),
        (
            "llama, RoPE llama3",
            "rope_parameters",
            json!({"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4, "original_max_position_embeddings": 16}),
            "`low_freq_factor` below `high_freq_factor`",
        ),
        ("gpt2", "n_head", json!(5), "numbers of heads: expected a divisor of the hidden size"),
        (
            "gpt_neox",
            "rope_parameters",
            json!({"partial_rotary_factor": 9.0}),
            "numbers of a head that are rotated: expected from 2 to 8",
        ),
        ("gptj", "rotary_dim", json!(-4), "numbers of a head that are rotated"),
        ("gemma3", "query_pre_attn_scalar", json!(0), "`query_pre_attn_scalar`: expected a positive number"),
        ("gemma3", "sliding_window", json!(0), "`sliding_window`"),
        (
            "gemma3",
            "layer_types",
            json!(["full_attention"]),
            "`layer_types`: expected one for each of 3 blocks, found 1",
        ),
        ("mistral, sliding window", "sliding_window", json!(-8), "`sliding_window`"),
    ] {
        write_family(folder.path(), &golden.families[family]);
        let mut config = golden.families[family].config.clone();
        config[key] = value.clone();
        run::write_json(&folder.path().join("config.json"), &config).unwrap();
        let Err(error) = lm::Lm::load(folder.path(), &float32()) else { panic!("{family}: {key} = {value} is taken") };
        assert!(error.to_string().contains(said), "{family}, {key} = {value}: {error}");
        assert_eq!(error.kind(), problem::Kind::User, "{error}");
    }
}

/// Where no file grows beyond 4 KiB: what a full disk looks like to a writer.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_the_machines_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    fs_err::write(dir.path().join("x.gguf"), gguf()).unwrap();
    let output = std::process::Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["damage::child_writes_to_a_full_disk", "--exact", "--ignored"])
        .env("FULL_DISK_FOLDER", dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
}

#[cfg(target_os = "linux")]
#[test]
#[ignore = "a part of another test"]
fn child_writes_to_a_full_disk() {
    let folder = std::path::PathBuf::from(std::env::var_os("FULL_DISK_FOLDER").unwrap());
    let (out, cpu) = (folder.join("out"), tch::Device::Cpu);
    fs_err::create_dir(&out).unwrap();
    let tensor = || vec![("a".to_owned(), tch::Tensor::zeros([10_000], (tch::Kind::Float, cpu)))];
    let failures = [
        lm::write_tensors(&out.join("x"), &tensor(), None),
        lm::Storage::on_disk(&out).zeros(&[10_000], cpu).map(|_| ()),
        lm::import_gguf(&folder.join("x.gguf"), &folder.join("model")).map(|_| ()),
    ];
    for (number, result) in failures.into_iter().enumerate() {
        let error = result.expect_err("it fits");
        assert_eq!(error.kind(), problem::Kind::Machine, "{number}: {error}");
        assert_eq!(fs_err::read_dir(&out).unwrap().count(), 0, "{number}: something is left");
    }
}
