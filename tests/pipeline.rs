//! Every stage from raw data to exported models.

use std::path::PathBuf;

use serde_json::Value;

use crate::tiny::{Workspace, program, repository, stderr};

const KINDS: [&str; 8] = ["import", "simulate", "data", "reward", "pairs", "dpo", "evaluate", "export"];

#[test]
fn the_whole_pipeline_runs_then_is_up_to_date_and_repeats_elsewhere() {
    let workspace = Workspace::new();
    let first = workspace.run(&[]).assert().success();
    let printed = String::from_utf8_lossy(&first.get_output().stdout).into_owned();
    assert!(printed.contains("| user | win rate | 95% interval |"), "{printed}");

    let folder = workspace.path("checkpoints/tiny");
    for kind in KINDS {
        assert!(folder.join(kind).join("manifest.json").exists(), "{kind}");
        assert!(!folder.join(kind).join("state").exists() && !folder.join(format!("{kind}.partial")).exists());
    }
    let report: Value = run::read_json(&folder.join("evaluate/report.json")).unwrap();
    for user in ["ann", "Bo/../b"] {
        let entry = &report["users"][user];
        let [low, rate, high] = ["win_rate_low", "win_rate", "win_rate_high"].map(|k| entry[k].as_f64().unwrap());
        assert!(0.0 <= low && low <= rate && rate <= high && high <= 1.0);
        assert!(entry["kl"].is_f64() && report["matrix"][user]["ann"].is_f64());
    }
    assert!(fs_err::read_to_string(folder.join("evaluate/matrix.svg")).unwrap().contains("</svg>"));
    let names: Value = run::read_json(&folder.join("export/users.json")).unwrap();
    assert_eq!(names["ann"], "ann");
    let other = names["Bo/../b"].as_str().unwrap();
    assert!(folder.join("export/adapters").join(other).join("adapter_config.json").exists() && !other.contains('/'));
    let export: Value = run::read_json(&folder.join("export/manifest.json")).unwrap();
    assert!(export["summary"]["users"]["ann"]["merged_max_logit_difference"].as_f64().unwrap() < 1e-3);

    let again = workspace.run(&[]).output().unwrap();
    let said = stderr(&again);
    assert!(again.status.success() && again.stdout.is_empty(), "{said}");
    assert!(KINDS.iter().all(|kind| said.contains(&format!("{kind}: up to date"))), "{said}");

    // Another folder, the same bytes.
    let elsewhere = Workspace::new();
    elsewhere.run(&[]).assert().success();
    assert_eq!(elsewhere.hashes(), workspace.hashes());

    // One changed value: the stages behind it run, those before it stand.
    let changed = workspace.run(&["--set", "dpo.beta=0.2", "--until", "dpo"]).output().unwrap();
    let said = stderr(&changed);
    assert!(said.contains("pairs: up to date") && said.contains("dpo: running (changed: config.beta)"), "{said}");
    let forced = workspace.run(&["--set", "dpo.beta=0.2", "--until", "dpo", "--force", "data"]).output().unwrap();
    let said = stderr(&forced);
    assert!(
        said.contains("data: running (forced)") && said.contains("reward: up to date"),
        "the same content again: {said}"
    );
    // A file that is gone is noticed.
    fs_err::remove_file(workspace.path("checkpoints/tiny/dpo/policies.safetensors")).unwrap();
    let dry = workspace.run(&["--set", "dpo.beta=0.2", "--dry-run"]).output().unwrap();
    let printed = String::from_utf8_lossy(&dry.stdout).into_owned();
    assert!(printed.contains("damaged") && printed.contains("waits for dpo"), "{printed}");
}

