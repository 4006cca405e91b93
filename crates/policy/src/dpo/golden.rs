//! A step of DPO from rows to factors against TRL's; `tests/golden/dpo_step.py` says how the numbers were made. Two users with rows of
//! their own and in common, of TRL's two runs, are in one batch.

use std::collections::{BTreeMap, HashMap};

use lm::{Activations, AdamW, AdamWConfig, Plan, RowCounts, Schedule, Storage, TokenRow, UserIndex};
use run::{Environment, Identity, Run};
use serde::Deserialize;

use crate::dpo::config::{DpoConfig, DpoOwn};
use crate::dpo::reference::reference;
use crate::dpo::rows::{Planned, RowPair};
use crate::dpo::update::{Inputs, gradients, update};
use crate::golden::{Tiny, assert_close, read, row};
use crate::learners::Learners;
use crate::maths::pair_losses::PairLoss;
use crate::model::{frozen_blocks, starting_bank};

#[derive(Deserialize)]
struct Golden {
    #[serde(flatten)]
    tiny: Tiny,
    prompts: Vec<Vec<i64>>,
    pairs: Vec<GoldenPair>,
    users: Vec<User>,
    cases: Vec<Case>,
    adamw: Adam,
}

#[derive(Deserialize)]
struct GoldenPair {
    prompt: usize,
    chosen: Vec<i64>,
    rejected: Vec<i64>,
    weight: f32,
}

#[derive(Deserialize)]
struct User {
    name: String,
    first: usize,
    beta: f64,
    pairs: Vec<usize>,
    policy: Vec<[f32; 2]>,
    reference: Vec<[f32; 2]>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    loss: PairLoss,
    label_smoothing: f64,
    nll: f64,
    ld_alpha: Option<f64>,
    weighted: bool,
    users: Vec<OfUser>,
}

#[derive(Deserialize)]
struct OfUser {
    loss: f32,
    losses: Vec<f32>,
    gradients: Vec<f32>,
}

#[derive(Deserialize)]
struct Adam {
    learning_rate: f64,
    weight_decay: f64,
    betas: [f64; 2],
    epsilon: f64,
    max_grad_norm: f64,
    steps: usize,
    users: Vec<Stepped>,
}

#[derive(Deserialize)]
struct Stepped {
    norms: Vec<f64>,
    factors: Vec<f32>,
}

/// Every user's pairs, all of them in each of the user's batches; a row that comes twice is there once.
fn planned(golden: &Golden, case: &Case) -> Planned {
    let (mut rows, mut known) = (Vec::new(), HashMap::new());
    let (mut pairs, mut plans) = (Vec::new(), Vec::new());
    for user in &golden.users {
        let first = pairs.len();
        let weights: Vec<f32> = user.pairs.iter().map(|n| golden.pairs[*n].weight).collect();
        let weights = stats::relative_weights(&vec![(); weights.len()], &weights);
        for (pair, relative) in user.pairs.iter().map(|n| &golden.pairs[*n]).zip(weights) {
            let [chosen, rejected] = [&pair.chosen, &pair.rejected].map(|response| {
                let prompt = &golden.prompts[pair.prompt];
                let row = TokenRow { ids: [prompt.as_slice(), response].concat(), answer_start: prompt.len() };
                *known.entry(row.clone()).or_insert_with(|| {
                    rows.push(row);
                    rows.len() - 1
                })
            });
            let weight = if case.weighted { relative } else { 1.0 };
            pairs.push(RowPair { rows: (chosen, rejected), weight });
        }
        plans.push(Plan { batches: vec![(first..pairs.len()).collect(); golden.adamw.steps], tokens: 0 });
    }
    let own = golden.users.iter().map(|user| user.pairs.len()).collect();
    let ld_alpha = case.ld_alpha.unwrap_or(1.0) as f32;
    Planned { rows, pairs, plans, own, counts: RowCounts::default(), without_weight: vec![0; 2], ld_alpha }
}

fn config(golden: &Golden, case: &Case, budget: usize, activations: Activations) -> DpoConfig {
    let Adam { learning_rate, weight_decay, betas, epsilon, max_grad_norm, .. } = golden.adamw;
    let (schedule, warmup_ratio) = (Schedule::Constant, 0.0);
    let optimizer = AdamWConfig { learning_rate, schedule, warmup_ratio, weight_decay, betas, epsilon, max_grad_norm };
    let own = |user: &User| (user.name.clone(), DpoOwn { beta: Some(user.beta), ..DpoOwn::default() });
    DpoConfig {
        lora: golden.tiny.lora(),
        optimizer,
        loss: case.loss,
        label_smoothing: case.label_smoothing,
        nll: case.nll,
        ld_alpha: case.ld_alpha,
        micro_batch_tokens: budget.try_into().unwrap(),
        activations,
        user: golden.users.iter().map(own).collect::<BTreeMap<_, _>>(),
        ..DpoConfig::default()
    }
}

