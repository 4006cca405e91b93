//! DPO for many users at once: raise the chosen answer's log-probability over the rejected one's, measured against the
//! frozen base. Rafailov et al. 2023, eq. 7.
//!
//! Left out on purpose: label smoothing, length normalisation, an added likelihood term.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZero;

use lm::{AdamW, AdamWConfig, Bank, BankConfig, Lm, LoraConfig, Prefix, Sharing, Tensor, TokenRow, answer_logp};
use rand::seq::SliceRandom;
use run::{Progress, Run};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Kind, no_grad};
use text::{Answer, Message, Tokenizer};

use crate::{Error, Pair, Policies, Result};

/// A DPO stage, as written in `configs/dpo/*.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpoConfig {
    /// Rank, scale, layers.
    pub lora: LoraConfig,
    /// Peak learning rate, schedule, clip: each user's own.
    pub optimizer: AdamWConfig,
    /// How far the policy may move from the base: the margin's scale.
    pub beta: f64,
    /// Pairs of each user in a batch.
    pub batch_pairs: NonZero<usize>,
    /// Training ends after so many passes over a user's pairs ...
    pub max_epochs: NonZero<usize>,
    /// ... or with the user's last batch that fits into so many tokens (both rows of every pair).
    pub token_budget_per_user: usize,
    /// A row longer than this is an error that names it.
    pub max_row_tokens: usize,
    /// Steps between two checkpoints.
    pub save_every_steps: NonZero<usize>,
}

/// One user's training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UserReport {
    /// Pairs to learn from.
    pub pairs: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Tokens of all rows in all batches.
    pub tokens: usize,
    /// Mean loss over the last tenth of the steps.
    pub final_loss: f64,
    /// Share of pairs with a positive margin over the same steps.
    pub final_accuracy: f64,
}

/// What training was made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DpoReport {
    /// By user id.
    pub users: BTreeMap<String, UserReport>,
    /// Tokens over all users.
    pub tokens: usize,
}

/// How much more the policy prefers the chosen answer than the reference does, times `beta`.
///
/// `logp`, `logp_ref`: `[2, B]`, summed over answer tokens, row 0 chosen, row 1 rejected. Returns `[B]`.
pub fn dpo_margin(logp: &Tensor, logp_ref: &Tensor, beta: f64) -> Tensor {
    let gain = logp - logp_ref; // [2, B]
    (gain.get(0) - gain.get(1)) * beta
}

/// `-log sigmoid(margin)`, `[B]`; stable at any margin.
pub fn dpo_loss(margin: &Tensor) -> Tensor {
    -margin.log_sigmoid()
}

/// All distinct rows, and where each pair's two are.
struct Rows {
    rows: Vec<TokenRow>,
    pairs: Vec<(usize, usize)>,
}

impl Rows {
    fn new<'a>(tokenizer: &Tokenizer, pairs: &'a [Pair], max_row_tokens: usize) -> Result<Self> {
        let mut out = Self { rows: Vec::new(), pairs: Vec::new() };
        let mut known: HashMap<(&[Message], &Answer), usize> = HashMap::new();
        for pair in pairs {
            let mut index = |answer: &'a Answer| -> Result<usize> {
                if let Some(i) = known.get(&(pair.prompt.as_slice(), answer)) {
                    return Ok(*i);
                }
                let row = tokenizer.row(&pair.prompt, &answer.text, answer.ending())?;
                if row.ids.len() > max_row_tokens {
                    return Err(Error::Invalid {
                        place: format!("dpo, a pair of user `{}`", pair.user),
                        expected: format!("at most {max_row_tokens} tokens of prompt and answer"),
                        found: row.ids.len().to_string(),
                        hint: "raise `max_row_tokens`".into(),
                    });
                }
                out.rows.push(row.into());
                known.insert((&pair.prompt, answer), out.rows.len() - 1);
                Ok(out.rows.len() - 1)
            };
            let both = (index(&pair.chosen)?, index(&pair.rejected)?);
            out.pairs.push(both);
        }
        Ok(out)
    }

    fn tokens(&self, pair: usize) -> usize {
        self.rows[self.pairs[pair].0].ids.len() + self.rows[self.pairs[pair].1].ids.len()
    }
}

