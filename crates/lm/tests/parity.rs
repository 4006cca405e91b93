//! Equal to transformers and torch: numbers made by tests/golden/make.py.

#![expect(clippy::unwrap_used, reason = "a failure in a test may panic")]

use std::path::{Path, PathBuf};

use lm::{AdamW, AdamWConfig, Compute, Lm, Owner, Parameter, Prefix, Sampling, Schedule, Tensors, TokenRow};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn golden<T: DeserializeOwned>(name: &str) -> T {
    run::read_json(&root().join("tests/golden").join(name)).unwrap()
}

fn float32() -> Compute {
    Compute::new("cpu", "float32", Some(1)).unwrap()
}

#[derive(Deserialize)]
struct Row {
    ids: Vec<i64>,
    logits: Vec<Vec<f32>>,
    #[serde(default)]
    logsumexp: Vec<f32>,
    #[serde(default)]
    greedy: Vec<i64>,
    #[serde(default)]
    answer_start: usize,
    #[serde(default)]
    answer_logp: f64,
}

fn max_difference(ours: &Tensor, golden: &[Vec<f32>]) -> f64 {
    let flat: Vec<f32> = golden.iter().flatten().copied().collect();
    (ours.reshape(-1) - Tensor::from_slice(&flat)).abs().max().double_value(&[])
}