/// Takes the steps of a case as [`crate::train_dpo`] takes them, and compares what each phase gives.
fn compare(golden: &Golden, case: &Case, budget: usize, activations: Activations) {
    let what = |what: &str, user: &User| format!("{}, {} ({budget}, {activations:?}), {what}", case.name, user.name);
    let folder = tempfile::tempdir().unwrap();
    let identity = Identity::new("dpo", 1, serde_json::json!({}), 3);
    let mut run = Run::begin(&folder.path().join("dpo"), identity, Environment::new()).unwrap();
    let (config, lm) = (config(golden, case, budget, activations), golden.tiny.model());
    let users: Vec<String> = golden.users.iter().map(|user| user.name.clone()).collect();
    config.check(&users).unwrap();
    let (bank, _) = starting_bank("dpo", (&config.lora, config.personal), &lm, &users, None, &run).unwrap();
    for (u, user) in golden.users.iter().enumerate() {
        golden.tiny.fill(&bank.parameters(), u, user.first);
    }
    let planned = planned(golden, case);
    let prefix = frozen_blocks("dpo", &lm, &bank, planned.rows.clone()).unwrap();
    let reference = reference(&config, &lm, &prefix, &planned, None, &mut run).unwrap();
    let count = users.len().try_into().unwrap();
    let mut adam = AdamW::new(config.optimizer.clone(), bank.parameters(), count, &Storage::memory()).unwrap();
    let mut learners = Learners::<f64>::open(&mut run, users.len(), &mut [("adam", &mut adam)]).unwrap();
    let inputs = Inputs {
        config: &config,
        lm: &lm,
        bank: &bank,
        prefix: &prefix,
        planned: &planned,
        reference: &reference,
        users: &users,
    };

    let turn = learners.ask(&planned.plans, None).unwrap();
    let (found, seen) = gradients(&inputs, &turn, "test", &run).unwrap().unwrap();
    let mut first = 0;
    for (u, (user, want)) in golden.users.iter().zip(&case.users).enumerate() {
        let own = first..first + user.pairs.len();
        first = own.end;
        let losses: Vec<f32> = seen[own.clone()].iter().map(|pair| pair.loss as f32).collect();
        assert_close(&what("losses", user), &losses, &want.losses, 1e-5);
        let weights: Vec<f32> = planned.pairs[own.clone()].iter().map(|pair| pair.weight).collect();
        let of_batch = losses.iter().zip(&weights).map(|(l, w)| l * w).sum::<f32>() / weights.iter().sum::<f32>();
        assert_close(&what("loss of the batch", user), &[of_batch], &[want.loss], 1e-5);
        assert_close(&what("gradients", user), &row(&found, u), &want.gradients, 1e-5);
        if case.name == "sigmoid" {
            let logps: Vec<f32> =
                seen[own.clone()].iter().flat_map(|p| [p.logp_chosen as f32, p.logp_rejected as f32]).collect();
            assert_close(&what("log-probabilities", user), &logps, user.policy.as_flattened(), 1e-6);
            let theirs = user.reference.as_flattened();
            assert_close(&what("reference", user), reference[own.clone()].as_flattened(), theirs, 1e-6);
            let rewards: Vec<f32> = seen[own].iter().flat_map(|p| [p.chosen as f32, p.rejected as f32]).collect();
            let gains = user.policy.as_flattened().iter().zip(theirs).map(|(p, r)| user.beta as f32 * (p - r));
            assert_close(&what("rewards", user), &rewards, &gains.collect::<Vec<_>>(), 3e-5); // differences of seven digits
        }
    }
    if case.name != "sigmoid" {
        return;
    }
    let mut norms = vec![Vec::new(); users.len()];
    while let Some(turn) = learners.ask(&planned.plans, None) {
        let taken = update(&inputs, &turn, &mut adam, "test", &run).unwrap().unwrap();
        for ((user, _), norm) in taken.rates.iter().zip(taken.norms) {
            learners.keep(*user, norm);
            norms[user.0].push(norm);
        }
    }
    let factors: Vec<lm::Tensor> = bank.parameters().into_iter().map(|p| p.tensor).collect();
    for ((UserIndex(u), user), want) in UserIndex::all(users.len()).zip(&golden.users).zip(&golden.adamw.users) {
        let apart = norms[u].iter().zip(&want.norms).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
        assert!(norms[u].len() == want.norms.len() && apart < 1e-5, "{}: {:?} {:?}", user.name, norms[u], want.norms);
        assert_close(&what("factors after the steps", user), &row(&factors, u), &want.factors, 2e-5);
    }
}

#[test]
fn a_step_of_dpo_from_rows_to_factors_equals_trl() {
    let golden: Golden = read("dpo_step.json");
    assert_eq!(golden.cases.len(), 9);
    let limit = golden.adamw.max_grad_norm;
    assert!(
        golden.adamw.users.iter().any(|u| u.norms[0] > limit) && golden.adamw.users.iter().any(|u| u.norms[0] < limit)
    );
    for case in &golden.cases {
        // All pairs in one pass, and each in a pass of its own whose blocks are run again.
        compare(&golden, case, 10_000, Activations::Keep);
        compare(&golden, case, 1, Activations::Recompute);
    }
}
