//! Pipelines with a matrix: what cells share, and the tables that they end with.

use serde_json::Value;

use crate::tiny::{Workspace, program, stderr};

#[test]
fn a_matrix_shares_what_it_does_not_reach_and_ends_with_one_table() {
    let workspace = Workspace::new();
    let text = fs_err::read_to_string(workspace.path("pipelines/tiny.toml")).unwrap();
    let matrix = "[matrix]\n\"reward.variant\" = [\"p-share-lora\", \"lora-global\", \"lora-local\"]\n\"reward.seed\" = [1, 2]\n";
    fs_err::write(workspace.path("pipelines/tiny.toml"), text + matrix).unwrap();
    workspace.run(&["--until", "reward"]).assert().success();
    let folder = workspace.path("checkpoints/tiny");
    let results: Vec<Value> = run::read_json(&folder.join("results.json")).unwrap();
    assert_eq!(results.len(), 6);
    assert!(results.iter().all(|r| r["reward_test_accuracy"].is_f64()));
    assert!(folder.join("data/manifest.json").exists(), "one data folder for all cells");
    assert!(folder.join("reward@reward.seed=2,reward.variant=lora-local/reward.safetensors").exists());
}

#[test]
fn a_matrix_of_policies_ends_with_its_frontier() {
    let workspace = Workspace::new();
    let text = fs_err::read_to_string(workspace.path("pipelines/tiny.toml")).unwrap();
    fs_err::write(workspace.path("pipelines/tiny.toml"), text + "[matrix]\n\"dpo.beta\" = [0.05, 0.5]\n").unwrap();
    workspace.run(&["--until", "evaluate"]).assert().success();
    let folder = workspace.path("checkpoints/tiny");
    let results: Vec<Value> = run::read_json(&folder.join("results.json")).unwrap();
    let kl = |cell: usize| results[cell]["policy_users"]["ann"]["kl"].as_f64().unwrap();
    let table = fs_err::read_to_string(folder.join("results.md")).unwrap();
    assert!(table.contains(&format!("at {:.1}", kl(0))) && table.contains("nats an answer"), "{table}");
    let plot = fs_err::read_to_string(folder.join("frontier.svg")).unwrap();
    assert!(plot.contains("ann") && plot.matches("<circle").count() >= 4, "two cells of two users");
    assert!(!folder.join("comparison.md").exists(), "one reward model is not two methods");
}

