//! PPO, RLOO and GRPO on the tiny model, through the libraries.

use std::collections::BTreeMap;

use lm::{Activations, Prefix};
use policy::{
    CriticConfig, Guard, KlControl, KlEstimator, KlTerm, Method, OwnSettings, PpoConfig, PpoReport, RewardTerms,
};
use text::Message;

use crate::bench::{Bench, count, lora, optimizer};

fn critic() -> CriticConfig {
    CriticConfig {
        optimizer: optimizer(1e-2),
        gamma: 1.0,
        lambda: 0.95,
        value_clip: 0.5,
        whiten_rewards: false,
        warmup_steps: 1,
    }
}

fn config() -> PpoConfig {
    PpoConfig {
        method: Method::Ppo(critic()),
        whose: policy::Whose::Users,
        start: policy::Start::Base,
        lora: lm::LoraConfig { dropout: 0.0, ..lora() },
        personal: policy::Personal::Both,
        optimizer: optimizer(2e-2),
        steps: count(30),
        prompts_per_step: count(4),
        samples_per_prompt: count(2),
        max_new_tokens: count(5),
        temperature: 1.0,
        fixed_shapes: false,
        rollout_rows: count(64),
        epochs: count(2),
        minibatches: count(2),
        clip: 0.2,
        whiten_advantages: true,
        kl_stop: None,
        max_kl: None,
        kl: KlTerm { estimator: KlEstimator::K1, control: KlControl::Fixed { beta: 0.02 } },
        reward: RewardTerms {
            calibration_samples_per_prompt: count(16),
            clip: 5.0,
            missing_end_penalty: 0.0,
            caution: 0.0,
        },
        guard: Guard::Off,
        max_row_tokens: 100,
        over_long: text::OverLong::Error,
        micro_batch_tokens: count(150),
        activations: Activations::Keep,
        save_every_steps: count(1000),
        users_at_once: None,
        user: BTreeMap::new(),
    }
}

fn prompts() -> Vec<Vec<Message>> {
    (0..6).map(|i| vec![Message::user(format!("what is {i}?"))]).collect()
}

/// What each token is worth: a direction's share of its embedding.
fn worth(bench: &Bench) -> Vec<f32> {
    let kind = tch::Kind::Float;
    let mut weights = lm::read_folder(&bench.folder.path().join("model"), tch::Device::Cpu, kind).unwrap();
    let shape = [bench.lm.shape.vocab_size, bench.lm.shape.hidden_size];
    let embeddings = weights.take("model.embed_tokens.weight", &shape).unwrap();
    let direction: Vec<f32> = (0..shape[1]).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
    Vec::try_from(embeddings.matmul(&lm::Tensor::from_slice(&direction))).unwrap()
}

/// The mean worth of an answer's tokens; to bob the opposite.
fn score_of(worth: &[f32], user: &str, row: &lm::TokenRow) -> f32 {
    let ids = &row.ids[row.answer_start..row.ids.len() - 1];
    let mean = ids.iter().map(|id| worth[*id as usize]).sum::<f32>() / ids.len().max(1) as f32;
    if user == "ann" { mean } else { -mean }
}

type Factors = BTreeMap<String, Vec<lm::Tensor>>;

fn train_by(bench: &Bench, config: &PpoConfig, users: &[&str], name: &str) -> (Factors, PpoReport) {
    let worth = worth(bench);
    train_on(bench, config, users, name, &mut |prefix, asked| {
        let score = |(row, user): &(usize, lm::UserIndex)| (score_of(&worth, users[user.0], &prefix.rows()[*row]), 0.0);
        Ok(asked.iter().map(score).collect())
    })
}

fn train_on(
    bench: &Bench,
    config: &PpoConfig,
    users: &[&str],
    name: &str,
    rewards: &mut policy::Rewards,
) -> (Factors, PpoReport) {
    let users: Vec<String> = users.iter().map(|u| (*u).to_owned()).collect();
    let mut run = bench.run("ppo", name);
    let (policies, report) =
        policy::train_ppo(config, &bench.lm, &bench.tokenizer, &prompts(), &users, None, rewards, &mut run).unwrap();
    let factors = policies.users.iter().enumerate().map(|(u, user)| {
        (user.clone(), policies.bank.of_user(lm::UserIndex(u)).into_iter().flat_map(|f| [f.down, f.up]).collect())
    });
    (factors.collect(), report)
}