mod tiny {
    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        names: Vec<String>,
        rows: Vec<Row>,
    }

    /// The model of make.py's `tiny`: its weights are a formula over (position, rank of the name).
    fn model(names: &[String]) -> Lm {
        let config = r#"{"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_parameters": {"rope_theta": 10000.0}}"#;
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join("config.json"), config).unwrap();
        let config = lm::LlamaConfig::read(dir.path()).unwrap();
        let mut tensors = Tensors { place: "formula".into(), ..Tensors::default() };
        for (k, name) in names.iter().enumerate() {
            let shape: &[i64] = match name.rsplit('.').nth(1).unwrap() {
                "embed_tokens" | "lm_head" => &[64, 32],
                "q_proj" | "o_proj" => &[32, 32],
                "k_proj" | "v_proj" => &[16, 32],
                "gate_proj" | "up_proj" => &[48, 32],
                "down_proj" => &[32, 48],
                _ => &[32],
            };
            let count: i64 = shape.iter().product();
            let wave = (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 0.37 + 1.3 * k as f64).sin();
            let values = if shape.len() == 1 { wave * 0.1 + 1.0 } else { wave * 0.4 };
            tensors.by_name.insert(name.clone(), values.view(shape).to_kind(Kind::Float));
        }
        Lm::new(config, tensors, &float32()).unwrap()
    }

    #[test]
    fn logits_equal_transformers() {
        let golden: Golden = golden("llama.json");
        let model = model(&golden.names);
        for row in &golden.rows {
            let difference = max_difference(&lm::full_logits(&model, &row.ids, None), &row.logits);
            assert!(difference < 1e-4, "{difference}");
        }
    }

    #[test]
    fn answer_log_probabilities_equal_transformers_batched_and_alone_from_any_prefix() {
        let golden: Golden = golden("llama.json");
        let model = model(&golden.names);
        let rows: Vec<TokenRow> =
            golden.rows.iter().map(|r| TokenRow { ids: r.ids.clone(), answer_start: r.answer_start }).collect();
        for first_block in 0..=3 {
            let prefix = Prefix::new(&model, rows.clone(), first_block, |_| ());
            let batched: Vec<f64> =
                Vec::try_from(lm::answer_logp(&model, &prefix, &[0, 1, 2], None).to_kind(Kind::Double)).unwrap();
            for (i, row) in golden.rows.iter().enumerate() {
                let alone = lm::answer_logp(&model, &prefix, &[i], None).double_value(&[0]);
                assert!((batched[i] - row.answer_logp).abs() < 1e-4, "{} {}", batched[i], row.answer_logp);
                assert!((alone - row.answer_logp).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn greedy_decoding_with_a_cache_follows_the_full_forward() {
        let golden: Golden = golden("llama.json");
        let model = model(&golden.names);
        let prompts: Vec<Vec<i64>> = golden.rows.iter().map(|r| r.ids.clone()).collect();
        let sampling = Sampling { max_new_tokens: 12, temperature: None, stop_ids: vec![] };
        let samples = lm::generate(&model, None, &prompts, &[[0; 32]; 3], &sampling);
        for (prompt, sample) in prompts.iter().zip(&samples) {
            let mut ids = prompt.clone();
            for token in &sample.ids {
                let next = lm::full_logits(&model, &ids, None).get(-1).argmax(0, false).int64_value(&[]);
                assert_eq!(next, *token);
                ids.push(next);
            }
            assert_eq!(sample.ids.len(), 12);
        }
    }

    #[test]
    fn a_sample_repeats_with_its_seed_whatever_its_neighbours() {
        let golden: Golden = golden("llama.json");
        let model = model(&golden.names);
        let prompts: Vec<Vec<i64>> = golden.rows.iter().map(|r| r.ids.clone()).collect();
        let sampling = Sampling { max_new_tokens: 20, temperature: Some(1.0), stop_ids: vec![3, 11, 12, 40] };
        let seeds: Vec<[u8; 32]> = (0..12).map(|i| [i; 32]).collect();
        let together = lm::generate(&model, None, &prompts, &seeds, &sampling);
        let again = lm::generate(&model, None, &prompts, &seeds, &sampling);
        assert_eq!(together, again);
        assert!(together.iter().any(|s| s.finished) && together.iter().any(|s| !s.finished));
        for row in 0..12 {
            let alone = lm::generate(&model, None, &prompts[row / 4..=row / 4], &seeds[row..=row], &sampling);
            assert_eq!(alone[0], together[row], "row {row}");
        }
    }
}

#[derive(Deserialize)]
struct AdamWStep {
    step: usize,
    norm: f64,
    x: Vec<f32>,
}

#[test]
fn adamw_equals_torch_over_100_steps_and_resumes_exactly() {
    let golden: Vec<AdamWStep> = golden("adamw.json");
    float32();
    let config = AdamWConfig {
        learning_rate: 0.05,
        schedule: Schedule::Constant,
        warmup_ratio: 0.0,
        weight_decay: 0.1,
        betas: [0.9, 0.95],
        epsilon: 1e-8,
        max_grad_norm: 1.0,
    };
    let target = Tensor::from_slice(&[0.0f32, 1.0, 2.5, 0.5]);
    let scale = Tensor::from_slice(&[1.0f32, 10.0, 0.1, 3.0]);
    // User 1 of two has the parameter of the golden; user 0 is never there.
    let fresh = || {
        let start = Tensor::from_slice(&[9.0f32, 9.0, 9.0, 9.0, 1.0, -2.0, 3.0, 0.5]).view([2, 4]);
        let x = start.set_requires_grad(true);
        let parameter = Parameter { name: "x".into(), tensor: x.shallow_clone(), owner: Owner::PerUser };
        (x, AdamW::new(config.clone(), vec![parameter], 2.try_into().unwrap()))
    };
    let (mut x, mut optimizer) = fresh();
    for step in 0..100 {
        if step == 50 {
            // Through a file, into a new optimiser: a cold start would not follow the golden.
            let dir = tempfile::tempdir().unwrap();
            lm::write_tensors(&dir.path().join("o.safetensors"), &optimizer.state(), None).unwrap();
            (x, optimizer) = fresh();
            let mut state = lm::read_tensors(&dir.path().join("o.safetensors"), Device::Cpu, None).unwrap();
            optimizer.load_state(&mut state).unwrap();
        }
        let loss = ((x.get(1) - &target).square() * &scale).sum(Kind::Float);
        let norms = optimizer.step(&loss, 0.0, &[None, Some(config.rate(step, 100))], "test").unwrap();
        if let Some(want) = golden.iter().find(|g| g.step == step) {
            assert!(
                (norms.users[1] - want.norm).abs() < 1e-4 * want.norm.max(1e-3),
                "{} {}",
                norms.users[1],
                want.norm
            );
            let difference = (x.get(1) - Tensor::from_slice(&want.x)).abs().max().double_value(&[]);
            assert!(difference < 1e-5, "step {step}: {difference}");
        }
    }
    assert_eq!(Vec::<f32>::try_from(x.get(0)).unwrap(), [9.0; 4], "an absent user is not touched");
}

#[test]
fn a_loss_that_is_not_finite_changes_nothing_and_is_named() {
    float32();
    let x = Tensor::from_slice(&[1.0f32, 2.0]).set_requires_grad(true);
    let parameter = Parameter { name: "x".into(), tensor: x.shallow_clone(), owner: Owner::Shared };
    let config = AdamWConfig {
        learning_rate: 1.0,
        schedule: Schedule::Linear,
        warmup_ratio: 0.0,
        weight_decay: 0.0,
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        max_grad_norm: 1.0,
    };
    let mut optimizer = AdamW::new(config, vec![parameter], 1.try_into().unwrap());
    let error = optimizer.step(&(&x * f64::NAN).sum(Kind::Float), 1.0, &[Some(1.0)], "reward, step 3").unwrap_err();
    assert_eq!(error.to_string(), "reward, step 3: the loss is not finite");
    // sqrt has an infinite slope at 0: the loss is finite, its gradient is not.
    let error = optimizer.step(&(&x - 1.0).abs().sqrt().sum(Kind::Float), 1.0, &[Some(1.0)], "s").unwrap_err();
    assert!(error.to_string().contains("gradient of the shared"), "{error}");
    assert_eq!(Vec::<f32>::try_from(&x).unwrap(), [1.0, 2.0]);
}

mod smollm2 {
    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        stride: i64,
        texts: Vec<Text>,
        chat: String,
        rows: Vec<Row>,
    }

    #[derive(Deserialize)]
    struct Text {
        text: String,
        ids: Vec<i64>,
    }

    #[test]
    fn import_tokenizer_logits_and_greedy_text_equal_transformers() {
        let gguf = root().join(".deps/base/SmolLM2-135M-Instruct.Q4_1.gguf");
        assert!(gguf.exists(), "{} is missing: ./setup fetches it", gguf.display());
        let golden: Golden = golden("smollm2.json");
        let compute = float32();
        let dir = tempfile::tempdir().unwrap();
        let report = lm::import_gguf(&gguf, dir.path()).unwrap();
        assert_eq!((report.tensors, report.parameters), (272, 134_515_008));

        let tokenizer = text::Tokenizer::from_folder(dir.path()).unwrap();
        for text in &golden.texts {
            assert_eq!(tokenizer.encode(&text.text).unwrap(), text.ids, "{}", text.text);
        }
        let prompt = tokenizer.prompt(&[text::Message::user(&golden.texts[0].text)]).unwrap();
        assert_eq!(prompt, tokenizer.encode(&golden.chat).unwrap());
        assert_eq!(prompt, golden.rows[2].ids);

        let model = Lm::load(dir.path(), &compute).unwrap();
        assert!(tokenizer.largest_id() < model.config.vocab_size);
        assert!(golden.rows.iter().any(|row| row.greedy.len() == 16));
        for row in &golden.rows {
            let logits = lm::full_logits(&model, &row.ids, None);
            let every =
                Tensor::arange_start_step(0, model.config.vocab_size, golden.stride, (Kind::Int64, Device::Cpu));
            let difference = max_difference(&logits.index_select(1, &every), &row.logits);
            let norm = (logits.logsumexp(1, false) - Tensor::from_slice(&row.logsumexp)).abs().max().double_value(&[]);
            assert!(difference < 5e-4 && norm < 5e-4, "logits differ by {difference}, logsumexp by {norm}");
            let sampling = Sampling { max_new_tokens: 16, temperature: None, stop_ids: vec![] };
            let ours = &lm::generate(&model, None, std::slice::from_ref(&row.ids), &[[0; 32]], &sampling)[0].ids;
            assert_eq!(ours[..row.greedy.len()], row.greedy[..]); // transformers stops behind an end-of-turn token
        }
    }
}
