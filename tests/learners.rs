//! DPO on the tiny model, through the libraries.

use std::collections::BTreeMap;

use data::Split;
use lm::Activations;
use policy::{DpoConfig, Pair, PairLoss};
use text::Answer;

use crate::bench::{Bench, count, lora, optimizer, votes};

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
        loss: PairLoss::Sigmoid,
        label_smoothing: 0.0,
        nll: 0.0,
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
    train_by(bench, &dpo_config(), users, name)
}

fn train_by(bench: &Bench, config: &DpoConfig, users: &[&str], name: &str) -> (Factors, policy::DpoReport) {
    let mut run = bench.run("dpo", name);
    let users: Vec<String> = users.iter().map(|u| (*u).to_owned()).collect();
    let own: Vec<Pair> = pairs().into_iter().filter(|p| users.contains(&p.user)).collect();
    let (policies, report) =
        policy::train_dpo(config, &bench.lm, &bench.tokenizer, &own, &users, None, &mut run).unwrap();
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

#[test]
fn every_loss_learns_and_keeps_the_promise_to_users() {
    let bench = Bench::new();
    let plain = dpo_config();
    let cases = [
        ("conservative", DpoConfig { label_smoothing: 0.1, ..plain.clone() }),
        ("robust", DpoConfig { loss: PairLoss::Robust, label_smoothing: 0.1, ..plain.clone() }),
        ("hinge", DpoConfig { loss: PairLoss::Hinge, ..plain.clone() }),
        ("ipo", DpoConfig { loss: PairLoss::Ipo, ..plain.clone() }),
        ("simpo", DpoConfig { loss: PairLoss::Simpo { gamma: 0.05 }, ..plain.clone() }),
        ("nll", DpoConfig { nll: 0.2, ..plain.clone() }),
    ];
    for (name, config) in cases {
        let (together, report) = train_by(&bench, &config, &["ann", "bob"], &format!("{name} both"));
        assert!(report.users.values().all(|u| u.final_accuracy > 0.8), "{name}: {report:?}");
        let (alone, _) = train_by(&bench, &config, &["bob"], &format!("{name} bob"));
        for (a, b) in together["bob"].iter().zip(&alone["bob"]) {
            let (distance, size) = ((a - b).abs().max().double_value(&[]), b.abs().max().double_value(&[]));
            assert!(distance < 1e-5 * size.max(1.0), "{name}: {distance} of {size}");
        }
    }
    let mut run = bench.run("dpo", "refused");
    let config = DpoConfig { loss: PairLoss::Ipo, label_smoothing: 0.2, ..plain };
    let users = ["ann".to_owned()];
    let error = policy::train_dpo(&config, &bench.lm, &bench.tokenizer, &pairs(), &users, None, &mut run).unwrap_err();
    assert!(error.to_string().contains("`label_smoothing`"), "{error}");
}