#[test]
fn adapter_and_merged_model_score_alike_and_unlike_the_base() {
    let workspace = Workspace::new();
    workspace.run(&[]).assert().success();
    let folder = workspace.path("checkpoints/tiny");
    let score = |name: &str, model: &str, adapter: Option<&str>| {
        let dump = workspace.path(name);
        let mut command = program();
        command.args(["score", "--dtype", "float32", "--threads", "1", "--prompt", "what is 3?", "--greedy", "4"]);
        command.arg("--model").arg(folder.join(model)).arg("--dump").arg(&dump);
        if let Some(adapter) = adapter {
            command.arg("--adapter").arg(folder.join(adapter));
        }
        let output = command.assert().success();
        let said: Value = serde_json::from_slice(&output.get_output().stdout).unwrap();
        (lm::Tensor::read_npy(dump).unwrap(), said["greedy_ids"].clone())
    };
    let (base, _) = score("base.npy", "import", None);
    let (adapter, greedy) = score("adapter.npy", "import", Some("export/adapters/ann"));
    let (merged, greedy_merged) = score("merged.npy", "export/merged/ann", None);
    let distance = |a: &lm::Tensor, b: &lm::Tensor| (a - b).abs().max().double_value(&[]);
    assert!(distance(&adapter, &merged) < 1e-4 && greedy == greedy_merged);
    assert!(distance(&adapter, &base) > 1e-3);
}

#[test]
fn policies_are_judged_by_the_truth_and_by_reward_models_outside_of_a_pipeline() {
    let workspace = Workspace::new().with_sft();
    workspace.run(&["--until", "evaluate"]).assert().success();
    let folder = workspace.path("checkpoints/tiny");
    fs_err::write(workspace.path("held.toml"), "prompts = [\"what is 11?\", \"what is 12?\", \"what is 13?\"]")
        .unwrap();
    let eval = |out: &str, judge: [&str; 2], more: &[&str]| {
        let mut command = program();
        command.args(["policy", "eval", "--dtype", "float32", "--threads", "1", "--max-new-tokens", "8", judge[0]]);
        command.arg(folder.join(judge[1])).args(more).arg("--model").arg(folder.join("sft"));
        command.arg("--policies").arg(folder.join("dpo")).arg("--prompts").arg(workspace.path("held.toml"));
        command.arg("--out").arg(workspace.path(out)).output().unwrap()
    };
    let report = |out: &str| -> Value { run::read_json(&workspace.path(out).join("report.json")).unwrap() };
    let neutral = workspace.path("held.toml").display().to_string();
    let against = folder.join("dpo/policies.safetensors").display().to_string();
    let more = ["--neutral", &neutral, "--against", &against];
    let by_truth = eval("truth", ["--truth", "simulate/truth.json"], &more);
    assert!(by_truth.status.success(), "{}", stderr(&by_truth));
    let said = report("truth");
    let first = said["matrix"].as_object().unwrap().keys().next().unwrap().clone();
    // The model for everybody is the first user's own here: as good as itself.
    assert!((said["users"][&first]["against"]["mean"].as_f64().unwrap() - 0.5).abs() < 0.2, "{said}");
    assert!(said["users"]["ann"]["drift"]["kl"].is_f64() && said["judged"] == "truth");
    let by_reward = eval("reward", ["--reward", "reward/reward.safetensors"], &[]);
    assert!(by_reward.status.success(), "{}", stderr(&by_reward));
    let other = report("reward");
    // The same answers under another judge.
    assert_eq!(other["users"]["ann"]["kl"], said["users"]["ann"]["kl"]);
    assert!(other["judged"] == "reward" && other["matrix"] != said["matrix"]);
    let again = eval("truth", ["--truth", "simulate/truth.json"], &[]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("expected a new folder"));
}

