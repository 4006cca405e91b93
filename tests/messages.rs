//! What the program says last, and its exit code: one message of every kind, as a snapshot.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use crate::tiny::{Workspace, stderr};

/// The last lines on stderr, from the first error or warning on, with this workspace's folder and decimal numbers blanked out.
fn last_words(workspace: &Workspace, output: &Output) -> String {
    let said = stderr(output);
    let start = ["error: ", "warning: finished"].iter().filter_map(|mark| said.find(mark)).min();
    let end = &said[start.unwrap_or_else(|| panic!("no message in: {said}"))..];
    let words = end.replace(&workspace.path("").display().to_string(), "[FOLDER]/");
    let words: Vec<String> = words.split_inclusive([' ', '\n', ';', ',']).map(blank_decimals).collect();
    format!("exit code {}\n{}", output.status.code().unwrap(), words.concat())
}

fn blank_decimals(word: &str) -> String {
    let number = word.trim_end_matches([' ', '\n', ';', ',']);
    let decimal = number.contains('.') && number.parse::<f64>().is_ok();
    if decimal { word.replace(number, "[N]") } else { word.to_owned() }
}

#[test]
fn a_typo_is_the_users() {
    let workspace = Workspace::new();
    let output = workspace.run(&["--set", "reward.epochs=3"]).output().unwrap();
    insta::assert_snapshot!(last_words(&workspace, &output));
}

#[test]
fn a_missing_pipeline_is_the_users() {
    let workspace = Workspace::new();
    let output = crate::tiny::program().arg("run").arg(workspace.path("pipelines/none.toml")).output().unwrap();
    insta::assert_snapshot!(last_words(&workspace, &output));
}

#[test]
fn a_filter_of_the_log_that_cannot_be_read_is_the_users() {
    let workspace = Workspace::new();
    let output = workspace.run(&["--dry-run"]).env("RUST_LOG", "policy=loud").output().unwrap();
    insta::assert_snapshot!(last_words(&workspace, &output));
}

#[test]
fn a_user_in_quarantine_is_named_and_the_rest_is_done() {
    let workspace = Workspace::new().with_ppo();
    let far = ["--set", "ppo.user={ \"Bo/../b\" = { learning_rate = 3.0 } }", "--set", "ppo.max_kl=2.0"];
    let output = workspace.run(&far).args(["--until", "ppo"]).output().unwrap();
    insta::assert_snapshot!(last_words(&workspace, &output));
}

/// The program with `checkpoints` on a file system of 96 KiB, in a mount namespace of its own.
fn on_a_small_disk(workspace: &Workspace) -> Command {
    let checkpoints = workspace.path("checkpoints");
    fs_err::create_dir_all(&checkpoints).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", "mount -t tmpfs -o size=96k small \"$0\" && exec \"$@\""]);
    command.arg(checkpoints);
    command
}

#[test]
fn a_full_disk_is_the_machines() {
    let workspace = Workspace::new();
    if !on_a_small_disk(&workspace).arg("true").status().is_ok_and(|s| s.success()) {
        eprintln!("SKIPPED: this machine allows no mount namespace, so no disk can be filled");
        return;
    }
    let mut command = on_a_small_disk(&workspace);
    command.arg(env!("CARGO_BIN_EXE_idiolect")).arg("run").arg(workspace.path("pipelines/tiny.toml"));
    let output = command.args(["--threads", "1", "--dtype", "float32"]).output().unwrap();
    insta::assert_snapshot!(last_words(&workspace, &output));
}

#[test]
fn a_file_beyond_the_allowed_size_is_the_machines() {
    let workspace = Workspace::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_idiolect"));
    command.arg("run").arg(workspace.path("pipelines/tiny.toml")).args(["--threads", "1", "--dtype", "float32"]);
    let limited = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$@\"", "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .process_group(0)
        .output()
        .unwrap();
    insta::assert_snapshot!(last_words(&workspace, &limited));
    assert!(!workspace.path("checkpoints/tiny/import").exists(), "nothing is half written");
}

#[test]
fn every_stage_keeps_a_log_and_json_lines_carry_spans() {
    let workspace = Workspace::new();
    let output =
        workspace.run(&["--until", "reward", "--log-format", "json"]).env("RUST_LOG", "debug").output().unwrap();
    let said = stderr(&output);
    assert!(output.status.success(), "{said}");
    let lines: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let in_a_step = lines.iter().find(|line| {
        let spans = line["spans"].as_array().map_or(&[][..], Vec::as_slice);
        let has = |key: &str, value: &str| spans.iter().any(|s| s[key] == value);
        has("pipeline", "tiny")
            && has("stage", "reward")
            && has("phase", "training")
            && spans.iter().any(|s| s["step"] == 0)
    });
    let metrics =
        in_a_step.unwrap_or_else(|| panic!("no line within a step: {said}"))["fields"]["message"].as_str().unwrap();
    assert!(metrics.contains("\"step\""), "{metrics}");
    for stage in ["import", "simulate", "data", "reward"] {
        let log = fs_err::read_to_string(workspace.path("checkpoints/tiny").join(stage).join("log.txt")).unwrap();
        assert!(log.contains(&format!("{stage}: done in ")), "{stage}: {log}");
    }
    let log = fs_err::read_to_string(workspace.path("checkpoints/tiny/reward/log.txt")).unwrap();
    assert!(log.contains("phase{phase=\"training\"}: step{step=0}: "), "{log}");
}
