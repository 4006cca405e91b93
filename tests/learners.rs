//! Reward model and DPO on the tiny model, through the libraries.

use std::collections::BTreeMap;
use std::num::NonZero;

use data::{Split, Vote};
use lm::{Activations, AdamWConfig, Blocks, Compute, InitBound, InitUsers, Lm, LoraConfig, Pooling, Schedule, Targets};
use policy::{DpoConfig, Pair};
use reward::{RewardConfig, Variant};
use run::{Identity, Run};
use text::{Answer, Message, Tokenizer};

use crate::tiny::write_model;

fn count(n: usize) -> NonZero<usize> {
    NonZero::new(n).unwrap()
}

struct Bench {
    folder: tempfile::TempDir,
    lm: Lm,
    tokenizer: Tokenizer,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_model(&folder.path().join("model"));
        let compute = Compute::new("cpu", "float32", Some(1)).unwrap();
        let lm = Lm::load(&folder.path().join("model"), &compute).unwrap();
        let tokenizer = Tokenizer::from_folder(&folder.path().join("model")).unwrap();
        Self { folder, lm, tokenizer }
    }

    fn run(&self, stage: &str, name: &str) -> Run {
        Run::begin(&self.folder.path().join(name), Identity::new(stage, 1, serde_json::json!({}), 3)).unwrap()
    }
}

fn optimizer(learning_rate: f64) -> AdamWConfig {
    AdamWConfig {
        learning_rate,
        schedule: Schedule::Linear,
        warmup_ratio: 0.1,
        weight_decay: 0.0,
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        max_grad_norm: 1.0,
    }
}

fn lora() -> LoraConfig {
    LoraConfig {
        rank: count(2),
        alpha: 4.0,
        use_rslora: false,
        dropout: 0.1,
        targets: Targets::Names(["q_proj", "v_proj", "down_proj"].map(String::from).to_vec()),
        blocks: Blocks::Last { last: count(2) },
        init_bound: InitBound::default(),
        init_users: InitUsers::Independent,
    }
}

/// Ann likes answers of `x`, Bob of `z`; train and test have other prompts and lengths.
fn votes() -> Vec<Vote> {
    let mut votes = Vec::new();
    for i in 0..40usize {
        let (x, z) = ("x".repeat(2 + i % 5), "z".repeat(2 + (i / 5) % 5));
        for (user, chosen, rejected) in [("ann", &x, &z), ("bob", &z, &x)] {
            votes.push(Vote {
                user_id: user.into(),
                prompt: vec![Message::user(format!("what is {i}?"))],
                chosen: chosen.clone(),
                rejected: rejected.clone(),
                tie: false,
                chosen_first: None,
                weight: 1.0,
                margin: None,
                timestamp: None,
                split: if i < 28 { Split::Train } else { Split::Test },
                source_row: format!("x:{i}"),
            });
        }
    }
    votes
}

fn reward_config(variant: Variant) -> RewardConfig {
    RewardConfig {
        variant,
        pooling: Pooling::Mean,
        head_scale: 1.0,
        lora: lora(),
        optimizer: optimizer(2e-2),
        batch_votes: count(8),
        max_epochs: count(6),
        token_budget: 1_000_000,
        warm_up_share: 0.2,
        max_row_tokens: 200,
        over_long: text::OverLong::Error,
        micro_batch_tokens: count(150),
        activations: Activations::Keep,
        save_every_steps: count(1000),
    }
}

#[test]
fn personal_models_learn_opposite_tastes_and_a_global_one_cannot() {
    let bench = Bench::new();
    let accuracy = |variant, name: &str| {
        let mut run = bench.run("reward", name);
        let config = reward_config(variant);
        let users = ["ann".to_owned(), "bob".to_owned()];
        let (model, report) = reward::fit(&config, &bench.lm, &bench.tokenizer, &votes(), &users, &mut run).unwrap();
        assert_eq!((report.votes, report.steps), (56, 42));
        let e = reward::evaluate(&model, &bench.lm, &bench.tokenizer, &votes(), Split::Test, &config, &run).unwrap();
        assert_eq!(e.users.iter().map(|u| u.votes).sum::<usize>(), 24);
        // A file gives back the same scores.
        let path = run.path("reward.safetensors");
        model.write(&path).unwrap();
        let back = reward::RewardModel::read(&path, &bench.lm).unwrap();
        let again = reward::evaluate(&back, &bench.lm, &bench.tokenizer, &votes(), Split::Test, &config, &run).unwrap();
        assert_eq!(e, again);
        e.mean_accuracy
    };
    // Every pair is judged both ways, once by each user: a model for all is right exactly half the time.
    assert!((accuracy(Variant::LoraGlobal, "global") - 0.5).abs() < 1e-9);
    for (variant, name) in [(Variant::PShareLora, "shared"), (Variant::LoraLocal, "local")] {
        let got = accuracy(variant, name);
        assert!(got > 0.9, "{name}: {got}");
    }
}