#[test]
fn a_users_model_talks_alone_and_beside_the_base() {
    let workspace = Workspace::new();
    workspace.run(&["--until", "dpo"]).assert().success();
    let folder = workspace.path("checkpoints/tiny");
    let chat = |user: &str, more: &[&str], said: &str| {
        let mut command = program();
        command
            .args(["chat", "--dtype", "float32", "--threads", "1", "--max-new-tokens", "6", "--user", user])
            .args(more);
        command.arg("--model").arg(folder.join("import")).arg("--policies").arg(folder.join("dpo"));
        command.write_stdin(said.to_owned()).output().unwrap()
    };
    let both = chat("ann", &["--beside", "base"], "what is 3?\n\n/reset\nwhat is 3?\n");
    let printed = String::from_utf8_lossy(&both.stdout).into_owned();
    assert!(both.status.success(), "{}", stderr(&both));
    assert_eq!((printed.matches("ann> ").count(), printed.matches("base> ").count()), (2, 2), "{printed}");
    // The likeliest answer of the base alone is that of the base beside ann.
    let greedy = |beside: &str| {
        let output = chat("ann", &["--temperature", "0", "--beside", beside], "what is 3?\n");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = |name: &str| printed.lines().find_map(|l| Some(l.split_once(&format!("{name}> "))?.1.to_owned()));
        (line("ann"), line(beside))
    };
    let (own, base) = greedy("base");
    let (again, other) = greedy("Bo/../b");
    assert!(own.is_some() && own == again && base.is_some() && other.is_some(), "{own:?} {again:?} {base:?} {other:?}");
    let unknown = chat("eve", &[], "");
    assert_eq!(unknown.status.code(), Some(2));
    assert!(stderr(&unknown).contains("found `eve`") && stderr(&unknown).contains("hint: the models are: "));
}

/// `pipelines/studies/NAME.toml` on the tiny model: the repository's own settings, made small.
fn papers_protocol(name: &str, data: &std::path::Path, workspace: &Workspace) -> Value {
    let pipeline = fs_err::read_to_string(repository().join(format!("pipelines/studies/{name}.toml"))).unwrap();
    papers_protocol_of(name, &pipeline, data, &["batch_votes=8"], workspace)
}

fn papers_protocol_of(
    name: &str,
    pipeline: &str,
    data: &std::path::Path,
    small: &[&str],
    workspace: &Workspace,
) -> Value {
    let copy = |file: &str| {
        let to = workspace.path(file);
        fs_err::create_dir_all(to.parent().unwrap()).unwrap();
        fs_err::copy(repository().join(file), to).unwrap();
    };
    fs_err::create_dir_all(workspace.path("pipelines/studies")).unwrap();
    fs_err::write(workspace.path(&format!("pipelines/studies/{name}.toml")), pipeline).unwrap();
    copy(&format!("configs/data/{name}.toml"));
    copy(&format!("datasets/{name}/card.toml"));
    copy("configs/reward/paper.toml");
    workspace.edit(&format!("pipelines/studies/{name}.toml"), "configs/import/llama3-8b.toml", "configs/import.toml");
    let mut command = program();
    command.arg("run").arg(workspace.path(&format!("pipelines/studies/{name}.toml")));
    command.args(["--threads", "1", "--dtype", "float32", "--set", &format!("data={}", data.display())]);
    for small in ["max_row_tokens=200", "lora.rank=2", "optimizer.learning_rate=1e-2"].iter().chain(small) {
        command.args(["--set", &format!("reward.{small}")]);
    }
    command.assert().success();
    run::read_json(&workspace.path(&format!("checkpoints/{name}/comparison.json"))).unwrap()
}

/// A file of JSON lines in a workspace.
fn lines(workspace: &Workspace, file: &str, rows: &[Value]) -> std::path::PathBuf {
    let path = workspace.path(file);
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    fs_err::write(&path, rows.iter().map(|r| format!("{r}\n")).collect::<String>()).unwrap();
    path
}

/// Reddit TL;DR's schema: six workers, of whom the one with fewest training votes, `train`, is not of the top five; workers like
/// long or short summaries.
pub(crate) fn tldr_rows(train: usize) -> Vec<Value> {
    use serde_json::json;
    let mut rows = Vec::new();
    for worker in 0..6usize {
        for i in 0..train + 4 + worker {
            let split = if i < train + worker { "train" } else { ["valid1", "valid2"][i % 2] };
            rows.push(json!({
                "info": {"id": "t3", "post": format!("post {split} {i}"), "title": "a", "subreddit": "b", "site": null, "article": null},
                "split": split, "choice": (worker + i) % 2, "worker": format!("w{worker}"), "batch": "b", "extra": {"confidence": 7},
                "summaries": [{"text": if i % 2 == 0 { "xx" } else { "z" }, "policy": "p", "note": null},
                              {"text": if i % 2 == 0 { "z" } else { "xx" }, "policy": "p", "note": "n"}]
            }));
        }
    }
    rows
}

