//! What folders that are given as models are called, what travels with them, which adapters are read, and how long a row their models take.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::tiny::{Workspace, program, stderr, write_model};

/// `idiolect WORDS`: exit code and what it said on stderr.
fn said(words: &[&str]) -> (i32, String) {
    let output = program().args(words).env("HF_HUB_OFFLINE", "1").output().unwrap();
    (output.status.code().unwrap(), stderr(&output))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A tiny model in a folder of its own.
fn model() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    write_model(&model);
    (folder, model)
}

fn score<'a>(model: &'a Path, prompt: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let all = ["score", "--model", text(model), "--prompt", prompt, "--threads", "1", "--dtype", "float32"];
    [&all[..], more].concat()
}

#[test]
fn a_local_folder_is_imported_with_all_that_belongs_to_it() {
    let (folder, model) = model();
    let travel =
        ["LICENSE", "NOTICE", "USE_POLICY.md", "tokenizer.model", "added_tokens.json", "merges.txt", "vocab.txt"];
    for name in travel.iter().chain(&["pytorch_model.bin", "modeling_x.py", "training_args.bin"]) {
        fs_err::write(model.join(name), "{}").unwrap();
    }
    fs_err::create_dir(model.join("additional_chat_templates")).unwrap();
    fs_err::write(model.join("additional_chat_templates/tools.jinja"), "x").unwrap();
    let out = folder.path().join("out");
    let (code, words) = said(&["import", text(&model), text(&out)]);
    assert_eq!(code, 0, "{words}");
    assert!(
        words.contains("3 files of others left out: modeling_x.py, pytorch_model.bin, training_args.bin"),
        "{words}"
    );
    for name in travel.iter().chain(&["additional_chat_templates/tools.jinja", "model.safetensors", "config.json"]) {
        assert!(out.join(name).exists(), "{name}");
    }
    assert!(!out.join("pytorch_model.bin").exists());
    // A path that is not there is not asked of the Hub.
    for missing in [folder.path().join("none"), PathBuf::from("./none"), PathBuf::from("none/")] {
        let (code, words) = said(&["import", text(&missing), text(&folder.path().join("out2"))]);
        assert!(code == 2 && words.contains("nothing at this path"), "{words}");
    }
    let (code, words) = said(&["import", text(&model), text(&folder.path().join("out2")), "--revision", "main"]);
    assert!(code == 2 && words.contains("--revision"), "{words}");
}

#[cfg(unix)]
#[test]
fn a_snapshot_of_the_hubs_cache_is_read_through_its_links_and_the_cache_itself_is_named() {
    let (folder, model) = model();
    let cache = folder.path().join("models--a--b");
    let snapshot = cache.join("snapshots/abc");
    fs_err::create_dir_all(&snapshot).unwrap();
    fs_err::create_dir_all(cache.join("refs")).unwrap();
    fs_err::write(cache.join("refs/main"), "abc").unwrap();
    fs_err::rename(&model, cache.join("blobs")).unwrap();
    for entry in fs_err::read_dir(cache.join("blobs")).unwrap() {
        let name = entry.unwrap().file_name();
        std::os::unix::fs::symlink(Path::new("../../blobs").join(&name), snapshot.join(&name)).unwrap();
    }
    let out = folder.path().join("out");
    let (code, words) = said(&["import", text(&snapshot), text(&out)]);
    assert_eq!(code, 0, "{words}");
    assert!(fs_err::symlink_metadata(out.join("model.safetensors")).unwrap().is_file(), "the file, not a link");
    for (above, other) in [(cache.clone(), "out2"), (cache.join("snapshots"), "out3")] {
        let (code, words) = said(&["import", text(&above), text(&folder.path().join(other))]);
        assert!(
            code == 2 && words.contains("hint: name the snapshot in it: ") && words.contains("snapshots/abc"),
            "{words}"
        );
        let (code, words) = said(&score(&above, "it is", &[]));
        assert!(code == 2 && words.contains("the cache of the Hugging Face Hub"), "{words}");
    }
}

