//! A model with reward features serves people who come later: `idiolect ask` in a terminal, `adapt`, `reward rank`.

use std::path::PathBuf;

use assert_cmd::Command;
use serde_json::{Value, json};

use crate::tiny::{Workspace, program, repository, stderr};

/// A workspace whose reward model has features, fitted.
fn fitted() -> Workspace {
    let workspace = Workspace::new();
    workspace.edit("configs/reward.toml", "variant = \"p-share-lora\"", "variant = \"rfm\"\nfeatures = 4");
    workspace.run(&["--until", "reward"]).assert().success();
    workspace
}

/// `idiolect WORDS` on the workspace's model.
fn serve(workspace: &Workspace, words: &[&str]) -> Command {
    let mut command = program();
    command.args(words).arg("--model").arg(workspace.path("checkpoints/tiny/reward"));
    command.arg("--base").arg(workspace.path("checkpoints/tiny/import"));
    command.args(["--threads", "1", "--dtype", "float32"]);
    command
}

fn text(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

/// Everything in the model's folder but what serving adds.
fn fitted_files(workspace: &Workspace) -> Vec<(PathBuf, String)> {
    let folder = workspace.path("checkpoints/tiny/reward");
    let mut files: Vec<PathBuf> =
        folder.read_dir().unwrap().map(|f| f.unwrap().path()).filter(|f| f.is_file()).collect();
    files.retain(|f| !f.ends_with("features.safetensors"));
    files.sort();
    files.into_iter().map(|f| (f.clone(), run::hash_file(&f).unwrap())).collect()
}

#[test]
fn asked_in_a_terminal_ingested_and_adapted() {
    let workspace = fitted();
    let before = fitted_files(&workspace);
    assert!(before.iter().any(|(f, _)| f.ends_with("people.safetensors")));
    let pairs = workspace.path("checkpoints/tiny/data/votes.parquet");
    let out = workspace.path("cleo.parquet");
    let ask = |answers: &str| {
        let mut command = Command::new("python3");
        command.arg(repository().join("tests/in_a_terminal.py")).arg(answers).arg(env!("CARGO_BIN_EXE_idiolect"));
        command.args(["ask", "--user", "cleo", "--least-gain", "0", "--most", "6"]);
        command.arg("--pairs").arg(&pairs).arg("--out").arg(&out);
        command.arg("--model").arg(workspace.path("checkpoints/tiny/reward"));
        command.arg("--base").arg(workspace.path("checkpoints/tiny/import"));
        command.args(["--threads", "1", "--dtype", "float32"]);
        let output = command.output().unwrap();
        let screen = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{screen}");
        screen
    };
    // A slip is asked again, a skipped pair is not a vote; leaving keeps what was said.
    let screen = ask("1x2=sq");
    assert!(screen.contains("expected 1, 2, =, s or q, found `x`"), "{screen}");
    assert!(screen.contains("you left; 3 answered, 1 skipped; 3 votes in"), "{screen}");
    let votes = data::read_votes(&out).unwrap();
    assert_eq!(
        votes.iter().map(|v| (v.tie, v.chosen_first)).collect::<Vec<_>>(),
        [(false, Some(true)), (false, Some(false)), (true, Some(true))]
    );
    // The same command goes on, and does not ask a pair again.
    let screen = ask("1111111");
    assert!(screen.contains("3 votes of cleo so far") && screen.contains("6 questions were answered"), "{screen}");
    let votes = data::read_votes(&out).unwrap();
    let mut distinct: Vec<_> = votes
        .iter()
        .map(|v| {
            let mut pair = [v.chosen.clone(), v.rejected.clone()];
            pair.sort();
            (v.prompt[0].content.clone(), v.prompt.last().unwrap().content.clone(), pair)
        })
        .collect();
    distinct.sort();
    distinct.dedup();
    assert_eq!((votes.len(), distinct.len()), (9, 9));

    // They are ordinary votes.
    let ingested = workspace.path("ingested.parquet");
    let mut command = program();
    command.args(["data", "ingest"]).arg(&out).arg("--out").arg(&ingested);
    let selection = "min_votes = 0\nsplit = { by = \"column\" }\nstrict = false";
    let output = command.args(["--selection", selection]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let back = data::read_votes(&ingested).unwrap();
    let told = |v: &data::Vote| data::Vote { source_row: String::new(), ..v.clone() };
    assert_eq!(back.iter().map(told).collect::<Vec<_>>(), votes.iter().map(told).collect::<Vec<_>>());

    // Adapted without a step, and nobody else is touched.
    let adapt = |words: &[&str]| {
        serve(&workspace, &["adapt", "--user", "cleo", "--votes", text(&out)]).args(words).output().unwrap()
    };
    let output = adapt(&[]);
    assert!(output.status.success() && stderr(&output).contains("9 votes, 1 of them ties"), "{}", stderr(&output));
    assert!(stderr(&output).contains("0 texts read"), "what was asked is known: {}", stderr(&output));
    let kept: Value = run::read_json(&workspace.path("checkpoints/tiny/reward/adapted/cleo.json")).unwrap();
    assert_eq!((kept["votes"].as_u64(), kept["held_out_accuracy"].is_null()), (Some(9), true));
    assert_eq!(fitted_files(&workspace), before);
    let again = adapt(&[]);
    assert_eq!(again.status.code(), Some(2));
    assert!(stderr(&again).contains("hint: --replace"), "{}", stderr(&again));
    assert!(adapt(&["--replace"]).status.success());
    // The stage is still up to date.
    let output = workspace.run(&["--until", "reward"]).output().unwrap();
    assert!(stderr(&output).contains("reward: up to date"), "{}", stderr(&output));
}

#[test]
fn many_votes_show_an_accuracy_and_wrong_input_is_told() {
    let workspace = fitted();
    let votes = data::read_votes(&workspace.path("checkpoints/tiny/data/votes.parquet")).unwrap();
    let ann: Vec<data::Vote> =
        votes.into_iter().filter(|v| v.user_id == "ann").map(|v| data::Vote { user_id: "Ann/2".into(), ..v }).collect();
    let file = workspace.path("ann2.parquet");
    data::write_votes(&file, &ann).unwrap();
    let output = serve(&workspace, &["adapt", "--user", "Ann/2", "--votes", text(&file)]).output().unwrap();
    assert!(output.status.success() && stderr(&output).contains("held out, 5 folds: 0."), "{}", stderr(&output));
    let adapted = workspace.path("checkpoints/tiny/reward/adapted");
    assert_eq!(adapted.read_dir().unwrap().count(), 1);

    let refused = |words: &[&str], said: &str| {
        let output = serve(&workspace, words).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(said) && stderr(&output).contains("hint: "), "{}", stderr(&output));
    };
    refused(&["adapt", "--user", "nobody", "--votes", text(&file)], "found 46 votes of others");
    let out = workspace.path("x.parquet");
    let ask = ["ask", "--user", "x", "--pairs", text(&file), "--out", text(&out)];
    refused(&[&ask[..], &["--criterion", "luck"]].concat(), "expected information or determinant");
    assert!(!out.exists());
    // Another model's taste is not taken for this one's.
    fs_err::write(
        workspace.path("answers.jsonl"),
        format!("{}\n", json!({"prompt": "what is 1?", "answers": ["you can", "rain", "it is"]})),
    )
    .unwrap();
    let kept = adapted.read_dir().unwrap().next().unwrap().unwrap().path();
    let mut other: Value = run::read_json(&kept).unwrap();
    other["model"] = json!("00");
    let whole = fs_err::read(&kept).unwrap();
    run::write_json(&kept, &other).unwrap();
    let (answers, ranked) = (workspace.path("answers.jsonl"), workspace.path("ranked.jsonl"));
    let rank = ["reward", "rank", "--user", "Ann/2", "--answers", text(&answers), "--out", text(&ranked)];
    refused(&rank, "found another model's");
    fs_err::write(&kept, whole).unwrap();
    refused(
        &["reward", "rank", "--user", "stranger", "--answers", text(&answers), "--out", text(&ranked)],
        "a user whom the reward model knows",
    );
    assert!(!ranked.exists());
    // Ranked for the new user; caution can only lower what is counted.
    let output = serve(&workspace, &rank).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let line: Value = serde_json::from_str(&fs_err::read_to_string(&ranked).unwrap()).unwrap();
    let numbers = |key: &str| line[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<f64>>();
    let (rewards, errors, best) = (numbers("rewards"), numbers("errors"), line["best"].as_u64().unwrap() as usize);
    assert!(rewards.len() == 3 && errors.iter().all(|e| *e > 0.0));
    assert!(rewards.iter().all(|r| *r <= rewards[best]));
    fs_err::remove_file(&ranked).unwrap();
    refused(&[&rank[..], &["--zeta", "1"]].concat(), "--zeta: expected a model without reward features");
    fs_err::write(workspace.path("answers.jsonl"), "{\"prompt\": 3}\n").unwrap();
    refused(&rank, "answers.jsonl, line 1");
}

#[test]
fn any_reward_model_ranks_beside_another() {
    let workspace = Workspace::new();
    workspace.run(&["--until", "reward"]).assert().success();
    let (answers, ranked) = (workspace.path("answers.jsonl"), workspace.path("ranked.jsonl"));
    let lines: Vec<String> = (0..6)
        .map(|i| {
            json!({"prompt": format!("what is {i}?"), "answers": ["you can", "rain, rain", "it is", "i would"]})
                .to_string()
        })
        .collect();
    fs_err::write(&answers, lines.join("\n")).unwrap();
    let model = workspace.path("checkpoints/tiny/reward/reward.safetensors");
    let mut rank =
        serve(&workspace, &["reward", "rank", "--user", "ann", "--answers", text(&answers), "--out", text(&ranked)]);
    let output = rank.args(["--zeta", "0.25", "--caution", "1", "--beside", text(&model)]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("6 prompts for ann") && said.contains("wins"), "{said}");
    let text = fs_err::read_to_string(&ranked).unwrap();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let of = |key: &str, i: usize| line[key][i].as_f64().unwrap();
        let best = line["best"].as_u64().unwrap() as usize;
        let careful = |i: usize| of("rewards", i) - of("errors", i);
        assert!((0..4).all(|i| of("errors", i) > 0.0 && careful(i) <= careful(best)));
        // The same model without caution picks the highest reward.
        let beside = line["beside"].as_u64().unwrap() as usize;
        assert!((0..4).all(|i| of("rewards", i) <= of("rewards", beside) + 1e-6));
    }
    // Without --zeta the ball's radius is its formula's: the same errors but for one factor.
    let careful = |model: &std::path::Path, out: &std::path::Path| {
        let mut rank = program();
        rank.args(["reward", "rank", "--user", "ann", "--caution", "1", "--threads", "1", "--dtype", "float32"]);
        rank.arg("--answers").arg(&answers).arg("--out").arg(out).arg("--model").arg(model);
        rank.arg("--base").arg(workspace.path("checkpoints/tiny/import")).output().unwrap()
    };
    let by_formula = workspace.path("by-formula.jsonl");
    assert!(careful(model.parent().unwrap(), &by_formula).status.success());
    let by_formula = fs_err::read_to_string(&by_formula).unwrap();
    let factors: Vec<f64> = text
        .lines()
        .zip(by_formula.lines())
        .flat_map(|(given, own)| {
            let [given, own]: [Value; 2] = [given, own].map(|line| serde_json::from_str(line).unwrap());
            (0..4).map(move |i| own["errors"][i].as_f64().unwrap() / given["errors"][i].as_f64().unwrap())
        })
        .collect();
    assert!(factors.len() == 24 && factors[0] > 0.0, "{factors:?}");
    assert!(factors.iter().all(|f| (f / factors[0] - 1.0).abs() < 1e-3), "{factors:?}");
    let lm = lm::Lm::load(
        &workspace.path("checkpoints/tiny/import"),
        &device::Compute::new("cpu", "float32", Some(1)).unwrap(),
    );
    let fitted = reward::RewardModel::read(&model, &lm.unwrap()).unwrap();
    let votes = data::read_votes(&workspace.path("checkpoints/tiny/data/votes.parquet")).unwrap();
    let decided = votes.iter().filter(|v| v.split == data::Split::Train && !v.tie).count() as f64;
    let zeta = reward::Errors::ball(&fitted, decided / fitted.users.len() as f64).unwrap();
    assert!((0.25 * factors[0].powi(2) / zeta - 1.0).abs() < 1e-3, "{} for {zeta}", factors[0]);
    // Votes that nobody counted are not guessed.
    let bare = workspace.path("bare");
    fs_err::create_dir(&bare).unwrap();
    fs_err::copy(&model, bare.join("reward.safetensors")).unwrap();
    let refused = careful(&bare, &workspace.path("none.jsonl"));
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("expected fit.votes") && stderr(&refused).contains("--zeta"));
}

