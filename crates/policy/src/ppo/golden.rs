//! Whole rounds of PPO on given responses and scores against TRL's; `tests/golden/ppo_round.py` says how the numbers were made, and where
//! TRL's definition is another one.

use lm::{Activations, AdamWConfig, Present, Quarantine, Sampling, Schedule, TokenRow, UserIndex};
use run::{Environment, Identity, Run};
use serde::Deserialize;

use crate::golden::{Tiny, assert_close, read, row};
use crate::maths::kl::{KlControl, KlEstimator};
use crate::ppo::advantages::advantages;
use crate::ppo::ask::minibatches;
use crate::ppo::begin::begin;
use crate::ppo::config::{CriticConfig, KlTerm, Method, PpoConfig, RewardTerms};
use crate::ppo::guard::Guard;
use crate::ppo::models::Models;
use crate::ppo::passes::{Passes, Round, Rows};
use crate::ppo::rollouts::Rollout;
use crate::ppo::scale::Scale;
use crate::ppo::score::score;
use crate::ppo::setup::{Setup, Turn};
use crate::ppo::update::update;

#[derive(Deserialize)]
struct Golden {
    #[serde(flatten)]
    tiny: Tiny,
    first: First,
    prompts: Vec<Vec<i64>>,
    clip: f64,
    value_clip: f64,
    missing_end_penalty: f64,
    epochs: usize,
    minibatches: usize,
    policy: Adam,
    critic: Adam,
    rounds: Vec<Play>,
}

#[derive(Deserialize)]
struct First {
    policy: usize,
    critic: usize,
    head: usize,
}

#[derive(Deserialize)]
struct Adam {
    learning_rate: f64,
    weight_decay: f64,
    betas: [f64; 2],
    epsilon: f64,
}

#[derive(Deserialize)]
struct Play {
    name: String,
    temperature: f64,
    estimator: KlEstimator,
    beta: f64,
    gamma: f32,
    lambda: f32,
    whiten_rewards: bool,
    responses: Vec<Response>,
    orders: Vec<Vec<usize>>,
    old: Vec<Vec<f32>>,
    kl: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    advantages: Vec<Vec<f32>>,
    returns: Vec<Vec<f32>>,
    updates: Vec<Updated>,
    gradients: Learned,
    factors: Learned,
}

#[derive(Deserialize)]
struct Response {
    prompt: usize,
    ids: Vec<i64>,
    score: f32,
}

#[derive(Deserialize)]
struct Updated {
    policy_loss: f32,
    value_loss: f32,
    norm: f32,
}

#[derive(Deserialize)]
struct Learned {
    policy: Vec<f32>,
    critic: Vec<f32>,
}

const END: i64 = 46;

impl Adam {
    fn config(&self) -> AdamWConfig {
        let Self { learning_rate, weight_decay, betas, epsilon } = *self;
        let (schedule, warmup_ratio, max_grad_norm) = (Schedule::Constant, 0.0, 1e9);
        AdamWConfig { learning_rate, schedule, warmup_ratio, weight_decay, betas, epsilon, max_grad_norm }
    }
}

fn config(golden: &Golden, play: &Play, budget: usize, activations: Activations) -> PpoConfig {
    let critic = CriticConfig {
        optimizer: golden.critic.config(),
        gamma: play.gamma,
        lambda: play.lambda,
        value_clip: golden.value_clip,
        whiten_rewards: play.whiten_rewards,
        warmup_steps: 0,
    };
    let count = |n: usize| n.try_into().unwrap();
    let plain = PpoConfig::default();
    PpoConfig {
        method: Method::Ppo(critic),
        lora: golden.tiny.lora(),
        optimizer: golden.policy.config(),
        prompts_per_step: count(golden.prompts.len()),
        samples_per_prompt: count(play.responses.len() / golden.prompts.len()),
        temperature: play.temperature,
        epochs: count(golden.epochs),
        minibatches: count(golden.minibatches),
        clip: golden.clip,
        whiten_advantages: true,
        kl: KlTerm { estimator: play.estimator, control: KlControl::Fixed { beta: play.beta } },
        reward: RewardTerms { missing_end_penalty: golden.missing_end_penalty, caution: 0.0, ..plain.reward },
        guard: Guard::Off,
        micro_batch_tokens: count(budget),
        activations,
        ..plain
    }
}