#[test]
fn what_is_imported_is_scored_once_and_weights_are_finite_everywhere() {
    let (folder, model) = model();
    let file = model.join("model.safetensors");
    let read = || lm::read_tensors(&file, tch::Device::Cpu, None).unwrap().by_name;
    // Finite weights whose products are not.
    let mut tensors: Vec<(String, Tensor)> = read().into_iter().collect();
    for (name, tensor) in &mut tensors {
        if name.ends_with("_proj.weight") {
            *tensor = tensor.shallow_clone() * 1e30;
        }
    }
    lm::write_tensors(&file, &tensors, None).unwrap();
    let (code, words) = said(&["import", text(&model), text(&folder.path().join("out"))]);
    assert!(code == 2 && words.contains("a model whose logits are finite numbers"), "{words}");
    assert!(!folder.path().join("out").exists());
    // Weights that are no numbers.
    write_model(&model);
    let tensors: Vec<(String, Tensor)> = read().into_iter().collect();
    let name = "model.layers.1.mlp.down_proj.weight";
    _ = tensors.iter().find(|(n, _)| n == name).unwrap().1.get(3).get(7).fill_(f64::NAN);
    lm::write_tensors(&file, &tensors, None).unwrap();
    let wanted = format!("tensor `{name}`: expected finite numbers, found NaN at [3, 7]");
    let (code, words) = said(&score(&model, "it is", &[]));
    assert!(code == 2 && words.contains(&wanted), "{words}");
    let workspace = Workspace::new();
    fs_err::copy(&file, workspace.path("model/model.safetensors")).unwrap();
    let output = workspace.run(&[]).output().unwrap();
    assert!(output.status.code() == Some(2) && stderr(&output).contains(&wanted), "{}", stderr(&output));
}

#[test]
fn files_of_the_base_travel_to_merged_exports_also_for_names_that_differ_by_case_alone() {
    let workspace = Workspace::new();
    for name in ["tokenizer.model", "added_tokens.json", "LICENSE", "NOTICE"] {
        fs_err::write(workspace.path("model").join(name), "{}").unwrap();
    }
    workspace.edit("configs/simulate.toml", "ann = ", "Ann = [1, -1, -1, 1]\nann = ");
    workspace.edit("configs/export.toml", "merged = [\"ann\"]", "merged = [\"ann\", \"Ann\"]");
    workspace.run(&[]).assert().success();
    let merged = workspace.path("checkpoints/tiny/export/merged");
    let folders: Vec<PathBuf> = fs_err::read_dir(&merged).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(folders.len(), 2, "{folders:?}");
    for name in ["tokenizer.model", "added_tokens.json", "LICENSE", "NOTICE", "tokenizer.json", "chat_template.jinja"] {
        assert!(folders.iter().all(|folder| folder.join(name).exists()), "{name}");
    }
    assert!(
        folders.iter().all(|folder| !folder.join("manifest.json").exists() && !folder.join("config.toml").exists())
    );
    // Another licence is another base, and reaches the exports.
    fs_err::write(workspace.path("model/LICENSE"), "other").unwrap();
    let output = workspace.run(&["--until", "import"]).output().unwrap();
    assert!(stderr(&output).contains("import: running (changed"), "{}", stderr(&output));
}

/// Gives the workspace's base positions for so many tokens.
fn with_positions(workspace: &Workspace, tokens: usize) {
    let positions = format!("\"max_position_embeddings\": {tokens}");
    workspace.edit("model/config.json", "\"max_position_embeddings\": 256", &positions);
}

/// The first stage that a run does not finish says this, and leaves nothing.
fn stops(workspace: &Workspace, stage: &str, words: &str) {
    let output = workspace.run(&[]).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    let hint = "the base has positions for";
    assert!(said.contains(words) && said.contains(hint) && !said.contains("panicked"), "{said}");
    assert!(!workspace.path("checkpoints/tiny").join(stage).exists(), "{stage} was written");
    let metrics = workspace.path("checkpoints/tiny").join(format!("{stage}.partial/metrics.jsonl"));
    assert!(fs_err::read_to_string(metrics).unwrap_or_default().is_empty(), "no step was taken");
}