fn assert_equal(a: &[lm::Tensor], b: &[lm::Tensor], what: &str) {
    for (a, b) in a.iter().zip(b) {
        let (distance, size) = ((a - b).abs().max().double_value(&[]), b.abs().max().double_value(&[]));
        assert!(size > 1e-3, "{what}: {size}");
        assert!(distance < 1e-5 * size.max(1.0), "{what}: {distance} of {size}");
    }
}

/// A model some of whose responses end by themselves and some of which are cut: it stops at every third letter too, in the order of their worth,
/// so that neither user's taste is for or against these.
fn with_both_endings() -> Bench {
    let mut bench = Bench::new();
    let folder = bench.folder.path().join("model");
    let worth = worth(&bench);
    let mut letters: Vec<i64> = ('a'..='z').map(|c| bench.tokenizer.encode(&c.to_string()).unwrap()[0]).collect();
    letters.sort_by(|a, b| worth[*a as usize].total_cmp(&worth[*b as usize]));
    let stops: Vec<i64> = letters.into_iter().skip(1).step_by(3).chain([bench.tokenizer.end_id()]).collect();
    run::write_json(&folder.join("generation_config.json"), &serde_json::json!({"eos_token_id": stops})).unwrap();
    bench.tokenizer = text::Tokenizer::from_folder(&folder).unwrap();
    bench
}

/// The scores of a user's responses in the last third of the rounds that end by themselves, or that were cut.
fn late_scores(bench: &Bench, name: &str, user: &str, ended: bool) -> Vec<f64> {
    let path = bench.folder.path().join(format!("{name}.partial/rollouts.parquet"));
    let table = data::read_table(&path, &["user_id", "finished", "score"]).unwrap(); // in the order of the rounds
    let (users, scores) = (table.full_text("user_id").unwrap(), table.full_real("score").unwrap());
    let finished = table.full_boolean("finished").unwrap();
    let late = table.rows() * 2 / 3..table.rows();
    late.filter(|row| users[*row] == user && finished[*row] == ended).map(|row| scores[row]).collect()
}

#[test]
fn every_method_gets_better_and_its_first_update_starts_where_the_policy_is() {
    let (bench, mut late) = (with_both_endings(), BTreeMap::new());
    for (name, method) in [("ppo", Method::Ppo(critic())), ("rloo", Method::Rloo), ("grpo", Method::Grpo)] {
        // At a temperature that decoder and training pass must both apply.
        let config = PpoConfig { method, temperature: 0.8, ..config() };
        let (_, report) = train_by(&bench, &config, &["ann", "bob"], name);
        assert_eq!(report.first_update_difference, 0.0, "{name}");
        assert!(report.rollout_difference < 1e-4, "{name}: {}", report.rollout_difference);
        for (user, r) in &report.users {
            assert!(r.first_score.abs() < 0.7, "{name}, {user}: {r:?}");
            assert!(r.final_score > r.first_score + 0.5, "{name}, {user}: {r:?}");
            assert!(r.final_kl > 0.1, "{name}, {user}: {r:?}");
            // What a response scores that ends at once: the best that an ending alone can give.
            let scale = report.scales[user];
            let of_none = f64::from(-scale.mean / scale.deviation);
            assert!(r.final_score > of_none + 0.5, "{name}, {user}: {r:?}, {of_none}");
            for ended in [true, false] {
                let scores: &mut Vec<f64> = late.entry((user.clone(), ended)).or_default();
                scores.extend(late_scores(&bench, name, user, ended));
            }
        }
    }
    // The base's mean is 0. Responses of both endings are better than that: a policy that learnt how to end and nothing else has none.
    for ((user, ended), scores) in late {
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        assert!(scores.len() >= 40 && mean > 0.7, "{user}, ended by itself {ended}: {mean} over {}", scores.len());
    }
    // TRL's names are in the log.
    let log = fs_err::read_to_string(bench.folder.path().join("ppo.partial/metrics.jsonl")).unwrap();
    let line = |n: usize| -> serde_json::Value { serde_json::from_str(log.lines().nth(n).unwrap()).unwrap() };
    // A value head begins at zero: its critic expects nothing, and explains nothing.
    assert_eq!(line(0)["user/ann"]["val/explained_variance"].as_f64(), Some(0.0));
    let line = line(5);
    for name in [
        "objective/kl",
        "objective/entropy",
        "objective/non_score_reward",
        "objective/rlhf_reward",
        "objective/scores",
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "policy/entropy_avg",
        "loss/policy_avg",
        "loss/value_avg",
        "val/clipfrac_avg",
        "val/ratio",
        "val/ratio_var",
        "val/num_eos_tokens",
        "lr",
    ] {
        assert!(line["user/ann"][name].is_number(), "{name}: {line}");
    }
}

