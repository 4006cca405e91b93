//! PPO for one user on one page: the teaching twin of `policy::train_ppo`, which does the same for many users at once.
//!
//!     cargo run --release -p policy --example ppo [MODEL_FOLDER]
//!
//! The policy is a frozen base with an adapter, the critic the same base with another adapter and a value head, and the reference
//! the base alone. A round: the policy responds to prompts; every response is scored; a token's reward is its divergence from the
//! reference, the last token's also the score; a few clipped updates follow. Without a folder the model is tiny and random.
//! The score is a toy: the share of a response's tokens that have an even id. It begins near one half and rises.
//!
//! Left out on purpose: stop tokens, minibatches, calibrated scores, quarantine, checkpoints. The full loop has them.

#![expect(clippy::print_stdout, reason = "it prints what it sees")]

use lm::{
    Activations, AdamW, AdamWConfig, Bank, BankConfig, Hooks, Lm, Middle, Parameter, Prefix, Sampling, ScalarHead,
    Sharing, Storage, Tensor, TokenRow, Trace, UserIndex, answer_hidden, answer_token_logp, forward, generate,
};
use policy::{Sampled, gae, value_losses, whiten};
use problem::Result;
use serde_json::{from_value, json};
use tch::{Kind, no_grad};

/// Writes and loads a tiny random model.
mod tiny;

const PROMPTS: [[i64; 2]; 4] = [[0, 5], [0, 6], [0, 7], [0, 8]]; // token ids
const SAMPLES: usize = 8; // responses to each prompt
const NEW_TOKENS: usize = 6; // T, of each response
const UPDATES: usize = 4; // in a round
const KL_COEFFICIENT: f32 = 0.02;
const CLIP: f64 = 0.2;
const GAMMA: f32 = 1.0;
const LAMBDA: f32 = 0.95;

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let lm = match std::env::args().nth(1) {
        Some(given) => Lm::load(given.as_ref(), &device::Compute::new("cpu", "float32", None)?)?,
        None => tiny::model(folder.path())?,
    };
    for (round, (score, kl)) in train(&lm, 40)?.into_iter().enumerate() {
        println!("round {round:2}: score {score:.3}, KL {kl:.3} nats per response");
    }
    Ok(())
}