#[test]
fn no_stage_goes_beyond_the_positions_of_the_base() {
    // Sampling: the shortest prompt with a response is longer.
    let workspace = Workspace::new();
    with_positions(&workspace, 40);
    stops(&workspace, "simulate", "with a response of `max_new_tokens` = 12: expected at most 40 tokens, found");
    // Everything fits with a long enough context; then each stage on its own is given a shorter one.
    let workspace = Workspace::new();
    workspace.run(&["--until", "data"]).assert().success();
    let votes = data::read_votes(&workspace.path("checkpoints/tiny/data/votes.parquet")).unwrap();
    let tokenizer = text::Tokenizer::from_folder(&workspace.path("model")).unwrap();
    let length = |vote: &data::Vote, answer: &str, ending: text::Ending| {
        tokenizer.row(&vote.prompt, answer, ending).unwrap().ids.len()
    };
    let rows = |split: data::Split| {
        let of_split = votes.iter().filter(move |v| v.split == split);
        let both =
            |v: &data::Vote| [length(v, &v.chosen, v.chosen_ending()), length(v, &v.rejected, v.rejected_ending())];
        of_split.flat_map(both).max().unwrap()
    };
    let longest = rows(data::Split::Train).max(rows(data::Split::Test)).max(rows(data::Split::Dev));
    for (stage, workspace) in [("reward", Workspace::new()), ("sft", Workspace::new().with_sft())] {
        with_positions(&workspace, longest - 1);
        own_votes(&workspace, &votes);
        stops(
            &workspace,
            stage,
            &format!("expected at most {} tokens of prompt and answer, found {longest}", longest - 1),
        );
        // The policy for rows that are too long goes by the smaller limit.
        workspace.edit(&format!("configs/{stage}.toml"), "over_long = \"error\"", "over_long = \"drop\"");
        let output = workspace.run(&["--until", stage]).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let manifest: Value =
            run::read_json(&workspace.path(&format!("checkpoints/tiny/{stage}/manifest.json"))).unwrap();
        assert!(manifest["summary"].to_string().contains("\"dropped\":"), "{}", manifest["summary"]);
    }
}

#[test]
fn a_test_vote_that_is_too_long_is_refused_before_the_reward_model_is_fitted() {
    let workspace = Workspace::new();
    workspace.run(&["--until", "data"]).assert().success();
    let mut votes = data::read_votes(&workspace.path("checkpoints/tiny/data/votes.parquet")).unwrap();
    let last = votes.iter_mut().rfind(|v| v.split == data::Split::Test).unwrap();
    last.chosen = "it is ".repeat(90);
    own_votes(&workspace, &votes);
    with_positions(&workspace, 199); // the setting allows 200
    stops(&workspace, "reward", "expected at most 199 tokens of prompt and answer");
}

#[test]
fn pairs_dpo_and_ppo_keep_to_the_positions_of_the_base() {
    // Pairs of votes, a single long one: the reward model drops it, DPO does not.
    let workspace = Workspace::new();
    workspace.run(&["--until", "data"]).assert().success();
    let mut votes = data::read_votes(&workspace.path("checkpoints/tiny/data/votes.parquet")).unwrap();
    let first = votes.iter_mut().find(|v| v.split == data::Split::Train && !v.tie).unwrap();
    first.chosen = "it is ".repeat(90);
    let workspace = Workspace::new();
    own_votes(&workspace, &votes);
    with_positions(&workspace, 160);
    workspace.edit("configs/reward.toml", "over_long = \"error\"", "over_long = \"drop\"");
    fs_err::write(workspace.path("configs/pairs.toml"), "from = \"votes\"\n").unwrap();
    stops(&workspace, "dpo", "expected at most 160 tokens of prompt and answer");
    // Sampling of pairs, and PPO: a response has no room after the prompt.
    let workspace = Workspace::new();
    own_votes(&workspace, &votes);
    with_positions(&workspace, 160);
    workspace.edit("configs/reward.toml", "over_long = \"error\"", "over_long = \"drop\"");
    workspace.edit("configs/pairs.toml", "max_new_tokens = 12", "max_new_tokens = 150");
    stops(&workspace, "pairs", "with a response of `max_new_tokens` = 150: expected at most 160 tokens");
    let workspace = Workspace::new().with_ppo();
    own_votes(&workspace, &votes);
    with_positions(&workspace, 160);
    workspace.edit("configs/reward.toml", "over_long = \"error\"", "over_long = \"drop\"");
    workspace.edit("configs/ppo.toml", "max_new_tokens = 6", "max_new_tokens = 150");
    stops(&workspace, "ppo", "a row has at most 160 tokens, of which 151 are a response's with its end");
    workspace.edit("configs/ppo.toml", "max_new_tokens = 150", "max_new_tokens = 180");
    stops(&workspace, "ppo", "ppo, `max_new_tokens`: expected fewer than 159 tokens");
}

