//! Against transformers: the golden numbers come from tests/golden/make.py. With `IDIOLECT_PARITY=FILE` the table of
//! largest differences is written there, as JSON and (`.md`) as text: `just parity` does so.

use lm::{Hooks, Lm, Prefix, Sampling, TokenRow};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::common::{Families, float32, golden, root, tiny};

#[derive(Serialize)]
struct Comparison {
    model: String,
    check: &'static str,
    max_difference: f64,
    bound: f64,
}

#[derive(Default)]
struct Table(Vec<Comparison>);

impl Table {
    fn add(&mut self, model: &str, check: &'static str, bound: f64, ours: &Tensor, theirs: &[f32]) {
        assert_eq!(ours.numel(), theirs.len(), "{model}, {check}");
        let difference = (ours.to_kind(Kind::Double).reshape(-1) - Tensor::from_slice(theirs)).abs();
        self.worst(model, check, bound, difference.max().double_value(&[]));
    }

    fn worst(&mut self, model: &str, check: &'static str, bound: f64, difference: f64) {
        assert!(!difference.is_nan(), "{model}, {check}");
        match self.0.iter_mut().find(|c| c.model == model && c.check == check) {
            Some(known) => known.max_difference = known.max_difference.max(difference),
            None => self.0.push(Comparison { model: model.into(), check, max_difference: difference, bound }),
        }
    }

    fn finish(&self, name: &str) {
        if let Some(path) = std::env::var_os("IDIOLECT_PARITY") {
            let path = std::path::PathBuf::from(path).join(name);
            fs_err::write(path.with_extension("json"), serde_json::to_vec_pretty(&self.0).unwrap()).unwrap();
            let mut text = String::from("| model | check | largest difference | bound |\n| --- | --- | --- | --- |\n");
            for Comparison { model, check, max_difference, bound } in &self.0 {
                let line = format!("| {model} | {check} | {max_difference:.1e} | {bound:.0e} |\n");
                text += &line;
            }
            fs_err::write(path.with_extension("md"), text).unwrap();
        }
        for Comparison { model, check, max_difference, bound } in &self.0 {
            assert!(max_difference < bound, "{model}, {check}: {max_difference} is not below {bound}");
        }
    }
}

/// Log-probabilities of a row's tokens from `start`, from its logits.
fn logp(logits: &Tensor, ids: &[i64], start: usize) -> Tensor {
    let index = Tensor::from_slice(&ids[start..]).unsqueeze(1);
    let before = logits.narrow(0, start as i64 - 1, (ids.len() - start) as i64);
    before.log_softmax(1, Kind::Double).gather(1, &index, false).squeeze_dim(1)
}

#[test]
fn every_family_equals_transformers() {
    let golden: Families = golden("families.json");
    assert!(golden.families.len() >= 13);
    let mut table = Table::default();
    for (name, family) in &golden.families {
        let lm = tiny(family, &float32());
        let rows: Vec<TokenRow> =
            family.rows.iter().map(|r| TokenRow { ids: r.ids.clone(), answer_start: r.answer_start }).collect();
        for row in &family.rows {
            let logits = lm::full_logits(&lm, &row.ids, None);
            table.add(name, "logits", 1e-4, &logits, &row.logits);
            for (ours, theirs) in lm::hidden_states(&lm, &row.ids, None).iter().zip(&row.hidden) {
                let every =
                    Tensor::arange_start_step(0, ours.numel() as i64, golden.stride, (Kind::Int64, Device::Cpu));
                table.add(name, "hidden states", 1e-4, &ours.reshape(-1).index_select(0, &every), theirs);
            }
            let own = logp(&logits, &row.ids, row.answer_start);
            table.add(name, "log-probabilities", 1e-4, &own, &row.logp);
            table.add(name, "from a left-padded batch", 1e-4, &own, &row.left);
            table.add(name, "from a right-padded batch", 1e-4, &own, &row.right);
        }
        // Answers batched and alone, in one tree, and with the lower blocks computed before.
        for first_block in 0..=lm.depth() {
            let prefix = Prefix::new(&lm, rows.clone(), first_block..lm.depth(), |_| ()).unwrap();
            for groups in [vec![vec![0], vec![1], vec![2]], vec![vec![0, 1, 2]], vec![vec![2]], vec![vec![1, 0]]] {
                let batch = prefix.batch(&lm, &groups);
                let sums = lm::answer_logp(&lm, &batch, &lm::forward(&lm, &batch, None));
                let want: Vec<f32> = groups.iter().flatten().map(|i| family.rows[*i].logp.iter().sum()).collect();
                table.add(name, "answers, batched and alone", 3e-4, &sums, &want);
            }
        }
        // With a cache: together, alone, and as the full forward says.
        let prompts: Vec<Vec<i64>> = rows.iter().map(|r| r.ids.clone()).collect();
        let greedy = |prompts: &[Vec<i64>]| -> Vec<Vec<i64>> {
            let sampling = Sampling::greedy(8, vec![]);
            let seeds = vec![[0; 32]; prompts.len()];
            lm::generate(&lm, None, prompts, &seeds, &sampling, Hooks::default()).into_iter().map(|s| s.ids).collect()
        };
        let together = greedy(&prompts);
        for (i, row) in family.rows.iter().enumerate() {
            for ours in [&together[i], &greedy(&prompts[i..=i])[0]] {
                assert_eq!(ours.len(), row.greedy.len(), "{name}");
                let differ = ours.iter().zip(&row.greedy).filter(|(a, b)| a != b).count();
                table.worst(name, "greedy tokens that differ, with a cache", 1.0, differ as f64);
            }
        }
    }
    table.finish("families");
}

