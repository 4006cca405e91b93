//! Weights of votes: 0 counts nothing in any stage, a factor on all of a user's weights changes nothing, and light votes have small steps.

use std::collections::BTreeMap;

use data::{Split, Vote};
use policy::{DpoConfig, Scope, SftConfig};
use reward::{Factors, RewardConfig, Variant};
use serde_json::{Value, json};

use crate::bench::{Bench, count, lora, optimizer, votes};
use crate::reward::{phase, reward_config, users};
use crate::tiny::Workspace;

/// Both users' votes, and between them as many of weight 0 that say the opposite; those of `eve` all weigh 0.
fn with_votes_of_weight_0() -> Vec<Vote> {
    let opposite = |v: &Vote| Vote { chosen: v.rejected.clone(), rejected: v.chosen.clone(), weight: 0.0, ..v.clone() };
    let both = |v: Vote| [opposite(&v), Vote { user_id: "eve".into(), weight: 0.0, ..v.clone() }, v];
    votes().into_iter().flat_map(both).collect()
}

/// Weights that differ from vote to vote, times a factor of each user's own.
fn weighted(of_ann: f32, of_bob: f32) -> Vec<Vote> {
    let mut all = votes();
    for (n, vote) in all.iter_mut().enumerate() {
        let factor = if vote.user_id == "ann" { of_ann } else { of_bob };
        vote.weight = factor * [0.25, 1.0, 0.5][n % 3];
    }
    all
}

fn with_eve() -> Vec<String> {
    ["ann", "bob", "eve"].map(String::from).to_vec()
}

/// The bytes of the reward model that is fitted to `votes`, and of its preference weights; and what is said of each vote of `test`.
fn fitted(bench: &Bench, config: &RewardConfig, votes: &[Vote], who: &[String]) -> (Vec<u8>, String, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let identity = run::Identity::new("reward", 1, json!({}), 3);
    let mut run = run::Run::begin(&folder.path().join("r"), identity, run::Environment::new()).unwrap();
    let (mut model, report) = reward::fit(config, &bench.lm, &bench.tokenizer, votes, who, &mut run).unwrap();
    let mut tastes = String::new();
    if model.head.features.is_some() {
        let (with, people) = reward::taste_people(config, model, &bench.lm, &bench.tokenizer, votes).unwrap();
        (model, tastes) = (with, format!("{people:?}"));
    }
    let file = folder.path().join("reward.safetensors");
    model.write(&file, &bench.lm).unwrap();
    let scored = config.scored(Split::Test);
    let said = reward::predict(&model, &bench.lm, &bench.tokenizer, votes, &scored, |_, _| ()).unwrap();
    tastes += &format!("{:?}", said.votes);
    (fs_err::read(file).unwrap(), tastes, report.quarantined.into_values().collect())
}

#[test]
fn issue_23_votes_of_weight_0_count_nothing_in_reward_models() {
    let bench = Bench::new();
    let short = |variant| RewardConfig {
        phases: vec![phase(Factors::Global, 0.4), phase(Factors::Personal, 1.0)],
        ..reward_config(variant)
    };
    for variant in [Variant::PShareLora, Variant::LoraLocal, Variant::ShareRep, Variant::LoraGlobal] {
        let (without, said, _) = fitted(&bench, &short(variant), &votes(), &users());
        let (with, says, _) = fitted(&bench, &short(variant), &with_votes_of_weight_0(), &users());
        assert!(without == with && said == says, "{variant:?}");
    }
    let (_, _, quarantined) = fitted(&bench, &short(Variant::PShareLora), &with_votes_of_weight_0(), &with_eve());
    assert_eq!(quarantined, ["all 56 of the user's votes weigh 0"]);
    let features = RewardConfig { features: Some(count(2)), ..short(Variant::Rfm) };
    let (without, said, _) = fitted(&bench, &features, &votes(), &users());
    let (with, says, _) = fitted(&bench, &features, &with_votes_of_weight_0(), &users());
    assert!(without == with && said == says, "preference weights");
}