/// The responses of each of `users` users, all of whom gave the same. One that was cut has no end token.
fn rollouts(golden: &Golden, play: &Play, users: usize) -> Vec<Rollout> {
    let of_user = |user: UserIndex| {
        play.responses.iter().map(move |Response { prompt, ids, .. }| {
            let (question, finished) = (&golden.prompts[*prompt], ids.last() == Some(&END));
            let row = TokenRow { ids: [question.as_slice(), ids].concat(), answer_start: question.len() };
            let (sampled, logp) = (ids.len(), vec![0.0; ids.len()]);
            Rollout { user, prompt: *prompt, turn: *prompt, row, sampled, finished, text: String::new(), logp }
        })
    };
    UserIndex::all(users).flat_map(of_user).collect()
}

/// A run whose seed takes the first user's minibatches in the golden's orders.
fn run_of(folder: &std::path::Path, config: &PpoConfig, play: &Play, users: &[String], rollouts: &[Rollout]) -> Run {
    let (rows, count) = (play.responses.len(), config.minibatches.get());
    let sorted = |mut rows: Vec<usize>| {
        rows.sort_unstable();
        rows
    };
    let wanted: Vec<Vec<usize>> = play.orders.concat().chunks(rows / count).map(|m| sorted(m.to_vec())).collect();
    let begin = |seed: u64| {
        let identity = Identity::new("ppo", 1, serde_json::json!({}), seed);
        Run::begin(&folder.join(seed.to_string()), identity, Environment::new()).unwrap()
    };
    let is_it = |run: &Run| {
        let of_epoch = |epoch: usize| minibatches(config, run, users, &[0, 0], rollouts, epoch);
        let found = (0..config.epochs.get()).flat_map(of_epoch);
        found.map(|m| sorted(m.into_iter().filter(|row| *row < rows).collect())).eq(wanted.iter().cloned())
    };
    (0..5000).map(begin).find(is_it).unwrap()
}