/// Takes these votes in the place of the simulation's.
fn own_votes(workspace: &Workspace, votes: &[data::Vote]) {
    data::write_votes(&workspace.path("own.parquet"), votes).unwrap();
    let file = workspace.path("pipelines/tiny.toml");
    let pipeline = fs_err::read_to_string(&file).unwrap();
    let without = |pipeline: String, kind: &str| {
        pipeline.replace(&format!("[[stage]]\nkind = \"{kind}\"\ninclude = \"../configs/{kind}.toml\"\n"), "")
    };
    fs_err::write(&file, without(without(pipeline, "simulate"), "evaluate")).unwrap();
    workspace.edit("configs/data.toml", "../card.toml\"", "../own.toml\"\npath = \"../own.parquet\"");
    let card = "name = \"own\"\nsource = \"this test\"\nlicence = \"none\"\n[layout]\nkind = \"canonical\"\n[columns]\nsplit = \"split\"\n";
    fs_err::write(workspace.path("own.toml"), card).unwrap();
}

#[test]
fn commands_keep_to_the_positions_of_the_base() {
    let (_folder, model) = model();
    let config = model.join("config.json");
    let mut value: Value = run::read_json(&config).unwrap();
    value["max_position_embeddings"] = json!(24);
    run::write_json(&config, &value).unwrap();
    let long = "it is ".repeat(20);
    let (code, words) = said(&score(&model, &long, &[]));
    assert!(code == 2 && words.contains("--prompt: expected at most 24 tokens, found"), "{words}");
    let (code, words) = said(&score(&model, "it is", &["--greedy", "20"]));
    assert!(code == 2 && words.contains("--greedy, 20 tokens after the 5 of the prompt"), "{words}");
    let (code, words) = said(&score(&model, "it is", &["--greedy", "19"]));
    assert_eq!(code, 0, "{words}");
    // A merged export's probe is scored.
    let workspace = Workspace::new();
    workspace.edit("configs/export.toml", "probe = \"what is 5?\"", &format!("probe = \"{}\"", "it is ".repeat(150)));
    stops(&workspace, "export", "export, `probe`: expected at most 256 tokens, found");
}

// ---- adapters of other programs

const PREFIX: &str = "base_model.model.";

/// Writes a PEFT adapter on q_proj and v_proj of all four blocks, of the ranks that `rank` gives.
fn adapter(folder: &Path, changes: &Value, layers: &[&str], rank: impl Fn(&str) -> i64) {
    let mut config = json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "x", "r": 2, "lora_alpha": 4,
        "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"], "bias": "none", "fan_in_fan_out": false, "inference_mode": true,
        "init_lora_weights": true, "megatron_core": "megatron.core", "loftq_config": {}, "qalora_group_size": 16,
        "use_qalora": false, "target_parameters": null, "layer_replication": null, "lora_bias": false, "use_dora": false});
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs_err::create_dir_all(folder).unwrap();
    run::write_json(&folder.join("adapter_config.json"), &config).unwrap();
    let mut tensors = Vec::new();
    for layer in layers {
        let output = if layer.ends_with("q_proj") { 32 } else { 16 };
        let rank = rank(layer);
        let numbers = |rows: i64, columns: i64, step: i64| {
            let wave = (Tensor::arange(rows * columns, (Kind::Float, tch::Device::Cpu)) * step).remainder(7.0);
            (wave * 0.1 - 0.25).view([rows, columns])
        };
        tensors.push((format!("{PREFIX}{layer}.lora_A.weight"), numbers(rank, 32, 3)));
        tensors.push((format!("{PREFIX}{layer}.lora_B.weight"), numbers(output, rank, 5)));
    }
    lm::write_tensors(&folder.join("adapter_model.safetensors"), &tensors, None).unwrap();
}

fn layers(blocks: &[usize]) -> Vec<String> {
    let of = |block: &usize| ["q_proj", "v_proj"].map(|name| format!("model.layers.{block}.self_attn.{name}"));
    blocks.iter().flat_map(of).collect()
}

fn names(layers: &[String]) -> Vec<&str> {
    layers.iter().map(String::as_str).collect()
}