/// One user's batches of pair indices, and their tokens: whole batches within the budget, shuffled anew in every epoch
/// by a stream that only the user's id and the epoch decide.
fn plan(config: &DpoConfig, run: &Run, rows: &Rows, own: &[usize], user: &str) -> (Vec<Vec<usize>>, usize) {
    let (mut batches, mut spent) = (Vec::new(), 0);
    for epoch in 0..config.max_epochs.get() {
        let mut order = own.to_vec();
        order.shuffle(&mut run.rng(&["order", user, &epoch.to_string()]));
        for batch in order.chunks(config.batch_pairs.get()) {
            let tokens: usize = batch.iter().map(|p| rows.tokens(*p)).sum();
            if spent + tokens > config.token_budget_per_user {
                return (batches, spent);
            }
            spent += tokens;
            batches.push(batch.to_vec());
        }
    }
    (batches, spent)
}

/// Rows of one forward pass for the reference's log-probabilities.
const REFERENCE_ROWS: usize = 16;

/// Trains a policy for every user in `users`, side by side, resuming where an earlier run stopped.
pub fn train(
    config: &DpoConfig,
    lm: &Lm,
    tokenizer: &Tokenizer,
    pairs: &[Pair],
    users: &[String],
    run: &mut Run,
) -> Result<(Policies, DpoReport)> {
    // No `..`: a new field that nobody reads here does not compile.
    let DpoConfig { lora, optimizer, beta, max_row_tokens, save_every_steps, .. } = config;
    let rows = Rows::new(tokenizer, pairs, *max_row_tokens)?;
    let plans: Vec<(Vec<Vec<usize>>, usize)> = users
        .iter()
        .map(|user| {
            let own: Vec<usize> = (0..pairs.len()).filter(|p| pairs[*p].user == *user).collect();
            plan(config, run, &rows, &own, user)
        })
        .collect();
    if let Some(user) = plans.iter().position(|(batches, _)| batches.is_empty()) {
        return Err(Error::Invalid {
            place: format!("dpo, user `{}`", users[user]),
            expected: "at least one batch of pairs within the token budget".into(),
            found: "none".into(),
            hint: "raise `token_budget_per_user`, or make more pairs".into(),
        });
    }
    let steps = plans.iter().map(|(batches, _)| batches.len()).max().unwrap_or(0);

    let bank_config =
        BankConfig { lora: lora.clone(), down: Sharing::Personal, up: Sharing::Personal, users: users.len() };
    let bank = Bank::new(bank_config, &lm.config, users, lm.device, |name| run.rng(&["init", name]))?;
    let users_count = users.len().try_into().expect("a plan for at least one user");
    let mut adam = AdamW::new(optimizer.clone(), bank.parameters(), users_count);
    let mut history: Vec<Vec<Option<(f64, f64)>>> = Vec::new(); // of each step and user: loss, accuracy
    if let Some((mut tensors, earlier)) = read_checkpoint(run)? {
        adam.load_state(&mut tensors)?;
        history = earlier;
    }
    let mut step = history.len();
    run.rewind_log(step)?;

    let mut bar = Progress::new("dpo: frozen blocks", rows.rows.len(), 0);
    let prefix = Prefix::new(lm, rows.rows.clone(), bank.first_block(), |n| bar.advance(n, ""));
    drop(bar);
    // The reference is the base with no adapter; a row that several users have is computed once.
    let reference: Vec<f32> = match run.finished_part("reference")? {
        Some(saved) => saved,
        None => run.save_part("reference", reference_logp(lm, &prefix))?,
    };

    let mut bar = Progress::new("dpo: training", steps, step);
    while step < steps {
        // Every user's batch of this step, chosen rows before rejected ones.
        let batch: Vec<(usize, usize)> = plans
            .iter()
            .enumerate()
            .flat_map(|(u, (batches, _))| batches.get(step).into_iter().flatten().map(move |p| (u, *p)))
            .collect();
        let indices: Vec<usize> =
            batch.iter().map(|(_, p)| rows.pairs[*p].0).chain(batch.iter().map(|(_, p)| rows.pairs[*p].1)).collect();
        let owners: Vec<usize> = batch.iter().chain(&batch).map(|(u, _)| *u).collect();
        let logp_ref: Vec<f32> = indices.iter().map(|i| reference[*i]).collect();

        let logp = answer_logp(lm, &prefix, &indices, Some(&bank.gather(&owners))).view([2, -1]); // [2, B]
        let logp_ref = Tensor::from_slice(&logp_ref).to_device(lm.device).view([2, -1]);
        let margin = dpo_margin(&logp, &logp_ref, *beta); // [B]
        let each = dpo_loss(&margin); // [B]
        // The sum of the users' means: a user's gradient does not depend on who else is in the batch.
        let counts: Vec<usize> = (0..users.len()).map(|u| batch.iter().filter(|(v, _)| *v == u).count()).collect();
        let weights: Vec<f32> = batch.iter().map(|(u, _)| 1.0 / counts[*u] as f32).collect();
        let loss = (&each * Tensor::from_slice(&weights).to_device(lm.device)).sum(Kind::Float);

        let rates: Vec<Option<f64>> = plans
            .iter()
            .map(|(batches, _)| (step < batches.len()).then(|| optimizer.rate(step, batches.len())))
            .collect();
        let present: Vec<&str> = (0..users.len()).filter(|u| counts[*u] > 0).map(|u| users[u].as_str()).collect();
        let norms = adam.step(&loss, 0.0, &rates, &format!("dpo, step {step}, users {}", present.join(", ")))?;

        let metrics = StepMetrics::new(&each, &margin, &logp, &logp_ref, *beta);
        let of_user = |u: usize| metrics.of(&batch, u);
        history.push((0..users.len()).map(|u| of_user(u).map(|m| (m.loss, m.accuracy))).collect());
        let mut line = json!({"step": step});
        for (u, user) in users.iter().enumerate() {
            if let Some(m) = of_user(u) {
                line[format!("user/{user}")] = json!({"loss": m.loss, "rewards/chosen": m.chosen,
                    "rewards/rejected": m.rejected, "rewards/accuracies": m.accuracy,
                    "rewards/margins": m.chosen - m.rejected, "logps/chosen": m.logp_chosen,
                    "logps/rejected": m.logp_rejected, "grad_norm": norms.users[u], "learning_rate": rates[u]});
            }
        }
        run.log(&line)?;
        step += 1;
        let mean: f64 = metrics.loss.iter().sum::<f64>() / metrics.loss.len() as f64;
        bar.advance(1, &format!("loss {mean:.3}"));
        if step.is_multiple_of(save_every_steps.get()) && step < steps {
            let note = serde_json::to_string(&history).expect("plain data");
            lm::write_tensors(&run.state(CHECKPOINT), &adam.state(), Some(("history", note)))?;
            run.checkpointed();
        }
    }
    drop(bar);

    let mut report = DpoReport { users: BTreeMap::new(), tokens: plans.iter().map(|(_, tokens)| tokens).sum() };
    for (u, user) in users.iter().enumerate() {
        let own: Vec<(f64, f64)> = history.iter().filter_map(|s| s[u]).collect();
        let tail = &own[own.len() - own.len().div_ceil(10)..];
        let mean = |f: fn(&(f64, f64)) -> f64| tail.iter().map(f).sum::<f64>() / tail.len() as f64;
        let entry = UserReport {
            pairs: pairs.iter().filter(|p| p.user == *user).count(),
            steps: own.len(),
            tokens: plans[u].1,
            final_loss: mean(|m| m.0),
            final_accuracy: mean(|m| m.1),
        };
        report.users.insert(user.clone(), entry);
    }
    Ok((Policies { bank, users: users.to_vec() }, report))
}

