//! Supervised fine-tuning on what users prefer: raise the log-probability of the chosen answers, for everyone or for each
//! user. The stage before DPO that a base without manners needs.
//!
//! Left out on purpose: packing, loss on the prompt.

use std::collections::BTreeMap;
use std::num::NonZero;

use data::{Split, Vote};
use lm::{
    Activations, AdamW, AdamWConfig, Bank, BankConfig, Lm, LoraConfig, Middle, Plan, Prefix, RowCounts, RowSet,
    Sharing, Storage, Tensor, Trace, answer_logp,
};
use problem::{Result, invalid};
use run::{Progress, Run};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::Kind;
use text::{Ending, OverLong, Tokenizer};

use crate::Policies;

/// Whose answers a model learns from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Everyone's: one adapter, which becomes part of the base.
    Global,
    /// The user's own: an adapter each, from which DPO can start.
    PerUser,
}

/// An SFT stage, as written in `configs/sft/*.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SftConfig {
    /// Whose answers a model learns from.
    pub scope: Scope,
    /// Rank, scale, layers.
    pub lora: LoraConfig,
    /// Peak learning rate, schedule, clip: each model's own.
    pub optimizer: AdamWConfig,
    /// Answers in a batch, of each model.
    pub batch_answers: NonZero<usize>,
    /// Training ends after so many passes over a model's answers ...
    pub max_epochs: NonZero<usize>,
    /// ... or with the last batch that fits into so many tokens, for each model.
    pub token_budget: usize,
    /// Tokens of prompt and answer.
    pub max_row_tokens: usize,
    /// What becomes of a longer row.
    pub over_long: OverLong,
    /// A batch is computed in parts of so many tokens; the result does not change.
    pub micro_batch_tokens: NonZero<usize>,
    /// What a part keeps for its backward pass.
    pub activations: Activations,
    /// Steps between two checkpoints.
    pub save_every_steps: NonZero<usize>,
}

/// One model's training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SftModelReport {
    /// Distinct answers to learn from.
    pub answers: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Tokens of all rows in all batches.
    pub tokens: usize,
    /// Mean negative log-probability of an answer token, nats, over the first tenth of the steps.
    pub first_loss: f64,
    /// The same over the last tenth.
    pub final_loss: f64,
}

/// What training was made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SftReport {
    /// By user id; `everyone` for a global model.
    pub models: BTreeMap<String, SftModelReport>,
    /// Rows left out or changed.
    pub rows: RowCounts,
}

/// The name of a global model.
pub const EVERYONE: &str = "everyone";

const CHECKPOINT: &str = "checkpoint.safetensors";

