//! Fitting by pooled Bradley-Terry likelihood: `-log sigmoid(r_u(chosen) - r_u(rejected))`, P-ShareLoRA eq. 3.3.
//!
//! Left out on purpose: ties (they carry no likelihood here), margins, reward centring, early stopping.

use data::{Split, Vote};
use lm::{AdamW, Bank, BankConfig, Lm, Middle, Parameter, Plan, Prefix, RowCounts, ScalarHead, Sharing, Tensor, Trace};
use run::{Progress, Run};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::Kind;
use text::Tokenizer;

use crate::config::{RewardConfig, Variant};
use crate::{Error, Result, RewardModel, Texts};

/// What a fit was made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FitReport {
    /// Decided training votes.
    pub votes: usize,
    /// Distinct texts among them.
    pub texts: usize,
    /// Rows left out or changed.
    pub rows: RowCounts,
    /// Optimiser steps, warm-up included.
    pub steps: usize,
    /// Of these, steps of the global warm-up.
    pub warm_up_steps: usize,
    /// Tokens of all rows in all batches.
    pub tokens: usize,
    /// Mean loss over the last tenth of the steps.
    pub final_loss: f64,
}

const CHECKPOINT: &str = "checkpoint.safetensors";

/// Fits one reward model for `users` on the decided training votes, resuming where an earlier run stopped.
pub fn fit(
    config: &RewardConfig,
    lm: &Lm,
    tokenizer: &Tokenizer,
    votes: &[Vote],
    users: &[String],
    run: &mut Run,
) -> Result<(RewardModel, FitReport)> {
    let RewardConfig {
        variant,
        pooling,
        head_scale,
        ref lora,
        ref optimizer,
        batch_votes,
        max_epochs,
        token_budget,
        warm_up_share,
        max_row_tokens,
        over_long,
        micro_batch_tokens,
        activations,
        save_every_steps,
    } = *config;
    let votes: Vec<&Vote> = votes.iter().filter(|v| v.split == Split::Train && !v.tie).collect();
    let texts = Texts::new(tokenizer, votes, max_row_tokens, over_long)?;
    let votes = &texts.votes;
    let owner: Vec<usize> = votes.iter().filter_map(|v| users.binary_search(&v.user_id).ok()).collect();
    let all: Vec<usize> = (0..votes.len()).collect();
    let rng = |epoch: usize| run.rng(&["order", &epoch.to_string()]);
    let Plan { batches, tokens } = lm::plan(&all, batch_votes, max_epochs, token_budget, |v| texts.tokens(v), rng);
    if batches.is_empty() || owner.len() != votes.len() {
        return Err(Error::Invalid {
            place: "reward".into(),
            expected: "at least one batch of training votes, all by known users".into(),
            found: format!("{} votes, {} of known users, a budget of {token_budget} tokens", votes.len(), owner.len()),
            hint: "raise `token_budget` or gather votes".into(),
        });
    }
    let steps = batches.len();
    let warm_up_steps =
        if variant == Variant::PShareLora { (warm_up_share * steps as f64).round() as usize } else { 0 };

    // A warm-up trains one adapter for all; then every user gets a copy of it.
    let (down, up, head_sharing) = variant.sharing();
    let start = |down, up| -> Result<Bank> {
        let config = BankConfig { lora: lora.clone(), down, up, middle: Middle::None, users: users.len() };
        Bank::new(&config, lm, users, |name| run.rng(&["init", name]))
    };
    let head = ScalarHead::new(lm.shape.hidden_size, head_scale as f32, &mut run.rng(&["head"]), lm.device);
    let head = if head_sharing == Sharing::Personal { head.personalised(users.len()) } else { head };
    let saved = Checkpoint::read(run)?;
    let mut step = saved.as_ref().map_or(0, |c| c.step);
    // The checkpoint of the last warm-up step still holds the global adapter.
    let warming = step < warm_up_steps || (saved.is_some() && step == warm_up_steps && warm_up_steps > 0);
    let bank = if warming { start(Sharing::Shared, Sharing::Shared)? } else { start(down, up)? };
    let mut model = RewardModel { bank, head, pooling, users: users.to_vec() };
    let optimiser = |model: &RewardModel| {
        let mut parameters: Vec<Parameter> = model.bank.parameters();
        parameters.push(model.head.parameter());
        AdamW::new(optimizer.clone(), parameters, users.len().try_into().expect("at least one user"))
    };
    let mut adam = optimiser(&model);
    let mut losses = Vec::new();
    if let Some(Checkpoint { mut tensors, losses: earlier, .. }) = saved {
        adam.load_state(&mut tensors)?;
        losses = earlier;
    }
    run.rewind_log(step)?;

    let mut bar = Progress::new("reward: frozen blocks", texts.rows.len(), 0);
    let prefix = Prefix::new(lm, texts.rows.clone(), model.bank.first_block(), |n| bar.advance(n, ""));
    drop(bar);

    let mut bar = Progress::new("reward: training", steps, step);
    while step < steps {
        if step == warm_up_steps && warm_up_steps > 0 {
            model.bank = model.bank.personalised(down, up, users.len());
            adam = optimiser(&model);
        }
        let batch = &batches[step];
        let voters: Vec<usize> = batch.iter().map(|v| owner[*v]).collect();
        let weights = match variant {
            // Every vote counts once.
            Variant::PShareLora | Variant::LoraGlobal => vec![1.0 / batch.len() as f32; batch.len()],
            Variant::LoraLocal => weights_of_user_means(&voters, users.len()),
        };
        let place = format!("reward, step {step}, rows {}", source_rows(votes, batch));
        let parameters: Vec<Tensor> = model.bank.parameters().into_iter().map(|p| p.tensor).collect();
        let seeds = dropout_seeds(run, step, &voters, users);

        // The batch in parts: gradients and margins are those of the whole.
        let lengths: Vec<usize> = batch.iter().map(|v| texts.tokens(*v)).collect();
        let (mut gradients, mut margins) = (None, vec![0.0; batch.len()]);
        for part in lm::under_budget(&lengths, micro_batch_tokens.get()) {
            let pairs: Vec<Vec<usize>> = part.iter().map(|i| texts.pairs[batch[*i]]).map(|(c, r)| vec![c, r]).collect();
            let own: Vec<usize> = part.iter().map(|i| voters[*i]).collect();
            let of_part: Vec<f32> = part.iter().map(|i| weights[*i]).collect();
            let rows = prefix.batch(lm, &pairs);
            let dropout = model.bank.dropout(part.iter().map(|i| seeds[*i]).collect(), rows.lengths());
            let factors = model.bank.rows(&own, rows.lengths()).with_dropout(dropout);

            let trace = Trace::new(lm, &rows, factors, activations);
            let hidden = lm::pooled_hidden(lm, &rows, &trace.hidden, pooling); // [2P, E]
            let twice: Vec<usize> = own.iter().flat_map(|u| [*u, *u]).collect();
            let rewards = model.head.score(&hidden, &twice).view([-1, 2]); // [P, 2]: chosen, rejected
            let margin = rewards.select(1, 0) - rewards.select(1, 1); // [P]
            let loss = (-margin.log_sigmoid() * Tensor::from_slice(&of_part).to_device(lm.device)).sum(Kind::Float);
            let head = [model.head.weight.shallow_clone()];
            lm::accumulate(&mut gradients, trace.backward(&loss, &parameters, &head, &place)?);
            let values = Vec::<f64>::try_from(margin.detach().to_kind(Kind::Double))?;
            part.iter().zip(values).for_each(|(i, value)| margins[*i] = value);
        }

        let rate = optimizer.rate(step, steps);
        let present: Vec<Option<f64>> = (0..users.len()).map(|u| voters.contains(&u).then_some(rate)).collect();
        let norms = adam.step(&gradients.unwrap_or_default(), rate, &present, &place)?;
        let margin = Tensor::from_slice(&margins);
        let each = -margin.log_sigmoid(); // [P]

        let mean = each.mean(Kind::Double).double_value(&[]);
        losses.push(mean);
        let accuracy = margin.gt(0.0).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        run.log(&json!({"step": step, "loss": mean, "accuracy": accuracy,
            "margin": margin.mean(Kind::Double).double_value(&[]), "learning_rate": rate,
            "grad_norm": norms.shared, "grad_norm_users": norms.users}))?;
        step += 1;
        bar.advance(1, &format!("loss {mean:.3}"));
        if step % save_every_steps.get() == 0 && step < steps {
            Checkpoint::write(run, &adam, step, &losses)?;
        }
    }
    let tail = &losses[losses.len() - losses.len().div_ceil(10)..];
    let report = FitReport {
        votes: votes.len(),
        texts: texts.rows.len(),
        rows: texts.counts,
        steps,
        warm_up_steps,
        tokens,
        final_loss: tail.iter().sum::<f64>() / tail.len() as f64,
    };
    Ok((model, report))
}