#[test]
fn named_steps_folds_and_seeds_end_in_a_comparison_of_methods() {
    let workspace = Workspace::new();
    let text = fs_err::read_to_string(workspace.path("pipelines/tiny.toml")).unwrap();
    let matrix = "[variables]\nvotes = \"data.path\"\n[matrix]\n\"reward.seed\" = [1, 2]\n\"data.selection.split.test\" = [0, 1, 2]\nmethod = [\n\
                  { name = \"global\", set = { \"reward.variant\" = \"lora-global\" } },\n\
                  { name = \"local\", set = { \"reward.variant\" = \"lora-local\" } },\n\
                  { name = \"SI + swap\", set = { \"reward.swap\" = true, \"reward.phases\" = [{ factors = \"personal\", epochs = 2.0 }] } },\n]\n";
    fs_err::write(workspace.path("pipelines/tiny.toml"), text + matrix).unwrap();
    let missing = workspace.run(&["--until", "reward"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(2));
    assert!(stderr(&missing).contains("expected a value for the variable `votes`"), "{}", stderr(&missing));

    // Votes of another run as a file of one's own.
    let source = Workspace::new();
    source.run(&["--until", "simulate"]).assert().success();
    let votes = source.path("checkpoints/tiny/simulate/votes.parquet");
    let split = "split = { by = \"folds\", over = \"prompt\", of = 3, test = 0 }";
    workspace.edit("configs/data.toml", "split = { by = \"column\" }", split);
    let given = format!("votes={}", votes.display());
    let output = workspace.run(&["--until", "reward", "--set", &given]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let comparison: Value = run::read_json(&workspace.path("checkpoints/tiny/comparison.json")).unwrap();
    let methods = comparison["methods"].as_array().unwrap();
    let names: Vec<&str> = methods.iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["global", "local", "SI + swap"]);
    // Every decided vote is tested in one fold, by two seeds.
    let report = |fold: usize| -> Value {
        let stage = format!("checkpoints/tiny/reward@data.selection.split.test={fold},method=global,reward.seed=1");
        run::read_json(&workspace.path(&stage).join("report.json")).unwrap()
    };
    let decided: u64 = (0..3).map(|fold| report(fold)["test"]["votes"].as_u64().unwrap()).sum();
    assert_eq!(comparison["votes"].as_u64(), Some(decided));
    assert!(methods.iter().all(|m| m["seeds"] == 2 && m["accuracy"]["mean"].is_f64()));
    assert!(methods[0].get("minus_global").is_none() && methods[2]["minus_local"]["low"].is_f64());
    assert!(methods[2]["swapped"].is_f64() && comparison["verdicts_of"] == "SI + swap");
    assert!(
        fs_err::read_to_string(workspace.path("checkpoints/tiny/comparison.md")).unwrap().contains("| SI + swap |")
    );

    let drawn = fs_err::read_to_string(workspace.path("checkpoints/tiny/comparison.svg")).unwrap();
    assert_eq!(drawn.matches("<circle").count(), 6, "two methods held against the first, three ways");

    // A saved model is judged alone as it was in its stage.
    let stage = workspace.path("checkpoints/tiny/reward@data.selection.split.test=1,method=local,reward.seed=2");
    let mut eval = program();
    eval.args(["reward", "eval", "--dtype", "float32", "--threads", "1", "--seed", "2", "--model"]);
    eval.arg(stage.join("reward.safetensors")).arg("--base").arg(workspace.path("checkpoints/tiny/import"));
    eval.arg("--votes").arg(workspace.path("checkpoints/tiny/data@data.selection.split.test=1/votes.parquet"));
    eval.arg("--json").arg(workspace.path("eval.json")).arg("--reliability").arg(workspace.path("reliability.svg"));
    let printed = eval.assert().success();
    let printed = String::from_utf8_lossy(&printed.get_output().stdout).into_owned();
    assert!(printed.contains("| accuracy, mean over users |"), "{printed}");
    let alone: Value = run::read_json(&workspace.path("eval.json")).unwrap();
    let there: Value = run::read_json(&stage.join("report.json")).unwrap();
    assert_eq!(alone["users"], there["test"]["users"]);
    assert_eq!(alone["accuracy"], there["test"]["accuracy"]);
    let drawn = fs_err::read_to_string(workspace.path("reliability.svg")).unwrap();
    assert_eq!(drawn.matches("<circle").count(), alone["calibration"]["bins"].as_array().unwrap().len());
    assert!(fs_err::read_to_string(stage.join("reliability.svg")).unwrap().contains("test, ECE"));
    let again = eval.output().unwrap();
    assert!(again.status.code() == Some(2) && stderr(&again).contains("expected a new file"), "{}", stderr(&again));
}

#[test]
fn a_cell_that_diverges_does_not_end_the_others() {
    let workspace = Workspace::new();
    let text = fs_err::read_to_string(workspace.path("pipelines/tiny.toml")).unwrap();
    let matrix = "[matrix]\nmethod = [\n{ name = \"global\", set = { \"reward.variant\" = \"lora-global\" } },\n\
                  { name = \"wild\", set = { \"reward.optimizer.learning_rate\" = 1e30 } },\n\
                  { name = \"WU\", set = { \"reward.variant\" = \"p-share-lora\" } },\n]\n";
    fs_err::write(workspace.path("pipelines/tiny.toml"), text + matrix).unwrap();
    let output = workspace.run(&["--until", "reward"]).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("warning: finished, except: [method=wild]: reward, step"), "{said}");
    assert!(said.contains("hint: lower the learning rate") && said.contains("no result: wild"), "{said}");
    let comparison: Value = run::read_json(&workspace.path("checkpoints/tiny/comparison.json")).unwrap();
    let names: Vec<&Value> = comparison["methods"].as_array().unwrap().iter().map(|m| &m["name"]).collect();
    assert_eq!(names, ["global", "WU"]);
}

#[test]
fn a_fine_tuned_base_that_diverges_does_not_end_the_other_cell() {
    let workspace = Workspace::new().with_sft();
    let text = fs_err::read_to_string(workspace.path("pipelines/tiny.toml")).unwrap();
    let matrix = "[matrix]\n\"sft.optimizer.learning_rate\" = [1e38, 1e-3]\n";
    fs_err::write(workspace.path("pipelines/tiny.toml"), text + matrix).unwrap();
    let output = workspace.run(&["--until", "sft"]).output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("warning: finished, except: [sft.optimizer"), "{said}");
    let results: Vec<Value> = run::read_json(&workspace.path("checkpoints/tiny/results.json")).unwrap();
    assert_eq!(results.len(), 1, "{results:?}");
    assert!(workspace.path("checkpoints/tiny/sft@sft.optimizer.learning_rate=0.001/manifest.json").exists());
}