#[test]
fn issue_23_a_factor_on_all_of_a_users_weights_changes_nothing() {
    let bench = Bench::new();
    let phases = vec![phase(Factors::Global, 0.4), phase(Factors::Personal, 1.0)];
    // Preference weights over reward features are not among them: there a vote is evidence of its own weight.
    for variant in [Variant::PShareLora, Variant::LoraLocal] {
        let config = RewardConfig { phases: phases.clone(), ..reward_config(variant) };
        let (one, said, _) = fitted(&bench, &config, &weighted(1.0, 1.0), &users());
        let (other, says, _) = fitted(&bench, &config, &weighted(8.0, 0.25), &users());
        assert!(one == other && said == says, "{variant:?}");
        let (plain, _, _) = fitted(&bench, &config, &votes(), &users());
        assert!(one != plain, "{variant:?}: weights count");
    }
    let one = trained(&bench, &weighted(1.0, 1.0), &users(), "one");
    assert!(one == trained(&bench, &weighted(8.0, 0.25), &users(), "other"));
    assert!(one.iter().zip(trained(&bench, &votes(), &users(), "plain")).all(|(a, b)| *a.1 != b.1), "weights count");
}

fn sft(scope: Scope) -> SftConfig {
    SftConfig { scope, lora: lora(), optimizer: optimizer(2e-2), batch_answers: count(4), ..SftConfig::default() }
}

fn dpo() -> DpoConfig {
    DpoConfig { lora: lora(), optimizer: optimizer(2e-2), batch_pairs: count(3), ..DpoConfig::default() }
}

/// The bytes of what SFT and DPO make of `votes`, by name.
fn trained(bench: &Bench, votes: &[Vote], users: &[String], name: &str) -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    let mut keep = |what: &str, policies: &policy::Policies| {
        let file = bench.folder.path().join("policies.safetensors");
        policies.write(&file).unwrap();
        out.insert(what.to_owned(), fs_err::read(file).unwrap());
    };
    for scope in [Scope::Global, Scope::PerUser] {
        let mut run = bench.run("sft", &format!("{name} {scope:?}"));
        let (policies, report) =
            policy::train_sft(&sft(scope), &bench.lm, &bench.tokenizer, votes, users, &mut run).unwrap();
        keep(&format!("sft {scope:?}"), &policies);
        assert!(report.quarantined.keys().all(|user| user == "eve"), "{report:?}");
    }
    let pairs = policy::vote_pairs(votes);
    let mut run = bench.run("dpo", &format!("{name} dpo"));
    let (policies, _) = policy::train_dpo(&dpo(), &bench.lm, &bench.tokenizer, &pairs, users, None, &mut run).unwrap();
    keep("dpo", &policies);
    out
}

#[test]
fn issue_23_votes_of_weight_0_count_nothing_in_sft_and_dpo() {
    let bench = Bench::new();
    let without = trained(&bench, &votes(), &users(), "without");
    assert!(without == trained(&bench, &with_votes_of_weight_0(), &with_eve(), "with"));
    // Pairs of another hand: those of weight 0 are left out, and so is by name a user who has no others.
    let mut pairs = policy::vote_pairs(&votes());
    pairs.iter_mut().filter(|pair| pair.user == "bob").for_each(|pair| pair.weight = 0.0);
    let mut run = bench.run("dpo", "bob");
    let (policies, report) =
        policy::train_dpo(&dpo(), &bench.lm, &bench.tokenizer, &pairs, &users(), None, &mut run).unwrap();
    assert_eq!(policies.users, ["ann"]);
    assert_eq!(report.quarantined["bob"], "all 28 of the user's pairs weigh 0");
    assert_eq!(report.without_weight, 28);
}