/// Weights that make a sum over votes the sum of users' means: a user's gradient does not depend on how many votes others
/// have in the batch.
fn weights_of_user_means(owner: &[usize], users: usize) -> Vec<f32> {
    let mut counts = vec![0usize; users];
    owner.iter().for_each(|u| counts[*u] += 1);
    owner.iter().map(|u| 1.0 / counts[*u] as f32).collect()
}

/// A dropout stream for every vote of a step: decided by user, step and the vote's number among the user's.
fn dropout_seeds(run: &Run, step: usize, voters: &[usize], users: &[String]) -> Vec<[u8; 32]> {
    let mut counts = vec![0usize; users.len()];
    let seed = |user: &usize| {
        counts[*user] += 1;
        let name = ["reward", "dropout", &users[*user], &step.to_string(), &counts[*user].to_string()];
        run::derive(run.seed(), &name)
    };
    voters.iter().map(seed).collect()
}

fn source_rows(votes: &[&Vote], batch: &[usize]) -> String {
    batch.iter().map(|v| votes[*v].source_row.as_str()).collect::<Vec<_>>().join(" ")
}

/// Parameters, moments and losses behind some step.
struct Checkpoint {
    step: usize,
    losses: Vec<f64>,
    tensors: lm::Tensors,
}

impl Checkpoint {
    fn write(run: &mut Run, adam: &AdamW, step: usize, losses: &[f64]) -> Result<()> {
        let note = json!({"step": step, "losses": losses}).to_string();
        lm::write_tensors(&run.state(CHECKPOINT), &adam.state(), Some(("progress", note)))?;
        run.checkpointed();
        Ok(())
    }

    fn read(run: &Run) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Note {
            step: usize,
            losses: Vec<f64>,
        }
        let path = run.state(CHECKPOINT);
        if !path.exists() {
            return Ok(None);
        }
        let tensors = lm::read_tensors(&path, tch::Device::Cpu, None)?;
        let note = tensors.metadata.get("progress").and_then(|t| serde_json::from_str::<Note>(t).ok());
        let Note { step, losses } = note.ok_or_else(|| Error::Invalid {
            place: path.display().to_string(),
            expected: "a checkpoint of this stage".into(),
            found: "no progress note".into(),
            hint: "remove the stage's .partial folder and run again".into(),
        })?;
        Ok(Some(Self { step, losses, tensors }))
    }
}