#[test]
fn ppo_repeats_exactly_and_users_trained_together_or_in_a_queue_get_what_training_alone_gives() {
    let bench = Bench::new();
    let own = |steps| OwnSettings { steps: Some(count(steps)), learning_rate: Some(1e-2), ..OwnSettings::default() };
    let config = PpoConfig {
        fixed_shapes: true,
        steps: count(4),
        user: BTreeMap::from([("bob".to_owned(), own(3))]),
        ..config()
    };
    let (together, report) = train_by(&bench, &config, &["ann", "bob"], "both");
    let (again, _) = train_by(&bench, &config, &["ann", "bob"], "again");
    assert!(["ann", "bob"].iter().all(|u| together[*u].iter().zip(&again[*u]).all(|(a, b)| a.equal(b))));
    assert_eq!((report.users["ann"].steps, report.users["bob"].steps), (4, 3));

    let queue = PpoConfig { users_at_once: Some(count(1)), ..config.clone() };
    let (queued, _) = train_by(&bench, &queue, &["ann", "bob"], "queue");
    for user in ["ann", "bob"] {
        let mut config = config.clone();
        config.user.retain(|name, _| name == user);
        let (alone, _) = train_by(&bench, &config, &[user], user);
        assert_equal(&together[user], &alone[user], user);
        assert_equal(&queued[user], &alone[user], user);
    }
    // The round's first passes become its first update's: all of it here, the first part of it above.
    let whole = PpoConfig { micro_batch_tokens: count(10_000), ..config };
    let (whole, _) = train_by(&bench, &whole, &["ann", "bob"], "whole");
    ["ann", "bob"].iter().for_each(|user| assert_equal(&whole[*user], &together[*user], user));
}

#[test]
fn policies_may_share_a_half() {
    let bench = Bench::new();
    let config = PpoConfig { method: Method::Rloo, personal: policy::Personal::Down, ..config() };
    let (factors, report) = train_by(&bench, &config, &["ann", "bob"], "halves");
    for (n, (a, b)) in factors["ann"].iter().zip(&factors["bob"]).enumerate() {
        assert_eq!(a.equal(b), n % 2 == 1, "factor {n}");
    }
    for (user, r) in &report.users {
        assert!(r.final_score > r.first_score + 0.3, "{user}: {r:?}");
    }
}

#[test]
fn a_bandit_ends_at_its_known_optimum() {
    // One token, whose reward is a direction's share of its embedding, so that the best policy is one that the model can be:
    // proportional to the base's times e^(r / (beta s)), where s is the deviation of the base's rewards (its hidden state moves along that
    // direction, by about a third of its length).
    let bench = Bench::new();
    let worth = worth(&bench);
    let beta = 3.5;
    let config = PpoConfig {
        max_new_tokens: count(1),
        steps: count(150),
        prompts_per_step: count(6),
        samples_per_prompt: count(16),
        lora: lm::LoraConfig { targets: lm::Targets::All(lm::AllLinear::AllLinear), ..config().lora },
        minibatches: count(1),
        micro_batch_tokens: count(2000),
        kl: KlTerm { estimator: KlEstimator::K1, control: KlControl::Fixed { beta } },
        reward: RewardTerms { calibration_samples_per_prompt: count(200), ..config().reward },
        ..config()
    };
    let mut rewards = |prefix: &Prefix, asked: &[(usize, lm::UserIndex)]| {
        let first = |row: usize| prefix.rows()[row].ids[prefix.rows()[row].answer_start] as usize;
        Ok(asked.iter().map(|(row, _)| (worth[first(*row)], 0.0)).collect())
    };
    let (_, report) = train_on(&bench, &config, &["ann"], "bandit", &mut rewards);
    let policy::Scale { mean, deviation } = report.scales["ann"];
    let mut best = 0.0; // of the calibrated reward
    for prompt in prompts() {
        let logits = lm::full_logits(&bench.lm, &bench.tokenizer.prompt(&prompt).unwrap(), None).get(-1);
        let z = (lm::Tensor::from_slice(&worth) - f64::from(mean)) / f64::from(deviation);
        let policy = (logits + &z / beta).softmax(0, tch::Kind::Double);
        best += (policy * z).sum(tch::Kind::Double).double_value(&[]) / 6.0;
    }
    let log = fs_err::read_to_string(bench.folder.path().join("bandit.partial/metrics.jsonl")).unwrap();
    let scores: Vec<f64> = log
        .lines()
        .map(|l| {
            serde_json::from_str::<serde_json::Value>(l).unwrap()["user/ann"]["objective/scores"].as_f64().unwrap()
        })
        .collect();
    let found = scores[90..].iter().sum::<f64>() / 60.0;
    assert!(best > 0.2, "nothing to learn: {best}");
    assert!((found - best).abs() < 0.06, "best {best}, found {found}");
}