/// Logits with an adapter, and with its product added into the weights by the formula of LoRA.
fn both(lm: &lm::Lm, model: &Path, folder: &Path, scale: impl Fn(&str) -> f64) -> (Tensor, Tensor) {
    let ids = [3, 9, 4, 12, 7, 30];
    let bank = export::read_adapter(folder, lm).unwrap();
    let read = lm::full_logits(lm, &ids, Some((&bank, lm::Place(0))));
    let mut weights = lm::read_folder(model, tch::Device::Cpu, Kind::Float).unwrap().by_name;
    let factors = lm::read_tensors(&folder.join("adapter_model.safetensors"), tch::Device::Cpu, None).unwrap().by_name;
    for (name, down) in factors.iter().filter(|(name, _)| name.contains("lora_A")) {
        let layer = name.strip_prefix(PREFIX).unwrap().strip_suffix(".lora_A.weight").unwrap();
        let product = factors[&name.replace("lora_A", "lora_B")].matmul(down) * scale(layer);
        let weight = weights.get_mut(&format!("{layer}.weight")).unwrap();
        *weight = &*weight + product;
    }
    let merged = tempfile::tempdir().unwrap();
    fs_err::copy(model.join("config.json"), merged.path().join("config.json")).unwrap();
    let weights: Vec<(String, Tensor)> = weights.into_iter().collect();
    lm::write_tensors(&merged.path().join("model.safetensors"), &weights, None).unwrap();
    let merged = lm::Lm::load(merged.path(), &device::Compute::new("cpu", "float32", Some(1)).unwrap()).unwrap();
    (read, lm::full_logits(&merged, &ids, None))
}

#[test]
fn ranks_alphas_and_layers_of_an_adapter_are_honoured() {
    let (folder, model) = model();
    let lm = lm::Lm::load(&model, &device::Compute::new("cpu", "float32", Some(1)).unwrap()).unwrap();
    let ids = [3, 9, 4, 12, 7, 30];
    let plain = lm::full_logits(&lm, &ids, None);
    let all = layers(&[0, 1, 2, 3]);
    let some = layers(&[0, 2]);
    type Case<'a> = (Value, Vec<&'a str>, fn(&str) -> i64, fn(&str) -> f64);
    let cases: [Case; 8] = [
        (json!({}), names(&all), |_| 2, |_| 2.0),
        (json!({"layers_to_transform": [0, 2], "layers_pattern": "layers"}), names(&some), |_| 2, |_| 2.0),
        (json!({"layers_to_transform": 2}), names(&some[2..]), |_| 2, |_| 2.0),
        (json!({"target_modules": r"model\.layers\.[02]\.self_attn\.(q|v)_proj"}), names(&some), |_| 2, |_| 2.0),
        (
            json!({"exclude_modules": ["model.layers.1.self_attn.q_proj", "layers.1.self_attn.v_proj"], "layers_to_transform": [0, 1, 2]}),
            names(&some),
            |_| 2,
            |_| 2.0,
        ),
        (
            json!({"rank_pattern": {"v_proj": 3, "model.layers.0.self_attn.q_proj": 1}, "alpha_pattern": {"layers.2.self_attn.q_proj": 6}}),
            names(&all),
            |layer| {
                if layer.ends_with("v_proj") {
                    3
                } else if layer.contains(".0.") {
                    1
                } else {
                    2
                }
            },
            |layer| match layer {
                _ if layer.ends_with("v_proj") => 4.0 / 3.0,
                _ if layer.contains(".0.") => 4.0,
                _ if layer.contains(".2.") => 3.0,
                _ => 2.0,
            },
        ),
        (json!({"use_rslora": true}), names(&all), |_| 2, |_| 2.0 * std::f64::consts::SQRT_2),
        (
            json!({"use_rslora": true, "rank_pattern": {"v_proj": 1}}),
            names(&all),
            |layer| if layer.ends_with("v_proj") { 1 } else { 2 },
            |layer| if layer.ends_with("v_proj") { 4.0 } else { 2.0 * std::f64::consts::SQRT_2 },
        ),
    ];
    for (n, (changes, on, rank, scale)) in cases.into_iter().enumerate() {
        let path = folder.path().join(format!("adapter-{n}"));
        adapter(&path, &changes, &on, rank);
        let (read, merged) = both(&lm, &model, &path, scale);
        let difference = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
        assert!(difference(&read, &merged) < 1e-4, "{changes}: {}", difference(&read, &merged));
        assert!(difference(&read, &plain) > 1e-2, "{changes}");
    }
}