const CHECKPOINT: &str = "checkpoint.safetensors";

type History = Vec<Vec<Option<(f64, f64)>>>;

fn read_checkpoint(run: &Run) -> Result<Option<(lm::Tensors, History)>> {
    let path = run.state(CHECKPOINT);
    if !path.exists() {
        return Ok(None);
    }
    let tensors = lm::read_tensors(&path, tch::Device::Cpu, None)?;
    let history = tensors.metadata.get("history").and_then(|t| serde_json::from_str::<History>(t).ok());
    let history = history.ok_or_else(|| Error::Invalid {
        place: path.display().to_string(),
        expected: "a checkpoint of this stage".into(),
        found: "no history in its header".into(),
        hint: "remove the stage's .partial folder and run again".into(),
    })?;
    Ok(Some((tensors, history)))
}

/// Log-probabilities of every row under the base.
fn reference_logp(lm: &Lm, prefix: &Prefix) -> Vec<f32> {
    let mut bar = Progress::new("dpo: reference", prefix.rows().len(), 0);
    let indices: Vec<usize> = (0..prefix.rows().len()).collect();
    let mut out = Vec::with_capacity(indices.len());
    for batch in indices.chunks(REFERENCE_ROWS) {
        let logp = no_grad(|| answer_logp(lm, prefix, batch, None));
        out.extend(Vec::<f32>::try_from(logp).expect("one number a row"));
        bar.advance(batch.len(), "");
    }
    out
}