#[test]
fn a_vote_by_one_user_does_not_touch_the_others_personal_factors() {
    let bench = Bench::new();
    let mut run = bench.run("reward", "one");
    let users = ["ann".to_owned(), "bob".to_owned(), "cleo".to_owned()];
    let config = RewardConfig { warm_up_share: 0.0, ..reward_config(Variant::PShareLora) };
    let (model, _) = reward::fit(&config, &bench.lm, &bench.tokenizer, &votes(), &users, &mut run).unwrap();
    // Cleo never votes: her factors are as they were drawn, whatever happened to the others'.
    let config = RewardConfig { optimizer: optimizer(0.0), ..config };
    let mut run = bench.run("reward", "still");
    let (start, _) = reward::fit(&config, &bench.lm, &bench.tokenizer, &votes(), &users, &mut run).unwrap();
    for (user, moved) in [(0, true), (1, true), (2, false)] {
        let downs = model.bank.of_user(user).into_iter().zip(start.bank.of_user(user));
        let mut distance = 0.0f64;
        for (a, b) in downs {
            distance = distance.max((a.down - b.down).abs().max().double_value(&[]));
        }
        assert_eq!(distance > 0.0, moved, "user {user}: {distance}");
    }
}

fn pairs() -> Vec<Pair> {
    votes()
        .into_iter()
        .filter(|v| v.split == Split::Train)
        // Users with different numbers of pairs, so that one leaves the batch before the other.
        .filter(|v| v.user_id == "ann" || v.prompt[0].content.len() < 11)
        .map(|v| Pair {
            user: v.user_id,
            prompt: v.prompt,
            chosen: Answer { text: v.chosen, finished: true },
            rejected: Answer { text: v.rejected, finished: false },
        })
        .collect()
}

fn dpo_config() -> DpoConfig {
    DpoConfig {
        start: policy::Start::Base,
        lora: lora(),
        optimizer: optimizer(2e-2),
        beta: 0.1,
        batch_pairs: count(3),
        max_epochs: count(3),
        token_budget_per_user: 1_000_000,
        max_row_tokens: 200,
        over_long: text::OverLong::Error,
        micro_batch_tokens: count(150),
        activations: Activations::Keep,
        save_every_steps: count(1000),
    }
}

type Factors = BTreeMap<String, Vec<lm::Tensor>>;

fn train(bench: &Bench, users: &[&str], name: &str) -> (Factors, policy::DpoReport) {
    let mut run = bench.run("dpo", name);
    let users: Vec<String> = users.iter().map(|u| (*u).to_owned()).collect();
    let own: Vec<Pair> = pairs().into_iter().filter(|p| users.contains(&p.user)).collect();
    let (policies, report) =
        policy::train_dpo(&dpo_config(), &bench.lm, &bench.tokenizer, &own, &users, None, &mut run).unwrap();
    let factors = users
        .iter()
        .enumerate()
        .map(|(u, user)| (user.clone(), policies.bank.of_user(u).into_iter().flat_map(|f| [f.down, f.up]).collect()));
    (factors.collect(), report)
}

#[test]
fn users_trained_together_get_what_training_alone_gives() {
    let bench = Bench::new();
    let (together, report) = train(&bench, &["ann", "bob"], "both");
    assert_ne!(report.users["ann"].steps, report.users["bob"].steps);
    for user in ["ann", "bob"] {
        let (alone, own) = train(&bench, &[user], user);
        for (a, b) in together[user].iter().zip(&alone[user]) {
            let (distance, size) = ((a - b).abs().max().double_value(&[]), b.abs().max().double_value(&[]));
            assert!(size > 1e-3 && distance < 1e-5 * size.max(1.0), "{user}: {distance} of {size}");
        }
        assert!((own.users[user].final_loss - report.users[user].final_loss).abs() < 1e-4);
    }
}

#[test]
fn dpo_gets_better_repeats_exactly_and_starts_at_ln_2() {
    let bench = Bench::new();
    let (first, report) = train(&bench, &["ann"], "a");
    let (second, _) = train(&bench, &["ann"], "b");
    assert!(first["ann"].iter().zip(&second["ann"]).all(|(a, b)| a.equal(b)));
    let ann = &report.users["ann"];
    assert!(ann.final_loss < 0.4 && ann.final_accuracy > 0.9, "{ann:?}");
    let log = fs_err::read_to_string(bench.folder.path().join("a.partial/metrics.jsonl")).unwrap();
    let start: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    // The policy starts as the reference: every margin is 0.
    assert!((start["user/ann"]["loss"].as_f64().unwrap() - 2f64.ln()).abs() < 1e-6, "{start}");
}