#[test]
fn policies_of_features_become_everybodys_without_training() {
    let workspace = Workspace::new().with_ppo();
    workspace.edit("configs/reward.toml", "variant = \"p-share-lora\"", "variant = \"rfm\"\nfeatures = 4");
    workspace.edit("configs/ppo.toml", "steps = 7", "whose = { features = {} }\nsteps = 3");
    workspace.run(&[]).assert().success();
    let folder = workspace.path("checkpoints/tiny");
    let combine = |out: &str, more: &[&str]| {
        let mut command = program();
        command.args(["policy", "combine", "--dtype", "float32", "--threads", "1"]).args(more);
        command.arg("--basis").arg(folder.join("ppo")).arg("--reward").arg(folder.join("reward"));
        command.arg("--model").arg(folder.join("import")).arg("--out").arg(workspace.path(out));
        command.output().unwrap()
    };
    let exact = combine("exact", &[]);
    assert!(exact.status.success(), "{}", stderr(&exact));
    let weights: std::collections::BTreeMap<String, Vec<f64>> =
        run::read_json(&workspace.path("exact/weights.json")).unwrap();
    assert!(weights.values().all(|w| (w.iter().map(|c| c * c).sum::<f64>() - 1.0).abs() < 1e-9), "{weights:?}");

    let compute = device::Compute::new("cpu", "float32", Some(1)).unwrap();
    let lm = lm::Lm::load(&folder.join("import"), &compute).unwrap();
    let read = |folder: &std::path::Path| policy::Policies::read(&folder.join("policies.safetensors"), &lm).unwrap();
    let updates = |policies: &policy::Policies, user: usize| -> Vec<lm::Tensor> {
        let scale = policies.bank.config().lora.scale();
        policies.bank.of_user(lm::UserIndex(user)).iter().map(|f| f.up.matmul(&f.down) * scale).collect()
    };
    let far = |a: &[lm::Tensor], b: &[lm::Tensor]| {
        a.iter().zip(b).map(|(a, b)| (a - b).abs().max().double_value(&[])).fold(0.0, f64::max)
    };
    let basis = policy::Policies::read(&folder.join("ppo/basis.safetensors"), &lm).unwrap();
    let whole = read(&workspace.path("exact"));
    let of_stage = fs_err::read(folder.join("ppo/policies.safetensors")).unwrap();
    assert!(of_stage == fs_err::read(workspace.path("exact/policies.safetensors")).unwrap(), "the stage combines too");
    let judged: Value = run::read_json(&folder.join("evaluate/report.json")).unwrap();
    assert_eq!(judged["users"].as_object().unwrap().len(), whole.users.len());
    assert_eq!(basis.users, ["feature 1", "feature 2"], "as many features as users at most");
    for (u, user) in whole.users.iter().enumerate() {
        let mut want: Vec<lm::Tensor> = updates(&basis, 0).into_iter().map(|t| t * weights[user][0]).collect();
        want.iter_mut().zip(updates(&basis, 1)).for_each(|(sum, t)| *sum += t * weights[user][1]);
        assert!(want.iter().map(|t| t.abs().max().double_value(&[])).fold(0.0, f64::max) > 1e-4, "nothing was learnt");
        assert!(far(&updates(&whole, u), &want) < 1e-6, "{user}");
        // All of its rank is all of it; less is less.
        assert!(combine(&format!("four {u}"), &["--rank", "4", "--user", user]).status.success());
        assert!(combine(&format!("one {u}"), &["--rank", "1", "--user", user]).status.success());
        let [four, one] = ["four", "one"].map(|n| far(&updates(&read(&workspace.path(&format!("{n} {u}"))), 0), &want));
        assert!(four < 1e-5 && one > 10.0 * four, "{four} {one}");
    }
    // Read, judged and talked to like any other.
    fs_err::write(workspace.path("held.toml"), "prompts = [\"what is 11?\", \"what is 12?\"]").unwrap();
    let mut eval = program();
    eval.args(["policy", "eval", "--dtype", "float32", "--threads", "1", "--max-new-tokens", "6", "--truth"]);
    eval.arg(folder.join("simulate/truth.json")).arg("--model").arg(folder.join("import"));
    eval.arg("--policies").arg(workspace.path("exact")).arg("--prompts").arg(workspace.path("held.toml"));
    eval.arg("--out").arg(workspace.path("eval")).assert().success();
    let stranger = combine("stranger", &["--user", "eve"]);
    assert_eq!(stranger.status.code(), Some(2));
    assert!(stderr(&stranger).contains("a taste of `eve`") && !workspace.path("stranger").exists());
    let back = combine("back", &["--strength=-1"]);
    assert_eq!(back.status.code(), Some(2));
    assert!(stderr(&back).contains("--strength: expected a positive number") && !workspace.path("back").exists());
}