#[test]
fn what_an_adapter_says_and_is_not_computed_is_refused_by_name() {
    let (folder, model) = model();
    let lm = lm::Lm::load(&model, &device::Compute::new("cpu", "float32", Some(1)).unwrap()).unwrap();
    let all = layers(&[0, 1, 2, 3]);
    let refused = |n: usize, changes: &Value, on: &[&str], name: &str| {
        let path = folder.path().join(format!("adapter-{n}"));
        adapter(&path, changes, on, |_| 2);
        let error = export::read_adapter(&path, &lm).unwrap_err();
        assert!(error.to_string().contains(name) && error.kind() == problem::Kind::User, "{changes}: {error}");
    };
    let cases = [
        (json!({"peft_type": "IA3"}), "`peft_type`"),
        (json!({"peft_type": "ADALORA"}), "`peft_type`"),
        (json!({"task_type": "SEQ_CLS"}), "`task_type`"),
        (json!({"use_dora": true}), "`use_dora`"),
        (json!({"lora_bias": true}), "`lora_bias`"),
        (json!({"bias": "lora_only"}), "`bias`"),
        (json!({"modules_to_save": ["lm_head"]}), "`modules_to_save`"),
        (json!({"trainable_token_indices": [1, 2]}), "`trainable_token_indices`"),
        (json!({"target_parameters": ["mlp.experts.gate_up_proj"]}), "`target_parameters`"),
        (json!({"layer_replication": [[0, 2], [1, 3]]}), "`layer_replication`"),
        (json!({"alora_invocation_tokens": [1, 2]}), "`alora_invocation_tokens`"),
        (json!({"init_lora_weights": "pissa"}), "`init_lora_weights`"),
        (json!({"init_lora_weights": "pissa_niter_4"}), "`init_lora_weights`"),
        (json!({"init_lora_weights": "olora"}), "`init_lora_weights`"),
        (json!({"init_lora_weights": "corda"}), "`init_lora_weights`"),
        (json!({"init_lora_weights": "loftq"}), "`init_lora_weights`"),
        (json!({"some_new_method": true}), "`some_new_method`"),
        (json!({"layers_pattern": "h", "layers_to_transform": [1]}), "`layers_pattern`"),
        (json!({"layers_to_transform": [9]}), "`layers_to_transform`"),
        (json!({"layers_to_transform": [1, 2]}), "also base_model.model.model.layers.0"),
        (json!({"exclude_modules": ["q_proj"]}), "also base_model.model.model.layers.0.self_attn.q_proj"),
        (json!({"target_modules": ["o_proj", "q_proj", "v_proj"]}), "factors of `model.layers.0.self_attn.o_proj`"),
        (json!({"target_modules": ["nothing"]}), "`target_modules`"),
        (json!({"target_modules": "(?<!x)q_proj"}), "`target_modules`"),
        (json!({"rank_pattern": {"q_proj": 3}}), "model.layers.0.self_attn.q_proj"),
        (json!({"rank_pattern": {"q_proj": 0}}), "`rank_pattern`"),
        (json!({"alpha_pattern": {"q_proj": "x"}}), "`alpha_pattern`"),
    ];
    for (n, (changes, name)) in cases.iter().enumerate() {
        refused(n, changes, &names(&all), name);
    }
    // Harmless beginnings.
    for (n, how) in [json!(false), json!("gaussian"), json!("eva"), json!(null)].iter().enumerate() {
        let path = folder.path().join(format!("fine-{n}"));
        adapter(&path, &json!({"init_lora_weights": how}), &names(&all), |_| 2);
        export::read_adapter(&path, &lm).unwrap();
    }
    // Weights that are no numbers, pickled, or not fetched.
    let path = folder.path().join("odd");
    adapter(&path, &json!({}), &names(&all), |_| 2);
    let file = path.join("adapter_model.safetensors");
    let tensors: Vec<(String, Tensor)> =
        lm::read_tensors(&file, tch::Device::Cpu, None).unwrap().by_name.into_iter().collect();
    _ = tensors[0].1.get(0).get(0).fill_(f64::INFINITY);
    lm::write_tensors(&file, &tensors, None).unwrap();
    let error = |path: &Path| export::read_adapter(path, &lm).unwrap_err().to_string();
    assert!(error(&path).contains(&format!("tensor `{}`: expected finite numbers", tensors[0].0)), "{}", error(&path));
    fs_err::write(&file, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n").unwrap();
    assert!(error(&path).contains("pointers of Git LFS"), "{}", error(&path));
    fs_err::remove_file(&file).unwrap();
    fs_err::write(path.join("adapter_model.bin"), "PK").unwrap();
    assert!(error(&path).contains("expected adapter_model.safetensors"), "{}", error(&path));
}
