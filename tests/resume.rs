//! The program dies behind a checkpoint; the same command goes on and ends with the same bytes.

use crate::house::copy;
use crate::tiny::{Workspace, stderr};

#[test]
#[cfg_attr(not(feature = "kill-points"), ignore = "needs --features idiolect/kill-points")]
fn a_run_killed_in_every_stage_that_checkpoints_ends_with_the_same_bytes() {
    let undisturbed = Workspace::new().with_sft();
    undisturbed.run(&[]).assert().success();

    let killed = Workspace::new().with_sft();
    // In the reward stage: during the warm-up, at its end, and behind it. In dpo: behind the reference, and twice later.
    let points = [
        "simulate:1",
        "simulate:3",
        "sft:1",
        "sft:2",
        "reward:1",
        "reward:1",
        "reward:2",
        "pairs:1",
        "pairs:2",
        "dpo:1",
        "dpo:1",
        "dpo:2",
        "evaluate:1",
        "evaluate:2",
    ];
    for point in points {
        let output = killed.run(&[]).env("IDIOLECT_ABORT_AFTER", point).output().unwrap();
        assert!(!output.status.success(), "no checkpoint {point}: {}", stderr(&output));
        assert!(stderr(&output).contains("aborting after checkpoint"), "{}", stderr(&output));
        let stage = point.split(':').next().unwrap();
        assert!(!killed.path("checkpoints/tiny").join(stage).exists(), "no half-written {stage}");
    }
    let output = killed.run(&[]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("evaluate: running (an interrupted run goes on)"), "{}", stderr(&output));
    assert_eq!(killed.hashes(), undisturbed.hashes());
    for file in [
        "sft/model.safetensors",
        "reward/reward.safetensors",
        "evaluate/report.json",
        "evaluate/answers.parquet",
        "pairs/pairs.parquet",
    ] {
        let bytes = |w: &Workspace| fs_err::read(w.path("checkpoints/tiny").join(file)).unwrap();
        assert!(bytes(&killed) == bytes(&undisturbed), "{file}");
    }
    // Every step is in the log once.
    for stage in ["reward", "dpo"] {
        let steps = |w: &Workspace| -> Vec<u64> {
            let text = fs_err::read_to_string(w.path("checkpoints/tiny").join(stage).join("metrics.jsonl")).unwrap();
            text.lines()
                .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["step"].as_u64().unwrap())
                .collect()
        };
        assert_eq!(steps(&killed), steps(&undisturbed));
        assert_eq!(steps(&killed), (0..steps(&killed).len() as u64).collect::<Vec<_>>());
    }
}

#[test]
#[cfg_attr(not(feature = "kill-points"), ignore = "needs --features idiolect/kill-points")]
fn a_reward_model_with_everything_on_resumes_to_the_same_bytes() {
    let workspace = || {
        let workspace = Workspace::new();
        let phases = "phases = [{ factors = \"global\", epochs = 0.5 }, { factors = \"personal\", epochs = 0.8 }, \
                      { factors = \"personal\", epochs = 0.7, train = [\"down\", \"head\"] }]";
        let before = "phases = [{ factors = \"global\", epochs = 0.6 }, { factors = \"personal\", epochs = 1.4 }]";
        workspace.edit("configs/reward.toml", before, phases);
        let more = "early_stopping = { every_steps = 3, patience = 20 }\nswap = true\n[objective]\nties = \"davidson\"\n\
                    lapse = { per_user = 0.05 }\nshrinkage = 3.0\nweighting = \"by-user\"\n[lora]";
        workspace.edit("configs/reward.toml", "[lora]", more);
        workspace
    };
    // Where factors and frozen states lie decides nothing.
    let (undisturbed, killed) = (workspace(), workspace());
    killed.edit(
        "configs/reward.toml",
        "swap = true",
        "swap = true\npersonal_factors = \"disk\"\nfrozen_states = \"disk\"",
    );
    undisturbed.run(&["--until", "reward"]).assert().success();
    let report: serde_json::Value = run::read_json(&undisturbed.path("checkpoints/tiny/reward/report.json")).unwrap();
    let steps = report["fit"]["steps"].as_u64().unwrap();
    assert!(steps >= 12 && report["fit"]["best_step"].is_u64() && report["test"]["swapped"].is_f64(), "{report}");
    // Checkpoints come every two steps; the model dies behind every one of them.
    for _ in 0..(steps - 1) / 2 {
        let output = killed.run(&["--until", "reward"]).env("IDIOLECT_ABORT_AFTER", "reward:1").output().unwrap();
        assert!(stderr(&output).contains("aborting after checkpoint"), "{}", stderr(&output));
    }
    killed.run(&["--until", "reward"]).assert().success();
    for file in ["reward.safetensors", "report.json", "predictions-test.parquet", "metrics.jsonl"] {
        let bytes = |w: &Workspace| fs_err::read(w.path("checkpoints/tiny/reward").join(file)).unwrap();
        assert!(bytes(&killed) == bytes(&undisturbed), "{file}");
    }
    assert!(!killed.path("checkpoints/tiny/reward/factors").exists());
    assert!(killed.path("checkpoints/tiny/frozen-states").read_dir().unwrap().count() > 0);
    assert!(!undisturbed.path("checkpoints/tiny/frozen-states").exists());
}