/// HelpSteer2's: two rows a prompt, five attributes each.
pub(crate) fn helpsteer2_rows(prompts: std::ops::Range<usize>) -> Vec<Value> {
    let row = |i: usize, response: &str, score: usize| {
        serde_json::json!({"prompt": format!("what is {i}?"), "response": response, "helpfulness": score,
            "correctness": 4 - score, "coherence": 2, "complexity": score % 2, "verbosity": 1})
    };
    prompts.flat_map(|i| [row(i, "xx", i % 5), row(i, "z", (i + 2) % 5)]).collect()
}

#[test]
fn the_papers_protocol_runs_on_files_of_the_published_schemas() {
    let workspace = Workspace::new();
    let tldr = papers_protocol("tldr", &lines(&workspace, "tldr/comparisons.jsonl", &tldr_rows(8)), &workspace);
    let names: Vec<&str> = tldr["methods"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["global", "local", "Share Rep", "SI", "G", "personal up", "WU"]);
    assert_eq!((tldr["users"].as_u64(), tldr["votes"].as_u64()), (Some(5), Some(20)), "four validation votes each");
    let data: Value = run::read_json(&workspace.path("checkpoints/tldr/data/report.json")).unwrap();
    assert_eq!(
        (data["splits"]["train"].as_u64(), data["users_beyond_the_top"].as_u64()),
        (Some(5 * 9), Some(1)),
        "{data}"
    );
    let fit: Value = run::read_json(&workspace.path("checkpoints/tldr/reward@method=G/report.json")).unwrap();
    let (steps, global) = (fit["fit"]["steps"].as_u64().unwrap(), fit["fit"]["global_steps"].as_u64().unwrap());
    assert_eq!((steps, global), (18, 12), "{fit}");

    lines(&workspace, "helpsteer2/train.jsonl", &helpsteer2_rows(0..10));
    let folder = lines(&workspace, "helpsteer2/validation.jsonl", &helpsteer2_rows(10..14));
    let helpsteer2 = papers_protocol("helpsteer2", folder.parent().unwrap(), &workspace);
    assert_eq!((helpsteer2["users"].as_u64(), helpsteer2["votes"].as_u64()), (Some(5), Some(20)));
}