/// Trains; gives the mean score and the mean divergence, nats per response, of each round's N responses.
fn train(lm: &Lm, rounds: usize) -> Result<Vec<(f32, f32)>> {
    let (policy, critic) = (adapter(lm, 1)?, adapter(lm, 2)?);
    let zero = Tensor::zeros([1, lm.shape.hidden_size], (Kind::Float, lm.device));
    let head = ScalarHead::from_weight(&zero, Sharing::Personal); // expects nothing yet
    let mut policy_adam = optimizer(policy.parameters())?;
    let mut critic_adam = optimizer(critic.parameters().into_iter().chain(head.parameters()).collect())?;
    let user_and_rate = [(UserIndex(0), 1e-2)];
    let only = UserIndex(0).in_whole_bank(); // the one place of each bank
    let of_prompts = [only; PROMPTS.len()];
    let prompts = PROMPTS.map(|prompt| prompt.to_vec());
    let n = PROMPTS.len() * SAMPLES;
    let mut seen = Vec::new();
    for round in 0..rounds {
        // Responses of the policy, and their scores.
        let seed = |response: usize| run::derive(7, &[&round.to_string(), &response.to_string()]);
        let seeds: Vec<[u8; 32]> = (0..n).map(seed).collect();
        let (bank, sampling) = (Some((&policy, of_prompts.as_slice())), Sampling::at(1.0, NEW_TOKENS, vec![]));
        let samples = generate(lm, bank, &prompts, &seeds, &sampling, Hooks::default());
        let scores: Vec<f32> = samples.iter().map(|sample| score(&sample.ids)).collect();

        // As the round begins: log-probabilities under policy and reference, and values, [N T] each.
        let ids = |r: usize| [prompts[r / SAMPLES].as_slice(), &samples[r].ids].concat();
        let rows = (0..n).map(|r| TokenRow { ids: ids(r), answer_start: PROMPTS[0].len() }).collect();
        let prefix = Prefix::new(lm, rows, 0..lm.depth(), |_| ())?;
        let batch = || prefix.batch(lm, &(0..n).map(|row| vec![row]).collect::<Vec<_>>());
        let factors = |bank: &Bank| bank.rows(&vec![only; n], batch().lengths());
        let logp = |hidden: &Tensor| answer_token_logp(lm, &batch(), hidden, 1.0);
        let value = |hidden: &Tensor| head.score(&answer_hidden(lm, &batch(), hidden), &vec![only; n * NEW_TOKENS]);
        let old = no_grad(|| logp(&forward(lm, &batch(), Some(&factors(&policy)))));
        let reference = no_grad(|| logp(&forward(lm, &batch(), None)));
        let values = no_grad(|| value(&forward(lm, &batch(), Some(&factors(&critic)))));

        // A token costs its divergence from the reference (Ziegler et al. 2019, eq. 2: R = r - beta log pi / rho), and the last one
        // brings the score. Advantages are generalised (Schulman et al. 2016, eq. 16); returns are advantages plus values.
        let (kl, values_list) = (list(&(&old - &reference)), list(&values));
        let (mut advantages, mut returns) = (Vec::new(), Vec::new());
        for (r, (kl, values)) in kl.chunks(NEW_TOKENS).zip(values_list.chunks(NEW_TOKENS)).enumerate() {
            let mut rewards: Vec<f32> = kl.iter().map(|kl| -KL_COEFFICIENT * kl).collect();
            rewards[NEW_TOKENS - 1] += scores[r];
            let of_response = gae(&rewards, values, GAMMA, LAMBDA);
            returns.extend(of_response.iter().zip(values).map(|(advantage, value)| advantage + value));
            advantages.extend(of_response);
        }
        whiten(&mut advantages, true); // to mean 0 and variance 1 over the round (Huang et al. 2024)
        let [advantages, returns] = [advantages, returns].map(|v| Tensor::from_slice(&v).to_device(lm.device));

        for _ in 0..UPDATES {
            // The clipped surrogate, negated: E[min(ratio A, clip(ratio, 1 - e, 1 + e) A)] (Schulman et al. 2017, eq. 7).
            let trace = Trace::new(lm, batch(), factors(&policy), Activations::Keep);
            let sampled = Sampled { logp: &logp(&trace.hidden), old: &old, advantages: &advantages };
            let loss = sampled.policy_losses(CLIP).mean(Kind::Float);
            let gradients = trace.backward(&loss, &leaves(policy.parameters()), &[], "the policy")?;
            policy_adam.step(&gradients, 0.0, &user_and_rate, "the policy")?;

            // The squared error of the values (the L^VF of eq. 9 there), clipped as well (Huang et al. 2022, detail 9).
            let trace = Trace::new(lm, batch(), factors(&critic), Activations::Keep);
            let loss = value_losses(&value(&trace.hidden), &values, &returns, CLIP).mean(Kind::Float);
            let (of_critic, of_head) = (leaves(critic.parameters()), leaves(head.parameters()));
            let gradients = trace.backward(&loss, &of_critic, &of_head, "the critic")?;
            critic_adam.step(&gradients, 0.0, &user_and_rate, "the critic")?;
        }
        seen.push((scores.iter().sum::<f32>() / n as f32, kl.iter().sum::<f32>() / n as f32));
    }
    Ok(seen)
}

/// The toy reward of a response.
fn score(ids: &[i64]) -> f32 {
    ids.iter().filter(|id| *id % 2 == 0).count() as f32 / ids.len() as f32
}

/// LoRA on all linear layers, which changes nothing yet: A is drawn, B is zero (Hu et al. 2021).
fn adapter(lm: &Lm, seed: u64) -> Result<Bank> {
    let lora = json!({"rank": 4, "alpha": 8.0, "targets": "all-linear", "blocks": "all"});
    let (lora, down, up) = (from_value(lora).expect("a LoraConfig"), Sharing::Personal, Sharing::Personal);
    let shape = BankConfig { lora, down, up, middle: Middle::None, users: 1 };
    Bank::new(&shape, lm, &["user".into()], &Storage::memory(), |name| run::rng(seed, &[name]))
}

fn optimizer(parameters: Vec<Parameter>) -> Result<AdamW> {
    let config = json!({"learning_rate": 1e-2, "schedule": "constant", "warmup_ratio": 0.0, "weight_decay": 0.0,
        "betas": [0.9, 0.999], "epsilon": 1e-5, "max_grad_norm": 1.0});
    let config: AdamWConfig = from_value(config).expect("an AdamWConfig");
    AdamW::new(config, parameters, 1.try_into().expect("one user"), &Storage::memory())
}

fn leaves(parameters: Vec<Parameter>) -> Vec<Tensor> {
    parameters.into_iter().map(|parameter| parameter.tensor).collect()
}

fn list(numbers: &Tensor) -> Vec<f32> {
    Vec::try_from(numbers).expect("a number a token")
}

#[test]
fn the_score_rises() {
    let folder = tempfile::tempdir().expect("a folder");
    let seen = train(&tiny::model(folder.path()).expect("a model"), 40).expect("a training");
    let mean = |part: &[(f32, f32)]| part.iter().map(|(score, _)| score).sum::<f32>() / part.len() as f32;
    let (first, last) = (mean(&seen[..3]), mean(&seen[37..]));
    assert!(seen[0].1.abs() < 1e-5, "a policy begins as the reference: {seen:?}");
    assert!(last > first + 0.15, "{first} {last}");
}