#[test]
#[cfg_attr(not(feature = "kill-points"), ignore = "needs --features idiolect/kill-points")]
fn ppo_killed_behind_every_checkpoint_ends_with_the_same_bytes_and_a_cold_optimiser_does_not() {
    let (undisturbed, killed) = (Workspace::new().with_ppo(), Workspace::new().with_ppo());
    undisturbed.run(&[]).assert().success();
    // The scale of rewards is the first; then one behind every second of seven rounds.
    for n in 0..4 {
        let output = killed.run(&[]).env("IDIOLECT_ABORT_AFTER", "ppo:1").output().unwrap();
        assert!(stderr(&output).contains("aborting after checkpoint"), "{n}: {}", stderr(&output));
    }
    let state = killed.path("checkpoints/tiny/ppo.partial/state");
    let cold = Workspace::new().with_ppo();
    fs_err::remove_dir_all(cold.path("checkpoints")).ok();
    copy(&killed.path("checkpoints"), &cold.path("checkpoints"));
    killed.run(&[]).assert().success();
    let bytes = |w: &Workspace, file: &str| fs_err::read(w.path("checkpoints/tiny").join(file)).unwrap();
    for file in [
        "ppo/policies.safetensors",
        "ppo/rollouts.parquet",
        "ppo/report.json",
        "ppo/metrics.jsonl",
        "evaluate/curve.json",
    ] {
        assert!(bytes(&killed, file) == bytes(&undisturbed, file), "{file}");
    }
    assert_eq!(killed.hashes(), undisturbed.hashes());
    assert!(!state.exists());

    // The same state, but for the optimiser's moments.
    let file = cold.path("checkpoints/tiny/ppo.partial/state/policy-6.safetensors");
    let emptied: Vec<(String, lm::Tensor)> =
        lm::Tensor::read_safetensors(&file)
            .unwrap()
            .into_iter()
            .map(|(name, t)| {
                if name.starts_with("value.") || name.starts_with("steps.") {
                    (name, t)
                } else {
                    (name, t.zeros_like())
                }
            })
            .collect();
    lm::write_tensors(&file, &emptied, None).unwrap();
    cold.run(&[]).assert().success();
    assert!(bytes(&cold, "ppo/policies.safetensors") != bytes(&undisturbed, "ppo/policies.safetensors"));
}

/// Runs the program and kills it behind so many seconds; false if it was through by then.
fn kill_after(workspace: &Workspace, seconds: f64) -> bool {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_idiolect"))
        .args(workspace.run(&[]).get_args())
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_secs_f64(seconds));
    if let Some(status) = child.try_wait().unwrap() {
        assert!(status.success(), "{status}");
        return false;
    }
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    true
}

#[test]
fn a_run_killed_twenty_times_at_random_moments_ends_with_the_same_bytes() {
    use rand::{Rng, SeedableRng};
    let undisturbed = Workspace::new().with_ppo().with_sft();
    let started = std::time::Instant::now();
    undisturbed.run(&[]).assert().success();
    let whole = started.elapsed().as_secs_f64();
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(11);
    // A run that is through before it was killed twenty times does not count: once more, with shorter lives.
    let mut share = 0.12;
    let killed = loop {
        let killed = Workspace::new().with_ppo().with_sft();
        if (0..20).all(|_| kill_after(&killed, 0.3 + whole * rng.random_range(0.0..share))) {
            break killed;
        }
        share /= 2.0;
        assert!(share > 0.01, "a run of {whole} s cannot be killed twenty times");
    };
    killed.run(&[]).assert().success();
    assert_eq!(killed.hashes(), undisturbed.hashes());
    for file in [
        "sft/model.safetensors",
        "reward/reward.safetensors",
        "ppo/policies.safetensors",
        "ppo/rollouts.parquet",
        "ppo/metrics.jsonl",
        "evaluate/report.json",
    ] {
        let bytes = |w: &Workspace| fs_err::read(w.path("checkpoints/tiny").join(file)).unwrap();
        assert!(bytes(&killed) == bytes(&undisturbed), "{file}");
    }
}

#[test]
fn two_runs_of_one_pipeline_do_not_meet() {
    let workspace = Workspace::new();
    let folder = workspace.path("checkpoints/tiny");
    fs_err::create_dir_all(&folder).unwrap();
    let lock = fs_err::File::create(folder.join(".lock")).unwrap();
    lock.file().try_lock().unwrap();
    let output = workspace.run(&[]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("another run is working here"), "{}", stderr(&output));
}