#[test]
fn a_user_who_leaves_the_finite_numbers_is_named_and_nobody_else_is_touched() {
    let bench = Bench::new();
    let config = PpoConfig { fixed_shapes: true, steps: count(4), ..config() };
    let spoiled = |rounds: usize, users: Vec<&'static str>| {
        let (mut calls, worth) = (0, worth(&bench));
        move |prefix: &Prefix, asked: &[(usize, lm::UserIndex)]| {
            calls += 1;
            let score = |(row, user): &(usize, lm::UserIndex)| {
                let bad = users[user.0] == "bob" && calls > rounds;
                (if bad { f32::NAN } else { score_of(&worth, users[user.0], &prefix.rows()[*row]) }, 0.0)
            };
            Ok(asked.iter().map(score).collect())
        }
    };
    // Two calls are the scale's, then one a round.
    let (both, report) = train_on(&bench, &config, &["ann", "bob"], "both", &mut spoiled(4, vec!["ann", "bob"]));
    assert_eq!(report.quarantined.keys().collect::<Vec<_>>(), ["bob"]);
    assert!(report.quarantined["bob"].contains("round 2: a reward of NaN"), "{report:?}");
    assert_eq!(both.keys().collect::<Vec<_>>(), ["ann"], "bob's policy is not written");
    let (alone, _) = train_on(&bench, &config, &["ann"], "ann", &mut spoiled(99, vec!["ann"]));
    assert_equal(&both["ann"], &alone["ann"], "ann");
    // Gone on from the last checkpoint, with bob in quarantine, it ends the same.
    let often = PpoConfig { save_every_steps: count(1), ..config.clone() };
    let mut ignored = spoiled(4, vec!["ann", "bob"]);
    let (first, _) = train_on(&bench, &often, &["ann", "bob"], "often", &mut ignored);
    let (again, report) = train_on(&bench, &often, &["ann", "bob"], "often", &mut ignored);
    assert!(report.quarantined["bob"].contains("round 2"), "{report:?}");
    assert!(first["ann"].iter().zip(&again["ann"]).all(|(a, b)| a.equal(b)));

    // A divergence beyond the limit is one.
    let strict = PpoConfig { max_kl: Some(0.05), steps: count(12), ..config };
    let slow = OwnSettings { learning_rate: Some(1e-7), ..OwnSettings::default() };
    let strict = PpoConfig { user: BTreeMap::from([("bob".to_owned(), slow)]), ..strict };
    let (_, report) = train_by(&bench, &strict, &["ann", "bob"], "strict");
    assert!(report.quarantined["ann"].contains("a divergence of"), "{report:?}");
    assert!(report.users.contains_key("bob"));
}

#[test]
fn issue_22_a_user_whose_rewards_are_all_the_same_is_in_quarantine_and_the_others_go_on() {
    let bench = Bench::new();
    let worth = worth(&bench);
    let config = PpoConfig { steps: count(2), ..config() };
    let users = ["ann", "bob"];
    let (factors, report) = train_on(&bench, &config, &users, "flat", &mut |prefix, asked| {
        let score = |(row, user): &(usize, lm::UserIndex)| match users[user.0] {
            "bob" => (1.0, 0.0),
            ann => (score_of(&worth, ann, &prefix.rows()[*row]), 0.0),
        };
        Ok(asked.iter().map(score).collect())
    });
    assert_eq!(factors.keys().collect::<Vec<_>>(), ["ann"]);
    assert!(report.quarantined["bob"].contains("expected finite numbers that differ"), "{report:?}");
    assert_eq!(report.scales.keys().collect::<Vec<_>>(), ["ann"]);
}