#[test]
fn a_feature_without_a_policy_ends_the_stage_by_name() {
    let workspace = Workspace::new().with_ppo();
    workspace.edit("configs/ppo.toml", "steps = 7", "whose = { features = { rank = 2 } }\nsteps = 7");
    let plain = workspace.run(&["--until", "ppo"]).output().unwrap();
    assert_eq!(plain.status.code(), Some(2));
    assert!(stderr(&plain).contains("found one without") && stderr(&plain).contains("hint: fit it with"));
    workspace.edit("configs/reward.toml", "variant = \"p-share-lora\"", "variant = \"rfm\"\nfeatures = 2");
    let far = ["--set", "ppo.user={ \"feature 2\" = { learning_rate = 3.0 } }", "--set", "ppo.max_kl=2.0"];
    let lost = workspace.run(&[&far[..], &["--until", "ppo"]].concat()).output().unwrap();
    assert_eq!(lost.status.code(), Some(2), "{}", stderr(&lost));
    assert!(stderr(&lost).contains("expected feature 1, feature 2, found feature 1"), "{}", stderr(&lost));
    assert!(stderr(&lost).contains("in quarantine: feature 2: "), "{}", stderr(&lost));
    assert!(!workspace.path("checkpoints/tiny/ppo/policies.safetensors").exists());
}
