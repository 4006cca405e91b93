//! The engine: what makes a stage run again, what never does, and what nothing may delete.

use serde_json::Value;

use crate::tiny::{Workspace, program, stderr};

fn said(workspace: &Workspace, arguments: &[&str]) -> (Option<i32>, String) {
    let output = workspace.run(arguments).output().unwrap();
    (output.status.code(), stderr(&output))
}

/// The same with two threads.
fn said_by_two_threads(workspace: &Workspace, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = program();
    command.arg("run").arg(workspace.path("pipelines/tiny.toml")).args(["--threads", "2", "--dtype", "float32"]);
    let output = command.args(arguments).output().unwrap();
    (output.status.code(), stderr(&output))
}

fn read(workspace: &Workspace, file: &str) -> Value {
    run::read_json(&workspace.path("checkpoints/tiny").join(file)).unwrap()
}

#[test]
fn issue_22_1_another_number_of_threads_is_an_error_that_names_it_and_deletes_nothing() {
    let workspace = Workspace::new();
    assert_eq!(said(&workspace, &["--until", "reward"]).0, Some(0));
    let before = fs_err::read(workspace.path("checkpoints/tiny/reward/reward.safetensors")).unwrap();
    let (code, text) = said_by_two_threads(&workspace, &["--until", "reward"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("simulate: was computed in another environment: threads 1 (now 2)"), "{text}");
    assert!(text.contains("hint: --accept-environment"), "{text}");
    let mut command = program();
    command.arg("run").arg(workspace.path("pipelines/tiny.toml")).args([
        "--threads",
        "2",
        "--dtype",
        "float32",
        "--dry-run",
    ]);
    let planned = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(planned.contains("| import | up to date |"), "libtorch does not compute it: {planned}");
    assert!(planned.contains("| reward | ends with an error: "), "a dry run says what the run would: {planned}");
    let (code, text) = said_by_two_threads(&workspace, &["--until", "reward", "--accept-environment"]);
    assert_eq!((code, text.matches(": up to date").count()), (Some(0), 4), "{text}");
    assert_eq!(fs_err::read(workspace.path("checkpoints/tiny/reward/reward.safetensors")).unwrap(), before);
}

#[test]
#[cfg_attr(not(feature = "kill-points"), ignore = "needs --features idiolect/kill-points")]
fn issue_22_1_an_unfinished_run_outlives_other_settings_and_another_environment() {
    let workspace = Workspace::new();
    let killed = workspace.run(&["--until", "reward"]).env("IDIOLECT_ABORT_AFTER", "reward:2").output().unwrap();
    assert!(stderr(&killed).contains("aborting after checkpoint"), "{}", stderr(&killed));
    let (code, text) = said_by_two_threads(&workspace, &["--until", "reward", "--dry-run"]);
    assert_eq!(code, Some(0), "a dry run says what it is: {text}");
    let (code, text) = said(&workspace, &["--until", "reward", "--set", "reward.seed=9"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("an unfinished run with other settings is kept as"), "{text}");
    let (_, text) = said(&workspace, &["--until", "reward"]);
    assert!(text.contains("reward: running (an interrupted run goes on)"), "{text}");
    let undisturbed = Workspace::new();
    assert_eq!(said(&undisturbed, &["--until", "reward"]).0, Some(0));
    let model = |w: &Workspace| fs_err::read(w.path("checkpoints/tiny/reward/reward.safetensors")).unwrap();
    assert!(model(&workspace) == model(&undisturbed), "the same bytes");
}

#[test]
#[cfg_attr(not(feature = "kill-points"), ignore = "needs --features idiolect/kill-points")]
fn issue_22_1_responses_sampled_in_batches_of_another_size_stay_with_their_prompts() {
    let (killed, undisturbed) = (Workspace::new(), Workspace::new());
    let output = killed.run(&["--until", "simulate"]).env("IDIOLECT_ABORT_AFTER", "simulate:1").output().unwrap();
    assert!(stderr(&output).contains("aborting after checkpoint"), "{}", stderr(&output));
    let smaller = ["--until", "simulate", "--set", "simulate.sampling.batch_rows=4"];
    let (code, text) = said(&killed, &smaller);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("was begun in another environment: sampling.batch_rows 8 (now 4)"), "{text}");
    assert_eq!(said(&killed, &[&smaller[..], &["--accept-environment"]].concat()).0, Some(0));
    assert_eq!(said(&undisturbed, &["--until", "simulate"]).0, Some(0));
    let counts = |w: &Workspace| read(w, "simulate/report.json")["samples"].clone();
    assert_eq!(counts(&killed), counts(&undisturbed));
}

#[test]
fn issue_22_2_comparisons_read_the_results_of_this_run() {
    let workspace = Workspace::new();
    let text = fs_err::read_to_string(workspace.path("pipelines/tiny.toml")).unwrap();
    let matrix = |rate: &str| {
        format!(
            "[matrix]\nmethod = [\n{{ name = \"global\", set = {{ \"reward.variant\" = \"lora-global\" }} }},\n\
             {{ name = \"local\", set = {{ \"reward.variant\" = \"lora-local\" }} }},\n\
             {{ name = \"wild\", set = {{ \"reward.optimizer.learning_rate\" = {rate} }} }},\n]\n"
        )
    };
    let names = || -> Vec<String> {
        let comparison = read(&workspace, "comparison.json");
        comparison["methods"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap().to_owned()).collect()
    };
    fs_err::write(workspace.path("pipelines/tiny.toml"), format!("{text}{}", matrix("1e-3"))).unwrap();
    assert_eq!(said(&workspace, &["--until", "reward"]).0, Some(0));
    assert_eq!(names(), ["global", "local", "wild"]);
    // Its folder of the first run is still there, with predictions in it.
    fs_err::write(workspace.path("pipelines/tiny.toml"), format!("{text}{}", matrix("1e30"))).unwrap();
    let (code, text) = said(&workspace, &["--until", "reward"]);
    assert_eq!(code, Some(3), "{text}");
    assert!(workspace.path("checkpoints/tiny/reward@method=wild/predictions-test.parquet").exists());
    assert_eq!(names(), ["global", "local"]);
}

#[test]
fn issue_22_3_settings_that_change_no_result_rerun_nothing() {
    let workspace = Workspace::new();
    assert_eq!(said(&workspace, &["--until", "dpo"]).0, Some(0));
    let knobs = [
        "reward.save_every_steps=1",
        "dpo.save_every_steps=1",
        "reward.frozen_states=disk",
        "reward.personal_factors=disk",
    ];
    let mut arguments = vec!["--until", "dpo"];
    knobs.iter().for_each(|knob| arguments.extend(["--set", knob]));
    let (code, text) = said(&workspace, &arguments);
    assert_eq!((code, text.matches(": up to date").count()), (Some(0), 6), "{text}");
    // What moves last bits only is an error that names it.
    let (code, text) = said(&workspace, &["--until", "dpo", "--set", "reward.micro_batch_tokens=200"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("micro_batch_tokens 300 (now 200)"), "{text}");
    // A stage that runs again and gives the same artifacts reruns nothing after it, whatever else its folder holds.
    let (code, text) = said(&workspace, &["--until", "dpo", "--force", "reward", "--set", "reward.swap=true"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("reward: running") && text.contains("pairs: up to date"), "{text}");
}

#[test]
fn issue_22_4_an_export_leaves_out_whom_training_stopped_and_a_cell_without_users_ends_alone() {
    let workspace = Workspace::new();
    workspace.edit("configs/dpo.toml", "[lora]", "[user.ann]\nbeta = 1e30\n[lora]");
    let (code, text) = said(&workspace, &[]);
    assert_eq!(code, Some(3), "{text}");
    let export = read(&workspace, "export/manifest.json");
    assert_eq!(export["summary"]["not_merged"], serde_json::json!(["ann"]), "{export}");
    assert_eq!(export["summary"]["users"].as_object().unwrap().len(), 1);

    // Whom an earlier stage stopped is left out as well, and may keep settings.
    let workspace = Workspace::new();
    let reward = workspace.path("checkpoints/tiny/reward/report.json");
    assert_eq!(said(&workspace, &["--until", "reward"]).0, Some(0));
    let mut report: Value = run::read_json(&reward).unwrap();
    report["quarantined"] = serde_json::json!({"eve": "step 3: the loss is not finite"});
    run::write_json(&reward, &report).unwrap();
    let manifest = workspace.path("checkpoints/tiny/reward/manifest.json");
    let mut record: Value = run::read_json(&manifest).unwrap();
    record["files"]["report.json"]["bytes"] = fs_err::metadata(&reward).unwrap().len().into();
    run::write_json(&manifest, &record).unwrap();
    workspace.edit("configs/dpo.toml", "[lora]", "[user.eve]\nbeta = 0.2\n[lora]");
    workspace.edit("configs/export.toml", "\"ann\"", "\"ann\", \"eve\"");
    let (code, text) = said(&workspace, &[]);
    assert_eq!(code, Some(0), "{text}");
    let export = read(&workspace, "export/manifest.json");
    assert_eq!(export["summary"]["not_merged"], serde_json::json!(["eve"]), "{export}");

    let workspace = Workspace::new();
    let text = fs_err::read_to_string(workspace.path("pipelines/tiny.toml")).unwrap();
    let matrix = "[matrix]\n\"dpo.beta\" = [1e30, 0.1]\n";
    fs_err::write(workspace.path("pipelines/tiny.toml"), text + matrix).unwrap();
    let (code, text) = said(&workspace, &["--until", "dpo"]);
    assert_eq!(code, Some(3), "{text}");
    assert!(text.contains("all 2 in quarantine"), "{text}");
    let results = read(&workspace, "results.json");
    assert_eq!(results.as_array().unwrap().len(), 1, "{results}");
}

#[test]
fn issue_22_5_an_import_that_was_killed_after_it_added_its_template_goes_on() {
    let workspace = Workspace::new();
    let config: Value = run::read_json(&workspace.path("model/tokenizer_config.json")).unwrap();
    let template = config["chat_template"].as_str().map(str::to_owned);
    let mut without = config;
    without.as_object_mut().unwrap().remove("chat_template");
    run::write_json(&workspace.path("model/tokenizer_config.json"), &without).unwrap();
    let jinja = workspace.path("model/chat_template.jinja");
    let template = template.unwrap_or_else(|| fs_err::read_to_string(&jinja).unwrap());
    fs_err::remove_file(&jinja).ok();
    fs_err::write(workspace.path("plain.jinja"), template).unwrap();
    workspace.edit("configs/import.toml", "folder", "chat_template = \"../plain.jinja\"\nfolder");
    assert_eq!(said(&workspace, &["--until", "import"]).0, Some(0));
    // As a process leaves it that dies right before its manifest is written.
    let (folder, partial) =
        (workspace.path("checkpoints/tiny/import"), workspace.path("checkpoints/tiny/import.partial"));
    let manifest = read(&workspace, "import/manifest.json");
    fs_err::rename(&folder, &partial).unwrap();
    fs_err::remove_file(partial.join("manifest.json")).unwrap();
    fs_err::create_dir(partial.join("state")).unwrap();
    fs_err::write(partial.join("state/fingerprint"), manifest["fingerprint"].as_str().unwrap()).unwrap();
    let (code, text) = said(&workspace, &["--until", "import"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("import: running (an interrupted run goes on)"), "{text}");
    assert_eq!(read(&workspace, "import/manifest.json")["artifacts"], manifest["artifacts"]);
}

#[test]
#[cfg_attr(not(feature = "kill-points"), ignore = "needs --features idiolect/kill-points")]
fn issue_22_6_an_evaluation_on_another_base_does_not_go_on_and_is_one_processs() {
    let workspace = Workspace::new();
    assert_eq!(said(&workspace, &["--until", "dpo"]).0, Some(0));
    fs_err::write(workspace.path("held.toml"), "prompts = [\"what is 11?\", \"what is 12?\"]").unwrap();
    crate::tiny::write_model_with(&workspace.path("other"), 6);
    let eval = |model: &str| {
        let mut command = program();
        command.args(["policy", "eval", "--dtype", "float32", "--threads", "1", "--max-new-tokens", "8"]);
        command.arg("--truth").arg(workspace.path("checkpoints/tiny/simulate/truth.json"));
        command.arg("--model").arg(workspace.path(model)).arg("--policies").arg(workspace.path("checkpoints/tiny/dpo"));
        command.arg("--prompts").arg(workspace.path("held.toml")).arg("--out").arg(workspace.path("out"));
        command
    };
    let killed = eval("model").env("IDIOLECT_ABORT_AFTER", "policy-eval:1").output().unwrap();
    assert!(stderr(&killed).contains("aborting after checkpoint"), "{}", stderr(&killed));
    let held = run::Lock::take(&workspace.path("out.partial/state/lock")).unwrap();
    let busy = eval("model").output().unwrap();
    assert_eq!(busy.status.code(), Some(2));
    assert!(stderr(&busy).contains("another run is working here"), "{}", stderr(&busy));
    drop(held);
    let other = eval("other").output().unwrap();
    assert!(other.status.success(), "{}", stderr(&other));
    assert!(stderr(&other).contains("an unfinished run with other settings is kept as"), "{}", stderr(&other));
}

#[test]
fn issue_22_7_the_date_that_a_template_reads_is_kept_with_the_base() {
    let workspace = Workspace::new();
    let dated = "{{ strftime_now('%Y-%m-%d') }}{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}";
    let file = workspace.path("model/chat_template.jinja");
    fs_err::write(&file, dated).unwrap();
    let date = |day: &str| day.parse::<i64>().unwrap() * 86_400;
    let run = |day: &str| {
        workspace.run(&["--until", "simulate"]).env("SOURCE_DATE_EPOCH", date(day).to_string()).output().unwrap()
    };
    let first = run("20000");
    assert!(first.status.success(), "{}", stderr(&first));
    let kept = fs_err::read_to_string(workspace.path("checkpoints/tiny/import/chat_template_date.txt")).unwrap();
    assert_eq!(kept.trim(), "2024-10-04");
    let again = run("20001");
    assert!(stderr(&again).contains("simulate: up to date"), "{}", stderr(&again));
    // Sampled again on another day, from the same base: the same responses.
    let samples = || fs_err::read(workspace.path("checkpoints/tiny/simulate/samples.parquet")).unwrap();
    let before = samples();
    let forced = workspace.run(&["--until", "simulate", "--force", "simulate"]).output().unwrap();
    assert!(forced.status.success(), "{}", stderr(&forced));
    assert!(samples() == before);
}

#[test]
fn issue_22_8_a_dry_run_takes_no_lock_and_changes_nothing() {
    let workspace = Workspace::new();
    let (code, text) = said(&workspace, &["--dry-run"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(!workspace.path("checkpoints").exists(), "a dry run makes no folder");
    assert_eq!(said(&workspace, &["--until", "import"]).0, Some(0));
    let held = run::Lock::take(&workspace.path("checkpoints/tiny/.lock")).unwrap();
    let (code, text) = said(&workspace, &["--dry-run"]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = said(&workspace, &["--until", "import"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("another run is working here"), "{text}");
    drop(held);
}

#[test]
fn one_key_has_one_giver_and_an_axis_never_leads_out_of_its_folder() {
    let workspace = Workspace::new();
    let text = fs_err::read_to_string(workspace.path("pipelines/tiny.toml")).unwrap();
    let with = |matrix: &str| {
        fs_err::write(workspace.path("pipelines/tiny.toml"), format!("{text}[matrix]\n{matrix}\n")).unwrap();
    };
    with("\"reward.seed\" = [1, 2]");
    let (code, text) = said(&workspace, &["--set", "reward.seed=3"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("found it in --set reward.seed and in [matrix], `reward.seed`"), "{text}");
    let (code, text) = said(&workspace, &["--set", "seed=3", "--seed", "4"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("setting `seed`: expected a value once"), "{text}");
    with("\"reward.seed\" = []");
    assert!(said(&workspace, &[]).1.contains("found an empty list"));

    with("\"import.folder\" = [\"../model\", \"../model/../model\"]");
    assert_eq!(said(&workspace, &["--until", "import"]).0, Some(0));
    let folders: Vec<String> = fs_err::read_dir(workspace.path("checkpoints/tiny"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("import"))
        .collect();
    assert_eq!(folders.len(), 2, "{folders:?}");
    assert!(folders.iter().all(|name| name.contains("%2F")), "{folders:?}");
    // Forced in every cell.
    let (_, text) = said(&workspace, &["--until", "import", "--force", "import"]);
    assert_eq!(text.matches("running (forced)").count(), 2, "{text}");
}

#[test]
fn results_go_where_checkpoints_says_and_an_older_pipeline_still_runs() {
    let workspace = Workspace::new();
    let elsewhere = workspace.path("elsewhere");
    let (code, text) = said(&workspace, &["--until", "import", "--checkpoints", elsewhere.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{text}");
    assert!(elsewhere.join("tiny/import/manifest.json").exists());
    assert!(!workspace.path("checkpoints").exists());
    // Paths from the project's folder, and `config` for `include`.
    workspace.edit("pipelines/tiny.toml", "include = \"../configs/", "config = \"configs/");
    workspace.edit("configs/import.toml", "../model", "model");
    let (code, text) = said(&workspace, &["--until", "import"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("`model` was not found from there; taken from the project"), "{text}");
    // The project may move: nothing runs again.
    let moved = workspace.path("moved");
    for part in ["pipelines", "configs", "model", "checkpoints"] {
        crate::house::copy(&workspace.path(part), &moved.join(part));
    }
    for file in ["prompts.toml", "card.toml"] {
        fs_err::copy(workspace.path(file), moved.join(file)).unwrap();
    }
    let mut command = program();
    command.arg("run").arg(moved.join("pipelines/tiny.toml")).args([
        "--threads",
        "1",
        "--dtype",
        "float32",
        "--until",
        "import",
    ]);
    let output = command.output().unwrap();
    assert!(stderr(&output).contains("import: up to date"), "{}", stderr(&output));
}

#[test]
fn a_stages_settings_are_printed_with_what_is_said_of_them_and_run_as_they_are_printed() {
    for kind in ["simulate", "data", "sft", "reward", "pairs", "dpo", "ppo", "evaluate", "export", "import"] {
        let output = program().args(["config", kind]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("# "), "{kind}: {text}");
        let table: toml::Table = toml::from_str(&text).unwrap_or_else(|e| panic!("{kind}: {e}\n{text}"));
        assert_eq!(table["stage"].as_array().unwrap()[0]["kind"].as_str(), Some(kind));
        let output = program().args(["config", kind, "--json-schema"]).output().unwrap();
        let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(schema["$schema"].is_string(), "{kind}");
    }
    let text = String::from_utf8(program().args(["config", "dpo"]).output().unwrap().stdout).unwrap();
    let beta = "# How far the policy may move from the base: the margin's scale.\nbeta = 0.1\n";
    assert!(text.contains(beta), "{text}");
    let error = program().args(["config", "dpoo"]).output().unwrap();
    assert_eq!(error.status.code(), Some(2));
    assert!(stderr(&error).contains("found `dpoo`"), "{}", stderr(&error));
}