/// The same two pipelines on SmolLM2, adapters on all of its blocks: two methods, a few votes.
#[test]
fn the_papers_protocol_runs_on_smollm2() {
    let workspace = Workspace::new();
    let gguf = repository().join(".deps/base/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(gguf.exists(), "{} is missing: ./setup fetches it", gguf.display());
    fs_err::write(workspace.path("configs/import.toml"), format!("gguf = \"{}\"\n", gguf.display())).unwrap();
    let only_two = |name: &str| {
        let text = fs_err::read_to_string(repository().join(format!("pipelines/studies/{name}.toml"))).unwrap();
        let named = |l: &str, name: &str| l.contains(&format!("{{ name = \"{name}\""));
        let other = |l: &&str| !l.contains("{ name = ") || named(l, "global") || named(l, "WU");
        text.lines().filter(other).map(|l| format!("{l}\n")).collect::<String>()
    };
    lines(&workspace, "helpsteer2/train.jsonl", &helpsteer2_rows(0..2));
    let folder = lines(&workspace, "helpsteer2/validation.jsonl", &helpsteer2_rows(2..4));
    let tldr = lines(&workspace, "tldr/comparisons.jsonl", &tldr_rows(2));
    for (name, data) in [("tldr", tldr.as_path()), ("helpsteer2", folder.parent().unwrap())] {
        let compared =
            papers_protocol_of(name, &only_two(name), data, &["batch_votes=4", "token_budget=2000"], &workspace);
        let accuracies: Vec<f64> =
            compared["methods"].as_array().unwrap().iter().map(|m| m["accuracy"]["mean"].as_f64().unwrap()).collect();
        assert!(accuracies.len() == 2 && accuracies.iter().all(|a| (0.0..=1.0).contains(a)), "{name}: {accuracies:?}");
        let report: Value =
            run::read_json(&workspace.path(&format!("checkpoints/{name}/reward@method=WU/report.json"))).unwrap();
        let loss = report["fit"]["final_loss"].as_f64().unwrap();
        assert!(loss.is_finite() && report["fit"]["steps"].as_u64() > Some(1), "{report}");
    }
}

#[test]
fn a_user_in_quarantine_is_told_of_to_the_end_and_the_exit_code_is_3() {
    let workspace = Workspace::new().with_ppo();
    let far = ["--set", "ppo.user={ \"Bo/../b\" = { learning_rate = 3.0 } }", "--set", "ppo.max_kl=2.0"];
    let ended = workspace.run(&far).assert().code(3);
    let said = String::from_utf8_lossy(&ended.get_output().stderr).into_owned();
    assert!(said.contains("finished, except: ") && said.contains("`Bo/../b` in quarantine"), "{said}");
    let read = |file: &str| -> Value { run::read_json(&workspace.path("checkpoints/tiny").join(file)).unwrap() };
    let judged = read("evaluate/report.json");
    assert_eq!(judged["users"].as_object().unwrap().keys().collect::<Vec<_>>(), ["ann"]);
    // What the other one's policy said until then is judged as well.
    let curve = read("evaluate/curve.json");
    for user in ["ann", "Bo/../b"] {
        assert!(curve.as_array().unwrap().iter().any(|p| p["user"] == user && p["gold"].is_f64()), "{user}: {curve}");
    }
}

#[test]
fn supervised_fine_tuning_gives_the_stages_behind_it_a_new_base() {
    let workspace = Workspace::new().with_sft();
    workspace.run(&[]).assert().success();
    let stage = |name: &str| workspace.path("checkpoints/tiny").join(name);
    let report: Value = run::read_json(&stage("sft").join("report.json")).unwrap();
    let everyone = &report["models"]["everyone"];
    let (first, last) = (everyone["first_loss"].as_f64().unwrap(), everyone["final_loss"].as_f64().unwrap());
    assert!(last < first - 0.05, "{report}");
    // Reward and policies read the fine-tuned base; it is what sft wrote, and not the imported one.
    let hash = |file: PathBuf| run::hash_file(&file).unwrap();
    assert_ne!(hash(stage("sft/model.safetensors")), hash(stage("import/model.safetensors")));
    let inputs = |name: &str| -> Value {
        let manifest: Value = run::read_json(&stage(name).join("manifest.json")).unwrap();
        manifest["identity"]["inputs"]["base"].clone()
    };
    assert!(inputs("reward").is_string());
    assert_eq!(inputs("reward"), inputs("dpo"));
    assert_ne!(inputs("reward"), inputs("sft"));
    let card = fs_err::read_to_string(stage("export/adapters/ann/adapter_config.json")).unwrap();
    assert!(card.contains("tiny/sft"), "{card}");
    // Everything is up to date, also where the fine-tuned base takes the place of the imported one.
    let again = workspace.run(&[]).output().unwrap();
    assert_eq!(crate::tiny::stderr(&again).matches(": up to date").count(), 9, "{}", crate::tiny::stderr(&again));
}

#[test]
fn dpo_can_start_from_each_users_own_fine_tuning() {
    let workspace = Workspace::new().with_sft();
    workspace.edit("configs/sft.toml", "scope = \"global\"", "scope = \"per-user\"");
    workspace.edit("configs/dpo.toml", "start = \"base\"", "start = \"sft\"");
    workspace.run(&["--until", "dpo"]).assert().success();
    let report: Value = run::read_json(&workspace.path("checkpoints/tiny/sft/report.json")).unwrap();
    assert_eq!(report["models"].as_object().unwrap().len(), 2);
    // Measured against their own start, the first margins are zero and the first loss is ln 2.
    let log = fs_err::read_to_string(workspace.path("checkpoints/tiny/dpo/metrics.jsonl")).unwrap();
    let first: Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    for (name, user) in first.as_object().unwrap().iter().filter(|(name, _)| name.starts_with("user/")) {
        let loss = user["loss"].as_f64().unwrap();
        assert!((loss - std::f64::consts::LN_2).abs() < 1e-5, "{name}: {loss}");
    }
    // Another rank does not fit.
    let other = workspace.run(&["--until", "dpo", "--set", "dpo.lora.rank=3"]).output().unwrap();
    assert_eq!(other.status.code(), Some(2));
    assert!(crate::tiny::stderr(&other).contains("the same `lora`"), "{}", crate::tiny::stderr(&other));
}

#[test]
fn doctor_names_devices_and_rates() {
    let output = program().arg("doctor").current_dir(repository()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("bfloat16 products at") && said.contains("libtorch"), "{said}");
    let default = if device::cpu_kind().has_fast_bfloat16() { "bfloat16" } else { "float32" };
    assert!(
        said.contains(&format!("{default} by default, since this processor ({})", device::cpu_kind().name())),
        "{said}"
    );
    assert!(said.contains("times the machine of docs/benchmarks/quickstart.md"), "{said}");
}

#[test]
fn a_model_by_name_needs_the_cache_when_offline() {
    let folder = tempfile::tempdir().unwrap();
    let hub = || {
        let mut command = program();
        command.env("HF_HUB_OFFLINE", "1").env("HF_HOME", folder.path()).current_dir(folder.path());
        command.args(["import", "someone/tiny", "out"]);
        command
    };
    let missing = hub().output().unwrap();
    assert_eq!(missing.status.code(), Some(2));
    let said = crate::tiny::stderr(&missing);
    assert!(
        said.contains("expected the revision `main` in the cache") && said.contains("\nhint: HF_HUB_OFFLINE"),
        "{said}"
    );
    // As a cache lies on disk: a reference names a commit, the commit's folder holds the files.
    let cache = folder.path().join("hub/models--someone--tiny");
    crate::tiny::write_model(&cache.join("snapshots/abc"));
    fs_err::create_dir_all(cache.join("refs")).unwrap();
    fs_err::write(cache.join("refs/main"), "abc").unwrap();
    hub().assert().success();
    let bytes = |path: PathBuf| fs_err::read(path).unwrap();
    assert!(bytes(folder.path().join("out/model.safetensors")) == bytes(cache.join("snapshots/abc/model.safetensors")));
}

#[test]
fn a_plain_base_is_given_a_chat_template() {
    let workspace = Workspace::new();
    fs_err::rename(workspace.path("model/chat_template.jinja"), workspace.path("plain.jinja")).unwrap();
    // Without one the import succeeds, and the first stage that needs words says what is missing.
    let output = workspace.run(&["--until", "simulate"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(said.contains("expected a chat template") && said.contains("\nhint: name a Jinja file"), "{said}");
    fs_err::write(workspace.path("configs/import.toml"), "folder = \"../model\"\nchat_template = \"../plain.jinja\"\n")
        .unwrap();
    workspace.run(&["--until", "simulate"]).assert().success();
    // transformers 4 kept templates in a list; a base with a template keeps it.
    let config = workspace.path("model/tokenizer_config.json");
    let mut value: Value = run::read_json(&config).unwrap();
    let template = fs_err::read_to_string(workspace.path("plain.jinja")).unwrap();
    value["chat_template"] =
        serde_json::json!([{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]);
    run::write_json(&config, &value).unwrap();
    let tokenizer = text::Tokenizer::from_folder(&workspace.path("model")).unwrap();
    assert_eq!(tokenizer.template().unwrap().source(), template);
    let output = workspace.run(&["--until", "import"]).output().unwrap();
    assert!(output.status.code() == Some(2) && stderr(&output).contains("without a template"), "{}", stderr(&output));
}