/// Fine-tunes on the chosen answers of the decided training votes, resuming where an earlier run stopped.
pub fn train(
    config: &SftConfig,
    lm: &Lm,
    tokenizer: &Tokenizer,
    votes: &[Vote],
    users: &[String],
    run: &mut Run,
) -> Result<(Policies, SftReport)> {
    let SftConfig {
        scope,
        lora,
        optimizer,
        batch_answers,
        max_epochs,
        token_budget,
        max_row_tokens,
        over_long,
        micro_batch_tokens,
        activations,
        save_every_steps,
    } = config;
    let models: Vec<String> = if *scope == Scope::Global { vec![EVERYONE.into()] } else { users.to_vec() };

    // Each model's distinct rows, in the order of the votes.
    let mut set = RowSet::new(tokenizer, *max_row_tokens, *over_long);
    let mut own: Vec<Vec<usize>> = vec![Vec::new(); models.len()];
    for vote in votes.iter().filter(|v| v.split == Split::Train && !v.tie) {
        let model = if *scope == Scope::Global { Some(0) } else { models.iter().position(|m| *m == vote.user_id) };
        let row = set.index(&vote.prompt, &vote.chosen, Ending::Finished, || vote.source_row.clone())?;
        if let Some((model, row)) = model.zip(row)
            && !own[model].contains(&row)
        {
            own[model].push(row);
        }
    }
    let (rows, counts) = (set.rows, set.counts);
    let tokens_of = |row: usize| rows[row].ids.len();
    let plans: Vec<Plan> = models
        .iter()
        .zip(&own)
        .map(|(model, own)| {
            let rng = |epoch: usize| run.rng(&["order", model, &epoch.to_string()]);
            lm::plan(own, *batch_answers, *max_epochs, *token_budget, tokens_of, rng)
        })
        .collect();
    if let Some(model) = plans.iter().position(|plan| plan.batches.is_empty()) {
        return Err(invalid(
            format!("sft, model of `{}`", models[model]),
            "at least one batch of chosen answers within the token budget",
            "none",
            "raise `token_budget`, or gather votes",
        ));
    }
    let steps = plans.iter().map(|plan| plan.batches.len()).max().unwrap_or(0);

    let (down, up) = (Sharing::Personal, Sharing::Personal);
    let bank_config = BankConfig { lora: lora.clone(), down, up, middle: Middle::None, users: models.len() };
    let bank = Bank::new(&bank_config, lm, &models, &Storage::memory(), |name| run.rng(&["init", name]))?;
    let count = models.len().try_into().expect("a model");
    let mut adam = AdamW::new(optimizer.clone(), bank.parameters(), count, &Storage::memory())?;
    let mut history: Vec<Vec<Option<f64>>> = Vec::new(); // loss of each step and model
    let path = run.state(CHECKPOINT);
    if path.exists() {
        let mut tensors = lm::read_tensors(&path, tch::Device::Cpu, None)?;
        let note = tensors.metadata.get("history").and_then(|t| serde_json::from_str(t).ok());
        history = note.ok_or_else(|| {
            invalid(
                path.display().to_string(),
                "a checkpoint of this stage",
                "no history in its header",
                "remove the stage's .partial folder and run again",
            )
        })?;
        adam.load_state(&mut tensors)?;
    }
    let mut step = history.len();
    run.rewind_log(step)?;

    let frozen = run::phase("frozen blocks");
    let mut bar = Progress::new("sft: frozen blocks", rows.len(), 0);
    let prefix = Prefix::new(lm, rows.clone(), bank.first_block()..lm.depth(), |n| bar.advance(n, ""))?;
    drop((bar, frozen));
    let _phase = run::phase("training");
    let mut bar = Progress::new("sft: training", steps, step);
    while step < steps {
        let _step = run::step(step);
        let batch: Vec<(usize, usize)> = plans
            .iter()
            .enumerate()
            .flat_map(|(m, plan)| plan.batches.get(step).into_iter().flatten().map(move |r| (m, *r)))
            .collect();
        // A model's loss is the mean over its answer tokens; the sum over models keeps their gradients apart.
        let mut answer_tokens = vec![0usize; models.len()];
        batch.iter().for_each(|(m, r)| answer_tokens[*m] += rows[*r].ids.len() - rows[*r].answer_start);
        let present: Vec<usize> = (0..models.len()).filter(|m| answer_tokens[*m] > 0).collect();
        let names: Vec<&str> = present.iter().map(|m| models[*m].as_str()).collect();
        let place = format!("sft, step {step}, models {}", names.join(", "));
        let here = bank.present(&present);
        let parameters: Vec<Tensor> = here.parameters().into_iter().map(|p| p.tensor).collect();
        let place_of = |m: &usize| present.binary_search(m).expect("models of the batch, in order");

        let lengths: Vec<usize> = batch.iter().map(|(_, r)| tokens_of(*r)).collect();
        let (mut gradients, mut losses) = (None, vec![0.0; models.len()]);
        for part in lm::under_budget(&lengths, micro_batch_tokens.get()) {
            let groups: Vec<Vec<usize>> = part.iter().map(|i| vec![batch[*i].1]).collect();
            let owners: Vec<usize> = part.iter().map(|i| batch[*i].0).collect();
            let weights: Vec<f32> = owners.iter().map(|m| 1.0 / answer_tokens[*m] as f32).collect();
            let seeds = part.iter().map(|i| {
                let row = run::hash_bytes(format!("{:?}", rows[batch[*i].1].ids).as_bytes());
                run::derive(run.seed(), &["sft", "dropout", &models[batch[*i].0], &step.to_string(), &row])
            });
            let inputs = prefix.batch(lm, &groups);
            let dropout = here.dropout(seeds.collect(), inputs.lengths());
            let places: Vec<usize> = owners.iter().map(place_of).collect();
            let factors = here.rows(&places, inputs.lengths()).with_dropout(dropout);

            let trace = Trace::new(lm, inputs, factors, *activations);
            let nll = -answer_logp(lm, &trace.batch, &trace.hidden) * Tensor::from_slice(&weights).to_device(lm.device); // [rows]
            let loss = nll.sum(Kind::Float);
            lm::accumulate(&mut gradients, trace.backward(&loss, &parameters, &[], &place)?);
            let values = Vec::<f64>::try_from(nll.detach().to_kind(Kind::Double)).expect("one number a row");
            owners.iter().zip(values).for_each(|(m, value)| losses[*m] += value);
        }

        let rates: Vec<(usize, f64)> =
            present.iter().map(|m| (*m, optimizer.rate(step, plans[*m].batches.len()))).collect();
        let norms = adam.step(&gradients.unwrap_or_default(), 0.0, &rates, &place)?;
        history.push((0..models.len()).map(|m| (answer_tokens[m] > 0).then_some(losses[m])).collect());
        let mut line = json!({"step": step});
        for ((m, rate), norm) in rates.iter().zip(&norms.users) {
            line[format!("user/{}", models[*m])] =
                json!({"loss": losses[*m], "grad_norm": norm, "learning_rate": rate});
        }
        run.log(&line)?;
        step += 1;
        bar.advance(1, &format!("loss {:.3}", losses.iter().sum::<f64>() / present.len() as f64));
        if step.is_multiple_of(save_every_steps.get()) && step < steps {
            let note = serde_json::to_string(&history).expect("plain data");
            lm::write_tensors(&run.state(CHECKPOINT), &adam.state(), Some(("history", note)))?;
            run.checkpointed();
        }
    }
    drop(bar);

    let report = |m: usize| {
        let losses: Vec<f64> = history.iter().filter_map(|s| s[m]).collect();
        let tenth = losses.len().div_ceil(10);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        SftModelReport {
            answers: own[m].len(),
            steps: losses.len(),
            tokens: plans[m].tokens,
            first_loss: mean(&losses[..tenth]),
            final_loss: mean(&losses[losses.len() - tenth..]),
        }
    };
    let reports = models.iter().enumerate().map(|(m, model)| (model.clone(), report(m))).collect();
    Ok((Policies { bank, users: models }, SftReport { models: reports, rows: counts }))
}