/// TRL's names for what is seen of a step, pair by pair.
struct StepMetrics {
    loss: Vec<f64>,
    margin: Vec<f64>,
    chosen: Vec<f64>,
    rejected: Vec<f64>,
    logp: Vec<f64>,
}

struct UserMetrics {
    loss: f64,
    accuracy: f64,
    chosen: f64,
    rejected: f64,
    logp_chosen: f64,
    logp_rejected: f64,
}

impl StepMetrics {
    fn new(each: &Tensor, margin: &Tensor, logp: &Tensor, logp_ref: &Tensor, beta: f64) -> Self {
        let list = |t: &Tensor| Vec::<f64>::try_from(t.detach().to_kind(Kind::Double).reshape(-1)).expect("a list");
        let rewards = (logp - logp_ref) * beta;
        Self {
            loss: list(each),
            margin: list(margin),
            chosen: list(&rewards.get(0)),
            rejected: list(&rewards.get(1)),
            logp: list(logp),
        }
    }

    fn of(&self, batch: &[(usize, usize)], user: usize) -> Option<UserMetrics> {
        let own: Vec<usize> = (0..batch.len()).filter(|b| batch[*b].0 == user).collect();
        if own.is_empty() {
            return None;
        }
        let mean = |f: &dyn Fn(usize) -> f64| own.iter().map(|b| f(*b)).sum::<f64>() / own.len() as f64;
        Some(UserMetrics {
            loss: mean(&|b| self.loss[b]),
            accuracy: mean(&|b| f64::from(u8::from(self.margin[b] > 0.0))),
            chosen: mean(&|b| self.chosen[b]),
            rejected: mean(&|b| self.rejected[b]),
            logp_chosen: mean(&|b| self.logp[b]),
            logp_rejected: mean(&|b| self.logp[b + batch.len()]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dpo_loss_matches_hand_worked_pairs() {
        // Gains of the chosen: -10 - -11 = 1 and -7 - -6 = -1; of the rejected: -12 - -10 = -2 and -9 - -9 = 0.
        // Margins at beta .1: .3 and -.1; -log sigmoid: ln(1 + e^-.3) = .554355 and ln(1 + e^.1) = .744397.
        let logp = Tensor::from_slice(&[-10.0, -7.0, -12.0, -9.0]).view([2, 2]);
        let logp_ref = Tensor::from_slice(&[-11.0, -6.0, -10.0, -9.0]).view([2, 2]);
        let margin = dpo_margin(&logp, &logp_ref, 0.1);
        let close = |t: &Tensor, want: [f64; 2]| {
            let got: Vec<f64> = Vec::try_from(t).unwrap();
            assert!((got[0] - want[0]).abs() < 1e-6 && (got[1] - want[1]).abs() < 1e-6, "{got:?}");
        };
        close(&margin, [0.3, -0.1]);
        close(&dpo_loss(&margin), [0.554_355, 0.744_397]);
        // Nothing overflows at margins of 1000.
        close(&dpo_loss(&Tensor::from_slice(&[1000.0, -1000.0])), [0.0, 1000.0]);
    }
}