/// Plays a round as [`crate::train_ppo`] plays it, and compares what each phase gives the first of two users; the second has other adapters.
fn compare(golden: &Golden, play: &Play, budget: usize, activations: Activations) {
    let what = |what: &str| format!("{} ({budget}, {activations:?}), {what}", play.name);
    let (config, lm) = (config(golden, play, budget, activations), golden.tiny.model());
    let users = ["ann", "bob"].map(String::from);
    config.check(&users).unwrap();
    let (rollouts, folder) = (rollouts(golden, play, users.len()), tempfile::tempdir().unwrap());
    let run = run_of(folder.path(), &config, play, &users, &rollouts);
    let passes = Passes { lm: &lm, temperature: config.temperature, budget, activations };
    let own = users.iter().map(|user| config.own(user).unwrap()).collect();
    let sampling = Sampling::at(config.temperature, 5, vec![END]);
    let setup = Setup { config: &config, lm: &lm, users: &users, own, passes, sampling };
    let mut models = Models::new(&config, &lm, &users, None, &run).unwrap();
    for user in 0..users.len() {
        let critic = &models.critic.as_ref().unwrap().0;
        golden.tiny.fill(&models.bank.parameters(), user, golden.first.policy + 50 * user);
        golden.tiny.fill(&critic.bank.parameters(), user, golden.first.critic + 50 * user);
        golden.tiny.fill(&critic.head.parameters(), user, golden.first.head + 50 * user);
    }
    let active = Present::new(UserIndex::all(users.len()));
    let turn = Turn { place: "test".into(), active, steps: vec![0; 2], betas: vec![play.beta, 9.0] };
    let scales = [0, 1].map(|_| Ok(Scale { mean: 0.0, deviation: 1.0 }));
    let count = play.responses.len();

    let scored = score(&setup, &models.bank, &scales, rollouts, &mut |_, asked| {
        Ok(asked.iter().map(|(row, _)| (play.responses[row % count].score, 0.0)).collect())
    });
    let scored = scored.unwrap();
    let begun = begin(&setup, &models, &turn, &scored, &run);
    let (advantages, returns) =
        advantages(&config, &scored.rollouts, &begun.kl, &scored.scores, &turn.betas, &begun.values);
    let sampled = |all: &[Vec<f32>]| -> Vec<f32> {
        (0..count).flat_map(|r| all[r][..play.responses[r].ids.len()].to_vec()).collect()
    };
    for (name, ours, theirs, tolerance) in [
        ("log-probabilities", &begun.old, &play.old, 1e-6),
        ("divergences", &begun.kl, &play.kl, 1e-5),
        ("values", &begun.values, &play.values, 1e-6),
        ("advantages", &advantages, &play.advantages, 1e-5),
        ("returns", &returns, &play.returns, 1e-5),
    ] {
        assert_close(&what(name), &sampled(ours), &theirs.concat(), tolerance);
    }

    // TRL's critic learns one value more of every response, unless responses are as long as they may be.
    let is_critic_the_same = play.responses.iter().all(|r| r.ids.len() == play.responses[0].ids.len());
    let rows = Rows { rollouts: &scored.rollouts, prefix: &scored.prefix };
    let round = Round { rows, old: &begun.old, values: &begun.values, advantages: &advantages, returns: &returns };
    let critic = &models.critic.as_ref().unwrap().0;
    let (of_policy, _) =
        passes.policy(&models.bank, &round, &begun.first[0], config.clip, None, "test").unwrap().unwrap();
    assert_close(&what("gradients of the policy"), &row(&of_policy, 0), &play.gradients.policy, 1e-5);
    let (of_critic, _) =
        passes.critic(critic, &round, &begun.first[0], golden.value_clip, None, "test").unwrap().unwrap();
    if is_critic_the_same {
        assert_close(&what("gradients of the critic"), &row(&of_critic, 0), &play.gradients.critic, 1e-5);
    }

    let mut quarantine = Quarantine::default();
    let (first, kept) = (begun.first, begun.kept);
    let updates = update(&setup, &mut models, &turn, &round, &first, kept, &mut quarantine, &run).unwrap();
    assert!(quarantine.by_id(&users).is_empty());
    let seen = &updates[&UserIndex(0)];
    let list = |f: fn(&Updated) -> f32| play.updates.iter().map(f).collect::<Vec<f32>>();
    let losses: Vec<f32> = seen.policy.iter().map(|s| s.loss as f32).collect();
    assert_close(&what("losses of the policy"), &losses, &list(|u| u.policy_loss), 1e-5);
    let norms: Vec<f32> = seen.norms.iter().map(|norm| *norm as f32).collect();
    assert_close(&what("norms of the policy's gradients"), &norms, &list(|u| u.norm), 1e-5);
    assert!(seen.policy.iter().any(|s| s.clipped > 0.0), "no ratio was clipped");
    let tensors = |parameters: Vec<lm::Parameter>| parameters.into_iter().map(|p| p.tensor).collect::<Vec<_>>();
    assert_close(&what("the policy"), &row(&tensors(models.bank.parameters()), 0), &play.factors.policy, 2e-5);
    if is_critic_the_same {
        let losses: Vec<f32> = seen.critic.iter().map(|s| s.loss as f32).collect();
        assert_close(&what("losses of the critic"), &losses, &list(|u| u.value_loss), 1e-5);
        assert!(seen.critic.iter().any(|s| s.clipped > 0.0), "no value was clipped");
        let critic = &models.critic.as_ref().unwrap().0;
        let both: Vec<lm::Parameter> = critic.bank.parameters().into_iter().chain(critic.head.parameters()).collect();
        assert_close(&what("the critic"), &row(&tensors(both), 0), &play.factors.critic, 2e-5);
    }
}

#[test]
fn a_round_of_ppo_on_given_responses_equals_trl() {
    let golden: Golden = read("ppo_round.json");
    assert_eq!(golden.rounds.len(), 2);
    for play in &golden.rounds {
        // All responses of a minibatch in one pass, which the round's beginning hands on; and a prompt's in a pass whose blocks are run again.
        compare(&golden, play, 10_000, Activations::Keep);
        compare(&golden, play, 1, Activations::Recompute);
    }
}
