//! DPO on the tiny model, through the libraries.

use std::collections::BTreeMap;

use data::{Split, Vote};
use lm::Activations;
use policy::{DpoConfig, Pair, PairLoss};
use text::Answer;

use crate::bench::{Bench, count, finished, lora, optimizer, preferred, share_of_rule, votes};

/// Users with different numbers of pairs, so that one leaves the batch before the other. On both sides responses end by themselves or are cut,
/// and are long or short, equally often: see `neither_ending_nor_length_tells_which_response_was_chosen`.
fn pairs() -> Vec<Pair> {
    const OF_BOB: [usize; 12] = [1, 2, 3, 5, 7, 8, 10, 11, 13, 15, 16, 17]; // as many longer ones were chosen as shorter ones
    let mut counts = BTreeMap::new();
    let pair = |v: Vote| {
        let n: &mut usize = counts.entry(v.user_id.clone()).or_default();
        let [chosen, rejected] = finished(*n);
        *n += 1;
        Pair {
            user: v.user_id,
            prompt: v.prompt,
            chosen: Answer { text: v.chosen, finished: chosen },
            rejected: Answer { text: v.rejected, finished: rejected },
            weight: 1.0,
        }
    };
    let votes = votes().into_iter().filter(|v| v.split == Split::Train);
    votes.filter(|v| v.user_id == "ann" || OF_BOB.iter().any(|n| v.source_row == format!("x:{n}"))).map(pair).collect()
}

#[test]
fn neither_ending_nor_length_tells_which_response_was_chosen() {
    for (user, count) in [("ann", 28), ("bob", 12)] {
        let own: Vec<Pair> = pairs().into_iter().filter(|p| p.user == user).collect();
        assert_eq!(own.len(), count);
        let sides = || own.iter().map(|p| [&p.chosen, &p.rejected]);
        assert_eq!(share_of_rule(sides().map(|both| both.map(|r| usize::from(r.finished)))), 0.5, "{user}");
        let by_length = share_of_rule(sides().map(|both| both.map(|r| r.text.len())));
        assert!((by_length - 0.5).abs() < 0.05, "{user}: {by_length}");
        let both =
            |[a, b]: [bool; 2]| own.iter().filter(|p| [p.chosen.finished, p.rejected.finished] == [a, b]).count();
        let each = [[true, true], [true, false], [false, true], [false, false]].map(both);
        assert_eq!(each, [count / 4; 4], "{user}");
    }
}

#[test]
fn dpo_learns_what_is_said_and_not_how_it_ends() {
    let bench = Bench::new();
    let users = ["ann", "bob"].map(String::from);
    let (tokenizer, mut run) = (&bench.tokenizer, bench.run("dpo", "both"));
    let (policies, _) =
        policy::train_dpo(&dpo_config(), &bench.lm, tokenizer, &pairs(), &users, None, &mut run).unwrap();
    for (user, name) in users.iter().enumerate() {
        // On other prompts, and also where the ending alone would point to the rejected response.
        for endings in [[true, true], [false, false], [true, false], [false, true]] {
            let share = preferred(&bench, &policies, user, endings);
            assert!(share > 0.9, "{name}, finished {endings:?}: {share}");
        }
    }
}

fn dpo_config() -> DpoConfig {
    DpoConfig {
        start: policy::Start::Base,
        lora: lora(),
        personal: policy::Personal::Both,
        optimizer: optimizer(2e-2),
        beta: 0.1,
        loss: PairLoss::Sigmoid,
        label_smoothing: 0.0,
        nll: 0.0,
        ld_alpha: None,
        users_at_once: None,
        user: BTreeMap::new(),
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
    let factors = users.iter().enumerate().map(|(u, user)| {
        (user.clone(), policies.bank.of_user(lm::UserIndex(u)).into_iter().flat_map(|f| [f.down, f.up]).collect())
    });
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
            assert!(size > 1e-3, "{user}: {size}");
            assert!(distance < 1e-5 * size.max(1.0), "{user}: {distance} of {size}");
        }
        assert!((own.users[user].final_loss - report.users[user].final_loss).abs() < 1e-4);
    }
}