#[test]
fn a_checkpoint_without_the_base_prefix_and_with_old_tables_loads() {
    let golden: Families = golden("families.json");
    let family = &golden.families["gpt2"];
    let whole = tiny(family, &float32());
    let folder = tempfile::tempdir().unwrap();
    crate::common::write_family(folder.path(), family);
    // As openai-community/gpt2 is published: no `transformer.` in front, causal masks beside the weights.
    let mut tensors = crate::common::formula(&family.names);
    for (name, _) in &mut tensors {
        *name = name.strip_prefix("transformer.").unwrap_or(name).to_owned();
    }
    tensors.push(("h.0.attn.bias".into(), Tensor::ones([1, 1, 64, 64], (Kind::Float, Device::Cpu)).tril(0)));
    lm::write_tensors(&folder.path().join("model.safetensors"), &tensors, None).unwrap();
    let bare = Lm::load(folder.path(), &float32()).unwrap();
    let ids = &family.rows[0].ids;
    assert!(lm::full_logits(&whole, ids, None).equal(&lm::full_logits(&bare, ids, None)));
}

type Named = Vec<(String, Tensor)>;

#[test]
fn loading_is_strict_both_ways() {
    let golden: Families = golden("families.json");
    let family = &golden.families["qwen2"];
    let load = |change: &dyn Fn(&mut Named)| {
        let folder = tempfile::tempdir().unwrap();
        crate::common::write_family(folder.path(), family);
        let mut tensors = crate::common::formula(&family.names);
        change(&mut tensors);
        lm::write_tensors(&folder.path().join("model.safetensors"), &tensors, None).unwrap();
        Lm::load(folder.path(), &float32()).map(|_| ()).unwrap_err().to_string()
    };
    let missing = load(&|t| t.retain(|(name, _)| name != "model.layers.1.self_attn.k_proj.bias"));
    assert!(missing.contains("expected the tensor `model.layers.1.self_attn.k_proj.bias`"), "{missing}");
    let unexpected = load(&|t| t.push(("model.layers.3.extra".into(), t[0].1.copy())));
    assert!(unexpected.contains("found model.layers.3.extra"), "{unexpected}");
    let misshapen = load(&|t| t[0].1 = t[0].1.unsqueeze(0));
    assert!(misshapen.contains("expected shape"), "{misshapen}");
}