#[test]
fn nobody_can_buy_what_the_guard_blocks() {
    // Ann wants blocked words and nothing else: with the guard there are fewer of them than the base gives.
    let bench = Bench::new();
    let blocked: Vec<String> = ["you", "your", "me", "my"].map(String::from).to_vec();
    let wanted: Vec<i64> = blocked.iter().map(|w| bench.tokenizer.encode(&format!(" {w}")).unwrap()[0]).collect();
    let mut want = |prefix: &Prefix, asked: &[(usize, lm::UserIndex)]| {
        let score = |row: &lm::TokenRow| (f32::from(u8::from(wanted.contains(&row.ids[row.answer_start]))), 0.0);
        Ok(asked.iter().map(|(row, _)| score(&prefix.rows()[*row])).collect())
    };
    let config = PpoConfig {
        max_new_tokens: count(1),
        prompts_per_step: count(6),
        samples_per_prompt: count(16),
        steps: count(40),
        ..config()
    };
    let guard = Guard::On { blocked, least_words: 0 };
    let mut last_ones = |config: &PpoConfig, name: &str, key: &str| -> f64 {
        train_on(&bench, config, &["ann"], name, &mut want);
        let log = fs_err::read_to_string(bench.folder.path().join(format!("{name}.partial/metrics.jsonl"))).unwrap();
        let value = |l: &str| serde_json::from_str::<serde_json::Value>(l).unwrap()["user/ann"][key].as_f64().unwrap();
        log.lines().skip(20).map(value).sum()
    };
    let free = last_ones(&config, "free", "reward/raw") * 96.0;
    let guarded = last_ones(&PpoConfig { guard, ..config }, "guarded", "reward/guarded");
    assert!(guarded > 0.0, "{free} {guarded}");
    assert!(free > 3.0 * guarded, "{free} {guarded}");
}

#[test]
fn settings_that_mean_nothing_are_told() {
    let bench = Bench::new();
    let plain = config();
    let told = |config: PpoConfig| {
        let mut run = bench.run("ppo", "refused");
        let mut rewards = |_: &Prefix, asked: &[(usize, lm::UserIndex)]| Ok(vec![(0.0, 0.0); asked.len()]);
        let users = ["ann".to_owned()];
        let lm = &bench.lm;
        let result = policy::train_ppo(&config, lm, &bench.tokenizer, &prompts(), &users, None, &mut rewards, &mut run);
        result.unwrap_err().to_string()
    };
    let user = |name: &str, own: OwnSettings| BTreeMap::from([(name.to_owned(), own)]);
    let cases = [
        (PpoConfig { temperature: 0.0, ..plain.clone() }, "`temperature`"),
        (PpoConfig { clip: f64::NAN, ..plain.clone() }, "`clip`"),
        (
            PpoConfig {
                whose: policy::Whose::Features(policy::Combination { rank: None, strength: -1.0 }),
                ..plain.clone()
            },
            "`whose.features.strength`",
        ),
        (PpoConfig { lora: lora(), ..plain.clone() }, "`lora.dropout`"),
        (PpoConfig { method: Method::Rloo, samples_per_prompt: count(1), ..plain.clone() }, "`samples_per_prompt`"),
        (PpoConfig { minibatches: count(9), ..plain.clone() }, "`minibatches`: expected at most the 8 responses"),
        (PpoConfig { max_row_tokens: 6, ..plain.clone() }, "found"),
        (PpoConfig { user: user("eve", OwnSettings::default()), ..plain.clone() }, "found `eve`"),
        (
            PpoConfig {
                user: user("ann", OwnSettings { kl_target: Some(1.0), ..OwnSettings::default() }),
                ..plain.clone()
            },
            "`user.ann.kl_target`",
        ),
        (plain, "such as `ann`: the rewards of the base's responses: expected finite numbers that differ"), // all the same
    ];
    for (config, words) in cases {
        let error = told(config);
        assert!(error.contains(words), "{words}: {error}");
    }
}