#[test]
fn a_shared_half_is_one_for_all_and_the_other_half_each_users_own() {
    let bench = Bench::new();
    for (personal, shared) in [(policy::Personal::Down, 1), (policy::Personal::Up, 0)] {
        let config = DpoConfig { personal, ..dpo_config() };
        let (first, report) = train_by(&bench, &config, &["ann", "bob"], &format!("{personal:?}"));
        let (second, _) = train_by(&bench, &config, &["ann", "bob"], &format!("{personal:?} again"));
        for (n, (a, b)) in first["ann"].iter().zip(&first["bob"]).enumerate() {
            assert!(a.abs().max().double_value(&[]) > 1e-3);
            assert_eq!(a.equal(b), n % 2 == shared, "{personal:?}, factor {n}");
        }
        assert!(["ann", "bob"].iter().all(|u| first[*u].iter().zip(&second[*u]).all(|(a, b)| a.equal(b))));
        assert!(report.users.values().all(|u| u.final_accuracy > 0.9), "{report:?}");
    }
}

#[test]
fn dpo_gets_better_repeats_exactly_and_starts_at_ln_2() {
    let bench = Bench::new();
    let (first, report) = train(&bench, &["ann"], "a");
    let (second, _) = train(&bench, &["ann"], "b");
    assert!(first["ann"].iter().zip(&second["ann"]).all(|(a, b)| a.equal(b)));
    let ann = &report.users["ann"];
    assert!(ann.final_loss < 0.4, "{ann:?}");
    assert!(ann.final_accuracy > 0.9, "{ann:?}");
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
        ("ld", DpoConfig { ld_alpha: Some(0.3), ..plain.clone() }),
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

#[test]
fn a_queue_changes_nothing_and_settings_are_a_users_own() {
    let bench = Bench::new();
    let own = |learning_rate, steps| policy::DpoOwn {
        learning_rate: Some(learning_rate),
        beta: Some(0.3),
        steps: Some(count(steps)),
    };
    let config = DpoConfig { user: BTreeMap::from([("bob".to_owned(), own(1e-2, 4))]), ..dpo_config() };
    let (together, report) = train_by(&bench, &config, &["ann", "bob"], "both");
    assert_eq!(report.users["bob"].steps, 4);
    let queue = DpoConfig { users_at_once: Some(count(1)), ..config.clone() };
    let (queued, _) = train_by(&bench, &queue, &["ann", "bob"], "queue");
    for user in ["ann", "bob"] {
        for (a, b) in together[user].iter().zip(&queued[user]) {
            let (distance, size) = ((a - b).abs().max().double_value(&[]), b.abs().max().double_value(&[]));
            assert!(distance < 1e-5 * size.max(1.0), "{user}: {distance} of {size}");
        }
    }
}

#[test]
fn weights_of_pairs_count_and_users_without_pairs_are_quarantined() {
    let bench = Bench::new();
    let config = DpoConfig { max_epochs: count(1), ..dpo_config() };
    let users: Vec<String> = ["ann", "eve"].map(String::from).to_vec();
    let train = |pairs: &[Pair], name: &str| {
        let mut run = bench.run("dpo", name);
        policy::train_dpo(&config, &bench.lm, &bench.tokenizer, pairs, &users, None, &mut run).unwrap()
    };
    let own: Vec<Pair> = pairs().into_iter().filter(|p| p.user == "ann").collect();
    let (plain, report) = train(&own, "plain");
    assert_eq!(plain.users, ["ann"]);
    assert!(report.quarantined["eve"].contains("no batch of pairs"), "{report:?}");
    // The same weight for all is none; a pair that counts nothing might as well be the other way round.
    let scaled: Vec<Pair> = own.iter().cloned().map(|p| Pair { weight: 7.0, ..p }).collect();
    let lighter = |flip: bool| -> Vec<Pair> {
        let change = |(n, p): (usize, &Pair)| match (n % 3, flip) {
            (0, false) => Pair { weight: 1e-9, ..p.clone() },
            (0, true) => Pair { weight: 1e-9, chosen: p.rejected.clone(), rejected: p.chosen.clone(), ..p.clone() },
            _ => p.clone(),
        };
        own.iter().enumerate().map(change).collect()
    };
    let factors = |pairs: &[Pair], name: &str| -> Vec<lm::Tensor> {
        train(pairs, name).0.bank.of_user(lm::UserIndex(0)).into_iter().flat_map(|f| [f.down, f.up]).collect()
    };
    let far = |a: &[lm::Tensor], b: &[lm::Tensor]| {
        a.iter().zip(b).map(|(a, b)| (a - b).abs().max().double_value(&[])).fold(0.0, f64::max)
    };
    let unweighted = factors(&own, "again");
    assert!(far(&unweighted, &factors(&scaled, "scaled")) < 1e-5);
    let light = factors(&lighter(false), "light");
    assert!(far(&light, &unweighted) > 1e-3);
    assert!(far(&light, &factors(&lighter(true), "flipped")) < 1e-3);
}

#[test]
fn a_user_who_leaves_the_finite_numbers_does_not_touch_the_others() {
    let bench = Bench::new();
    // Bob's pairs weigh so much that their gradient overflows.
    let spoil = |p: Pair| if p.user == "bob" { Pair { weight: f32::INFINITY, ..p } } else { p };
    let users: Vec<String> = ["ann", "bob"].map(String::from).to_vec();
    let spoiled: Vec<Pair> = pairs().into_iter().map(spoil).collect();
    let mut run = bench.run("dpo", "spoiled");
    let (policies, report) =
        policy::train_dpo(&dpo_config(), &bench.lm, &bench.tokenizer, &spoiled, &users, None, &mut run).unwrap();
    assert_eq!(policies.users, ["ann"]);
    assert!(report.quarantined["bob"].contains("is not finite"), "{report:?}");
    let (alone, _) = train(&bench, &["ann"], "ann");
    let found: Vec<lm::Tensor> =
        policies.bank.of_user(lm::UserIndex(0)).into_iter().flat_map(|f| [f.down, f.up]).collect();
    for (a, b) in found.iter().zip(&alone["ann"]) {
        let (distance, size) = ((a - b).abs().max().double_value(&[]), b.abs().max().double_value(&[]));
        assert!(distance < 1e-5 * size.max(1.0), "{distance} of {size}");
    }
}

#[test]
fn issue_22_nothing_is_computed_for_pairs_beyond_a_users_budget() {
    let bench = Bench::new();
    let logps = |token_budget_per_user: usize, name: &str| -> (i64, usize) {
        let config =
            DpoConfig { token_budget_per_user, lora: lm::LoraConfig { dropout: 0.0, ..lora() }, ..dpo_config() };
        let folder = bench.folder.path().join(name);
        let identity = run::Identity::new("dpo", 1, serde_json::json!({}), 3);
        let mut run = run::Run::begin(&folder.join("dpo"), identity, run::Environment::new()).unwrap();
        let (lm, users) = (&bench.lm, ["ann".to_owned()]);
        let (_, report) = policy::train_dpo(&config, lm, &bench.tokenizer, &pairs(), &users, None, &mut run).unwrap();
        assert_eq!(report.users["ann"].pairs, 28, "pairs that the budget leaves out are counted");
        let mut files = Vec::new();
        crate::house::files(&folder.join("reference-logps"), "safetensors", &mut files);
        let logp = lm::Tensor::read_safetensors(&files[0]).unwrap();
        (logp.iter().find(|(name, _)| name == "logp").unwrap().1.size()[0], report.users["ann"].steps)
    };
    let (all, steps) = logps(1_000_000, "all");
    assert_eq!(steps, 30);
    let (few, steps) = logps(200, "few"); // one batch of three pairs, of 28
    assert_eq!(steps, 1);
    assert!(few * 3 < all, "log-probabilities of {few} reference tokens, of {all}");
}

#[test]
fn issue_22_who_has_no_policy_to_start_from_is_in_quarantine_and_the_others_start_from_theirs() {
    let bench = Bench::new();
    let config = DpoConfig { lora: lm::LoraConfig { dropout: 0.0, ..lora() }, ..dpo_config() };
    let ids = |users: &[&str]| users.iter().map(|u| (*u).to_owned()).collect::<Vec<String>>();
    let own = |users: &[String]| pairs().into_iter().filter(|p| users.contains(&p.user)).collect::<Vec<Pair>>();
    let start = |name: &str| {
        let users = ids(&["bob"]);
        let mut run = bench.run("dpo", name);
        policy::train_dpo(&config, &bench.lm, &bench.tokenizer, &own(&users), &users, None, &mut run).unwrap().0
    };
    let second = |users: &[&str], name: &str| {
        let users = ids(users);
        let (start, mut run) = (Some(start(&format!("start of {name}"))), bench.run("dpo", name));
        policy::train_dpo(&config, &bench.lm, &bench.tokenizer, &own(&users), &users, start, &mut run).unwrap()
    };
    let (together, report) = second(&["ann", "bob"], "both");
    assert_eq!(together.users, ["bob"]);
    assert!(report.quarantined["ann"].contains("no policy to start from"), "{report:?}");
    let (alone, _) = second(&["bob"], "bob");
    for (a, b) in together.bank.of_user(lm::UserIndex(0)).iter().zip(alone.bank.of_user(lm::UserIndex(0))) {
        let distance = (&a.up - &b.up).abs().max().double_value(&[]);
        assert!(distance < 1e-5, "{distance}");
    }
}