#[test]
fn issue_23_a_pair_of_a_tenth_of_the_mean_weight_has_a_tenth_of_the_gradient() {
    let bench = Bench::new();
    // Steps that change nothing: every pair's gradient is that of the start.
    let config = DpoConfig { optimizer: optimizer(1e-30), batch_pairs: count(1), ..dpo() };
    let norms = |light: &[f32], name: &str| -> Vec<f64> {
        let mut pairs = policy::vote_pairs(&votes());
        pairs.retain(|pair| pair.user == "ann");
        pairs.iter_mut().zip(light.iter().cycle()).for_each(|(pair, weight)| pair.weight = *weight);
        let mut run = bench.run("dpo", name);
        policy::train_dpo(&config, &bench.lm, &bench.tokenizer, &pairs, &users()[..1], None, &mut run).unwrap();
        let log = fs_err::read_to_string(bench.folder.path().join(format!("{name}.partial/metrics.jsonl"))).unwrap();
        let norm = |line: &str| serde_json::from_str::<Value>(line).unwrap()["user/ann"]["grad_norm"].as_f64().unwrap();
        log.lines().map(norm).collect()
    };
    // A mean weight of 1: .1 and 1.9 by turns.
    let (equal, unequal) = (norms(&[1.0], "equal"), norms(&[0.1, 1.9], "unequal"));
    let shares: Vec<f64> = unequal.iter().zip(&equal).map(|(a, b)| a / b).collect();
    assert_eq!(shares.len(), 28);
    for (share, many) in [(0.1, 14), (1.9, 14)] {
        assert_eq!(shares.iter().filter(|s| (**s - share).abs() < 1e-3).count(), many, "{shares:?}");
    }
}

fn all_said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &crate::tiny::stderr(output)
}

/// Runs the pipeline on these rows of (user, prompt, chosen, rejected, weight), up to exported adapters. Gives the adapters' hashes, and what the
/// stage `data` says and reports.
fn exported(rows: &[(&str, String, String, String, f64)]) -> (BTreeMap<String, String>, Value, String) {
    let workspace = Workspace::new();
    let line = |(user, prompt, chosen, rejected, weight): &(&str, String, String, String, f64)| {
        json!({"user_id": user, "prompt": prompt, "chosen": chosen, "rejected": rejected, "confidence": weight})
            .to_string()
    };
    let write = |file: &str, text: &str| fs_err::write(workspace.path(file), text).unwrap();
    write("votes.jsonl", &rows.iter().map(line).collect::<Vec<_>>().join("\n"));
    write(
        "own-card.toml",
        "name = \"own\"\nsource = \"here\"\nlicence = \"none\"\n[layout]\nkind = \"pairs\"\nuser_id = \"user_id\"\nprompt = \"prompt\"\n\
         [columns]\nweight = \"confidence\"\n",
    );
    write(
        "configs/data.toml",
        "card = \"../own-card.toml\"\npath = \"../votes.jsonl\"\n[selection]\nmin_votes = 1\n\
         split = { by = \"prompt\", dev = 0.1, test = 0.2 }\nstrict = false\n",
    );
    write("configs/pairs.toml", "from = \"votes\"\n");
    let stages = ["import", "data", "reward", "sft", "pairs", "dpo", "export"]
        .map(|k| format!("[[stage]]\nkind = \"{k}\"\ninclude = \"../configs/{k}.toml\"\n"));
    write("pipelines/tiny.toml", &format!("name = \"tiny\"\nseed = 3\n{}", stages.concat()));
    let ended = workspace.run(&["--set", "export.merged=[]"]).assert().success();
    let said = all_said(ended.get_output());
    let report: Value = run::read_json(&workspace.path("checkpoints/tiny/data/report.json")).unwrap();
    let adapters = fs_err::read_dir(workspace.path("checkpoints/tiny/export/adapters")).unwrap();
    let hash = |folder: std::path::PathBuf| {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        (name, run::hash_file(&folder.join("adapter_model.safetensors")).unwrap())
    };
    (adapters.map(|entry| hash(entry.unwrap().path())).collect(), report, said)
}