#[test]
fn shards_and_bfloat16_files_load() {
    let golden: Families = golden("families.json");
    let family = &golden.families["llama"];
    let folder = tempfile::tempdir().unwrap();
    crate::common::write_family(folder.path(), family);
    let whole = Lm::load(folder.path(), &float32()).unwrap();
    let ids = &family.rows[0].ids;
    let tensors: Vec<(String, Tensor)> = crate::common::formula(&family.names);
    let (first, second) = tensors.split_at(tensors.len() / 2);
    fs_err::remove_file(folder.path().join("model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    for (file, part) in [("model-00001-of-00002.safetensors", first), ("model-00002-of-00002.safetensors", second)] {
        lm::write_tensors(&folder.path().join(file), part, None).unwrap();
        part.iter().for_each(|(name, _)| _ = map.insert(name.clone(), file.into()));
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    run::write_json(&folder.path().join("model.safetensors.index.json"), &index).unwrap();
    let sharded = Lm::load(folder.path(), &float32()).unwrap();
    assert!(lm::full_logits(&whole, ids, None).equal(&lm::full_logits(&sharded, ids, None)));
    // A bfloat16 file, which is lent to libtorch as it lies on disk, gives what its rounded numbers give.
    let rounded: Vec<(String, Tensor)> = tensors.iter().map(|(n, t)| (n.clone(), t.to_kind(Kind::BFloat16))).collect();
    fs_err::remove_file(folder.path().join("model.safetensors.index.json")).unwrap();
    lm::write_tensors(&folder.path().join("model.safetensors"), &rounded, None).unwrap();
    let half = Lm::load(folder.path(), &float32()).unwrap();
    let difference =
        (lm::full_logits(&half, ids, None) - lm::full_logits(&whole, ids, None)).abs().max().double_value(&[]);
    assert!(difference > 1e-6, "{difference}");
    assert!(difference < 0.2, "{difference}");
}

#[derive(Deserialize)]
struct SmolLm2 {
    stride: i64,
    hidden_stride: i64,
    texts: Vec<Text>,
    chat: String,
    rows: Vec<SmolLm2Row>,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    ids: Vec<i64>,
}

#[derive(Deserialize)]
struct SmolLm2Row {
    ids: Vec<i64>,
    logits: Vec<Vec<f32>>,
    logsumexp: Vec<f32>,
    greedy: Vec<i64>,
    hidden_max: Vec<f64>,
    hidden: Vec<Vec<f32>>,
    logp: Vec<f32>,
}

#[test]
fn smollm2_equals_transformers() {
    let gguf = root().join(".deps/base/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(gguf.exists(), "{} is missing: ./setup fetches it", gguf.display());
    let golden: SmolLm2 = golden("smollm2.json");
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

    let lm = Lm::load(dir.path(), &float32()).unwrap();
    assert!(tokenizer.largest_id() < lm.shape.vocab_size);
    assert!(golden.rows.iter().any(|row| row.greedy.len() == 16));
    let (name, mut table) = ("SmolLM2-135M-Instruct", Table::default());
    for row in &golden.rows {
        let logits = lm::full_logits(&lm, &row.ids, None);
        let steps = |size: i64, step: i64| Tensor::arange_start_step(0, size, step, (Kind::Int64, Device::Cpu));
        let some = logits.index_select(1, &steps(lm.shape.vocab_size, golden.stride));
        table.add(name, "logits", 5e-4, &some, &row.logits.concat());
        table.add(name, "log of the normaliser", 5e-4, &logits.logsumexp(1, false), &row.logsumexp);
        table.add(name, "log-probabilities", 1e-4, &logp(&logits, &row.ids, 1), &row.logp);
        let states = lm::hidden_states(&lm, &row.ids, None);
        for ((ours, theirs), largest) in states.iter().zip(&row.hidden).zip(&row.hidden_max) {
            let last = ours.get(-1).index_select(0, &steps(lm.shape.hidden_size, golden.hidden_stride)) / *largest;
            let theirs: Vec<f32> = theirs.iter().map(|v| *v / *largest as f32).collect();
            table.add(name, "hidden states, of the layer's maximum", 1e-5, &last, &theirs);
        }
        let sampling = Sampling::greedy(16, vec![]);
        let prompts = std::slice::from_ref(&row.ids);
        let ours = &lm::generate(&lm, None, prompts, &[[0; 32]], &sampling, Hooks::default())[0].ids;
        assert_eq!(ours[..row.greedy.len()], row.greedy[..]); // transformers stops behind an end-of-turn token
    }
    table.finish("smollm2");
}