#[test]
fn issue_23_a_pipeline_leaves_out_by_name_whoever_has_votes_of_weight_0_alone() {
    let user = |i: usize| ["ann", "bob", "cyd", "dan"][i % 4];
    let weight = |i: usize| match user(i) {
        "bob" => f64::from(u8::from((i / 4).is_multiple_of(2))),
        "cyd" => 0.5,
        "dan" => 0.0,
        _ => 1.0,
    };
    let row = |i| (user(i), format!("what is {i}?"), format!("it is {i} and good"), format!("no {i}"), weight(i));
    let all: Vec<_> = (0..80).map(row).collect();
    let counting: Vec<_> = all.iter().filter(|row| row.4 > 0.0).cloned().collect();
    let (with, report, said) = exported(&all);
    assert_eq!(with.keys().collect::<Vec<_>>(), ["ann", "bob", "cyd"]);
    assert!(said.contains("users left out because all of their votes weigh 0: dan 20"), "{said}");
    assert_eq!(report["users_without_weight"], json!({"dan": 20}));
    assert_eq!(report["dropped"]["weight 0"], 30, "{report}");
    let (without, report, said) = exported(&counting);
    assert!(report.get("users_without_weight").is_none() && !said.contains("weigh 0"), "{said}");
    assert_eq!(with, without, "the same adapters as without these votes");
}

/// Runs a pipeline with every learning rate at 0; gives what was said.
fn at_rate_0(workspace: &Workspace, configs: &[&str]) -> String {
    for config in configs {
        workspace.edit(&format!("configs/{config}.toml"), "learning_rate = 1e-2", "learning_rate = 0.0");
    }
    all_said(workspace.run(&[]).assert().success().get_output())
}

#[test]
fn issue_23_a_learning_rate_of_0_runs_to_the_end_and_says_that_nothing_moved() {
    let equal = "adapters that equal the base, since the policies did not move in training: all of them (2 of 2)";
    let by_pairs = Workspace::new().with_sft();
    by_pairs.edit("configs/sft.toml", "scope = \"global\"", "scope = \"per-user\"");
    by_pairs.edit("configs/dpo.toml", "start = \"base\"", "start = \"sft\"");
    let said = at_rate_0(&by_pairs, &["reward", "sft", "dpo"]);
    for stage in ["reward", "sft", "dpo"] {
        assert!(
            said.contains(&format!("{stage}: `optimizer.learning_rate` is 0, so nothing moves")),
            "{stage}: {said}"
        );
    }
    assert!(said.contains(equal), "{said}");
    let report: Value = run::read_json(&by_pairs.path("checkpoints/tiny/export/report.json")).unwrap();
    assert_eq!(report["users"]["ann"]["max_logit_difference_from_base"], 0.0);
    assert_eq!(report["equal_to_base"].as_array().unwrap().len(), 2);

    let online = Workspace::new().with_ppo();
    // Pessimism has nothing to go by: users' factors are still all the same.
    for config in ["reward", "ppo"] {
        online.edit(&format!("configs/{config}.toml"), "learning_rate = 1e-2", "learning_rate = 0.0");
    }
    let refused = online.run(&[]).assert().code(2);
    let said = crate::tiny::stderr(refused.get_output());
    assert!(
        said.contains("standard errors of rewards that `caution` takes off") && said.contains("hint: was the"),
        "{said}"
    );
    online.edit("configs/ppo.toml", "caution = 0.1", "caution = 0.0");
    let said = at_rate_0(&online, &[]);
    assert!(said.contains("ppo: `method.ppo.optimizer.learning_rate` is 0"), "{said}");
    assert!(said.contains(equal), "{said}");
}

#[test]
fn issue_23_a_user_whose_own_rate_is_0_keeps_the_base() {
    let workspace = Workspace::new();
    fs_err::write(workspace.path("configs/pairs.toml"), "from = \"votes\"\n").unwrap();
    let said = workspace.run(&["--set", "dpo.user.ann.learning_rate=0.0"]).assert().success();
    let said = all_said(said.get_output());
    assert!(said.contains("dpo: the own `learning_rate` of ann is 0"), "{said}");
    assert!(said.contains("did not move in training: ann (1 of 2)"), "{said}");
}
