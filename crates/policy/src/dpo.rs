//! DPO for many users at once: raise the chosen answer's log-probability over the rejected one's, measured against the
//! frozen base. Rafailov et al. 2023, eq. 7, and its kin ([`crate::PairLoss`]).

use std::collections::{BTreeMap, HashMap};
use std::num::NonZero;

use lm::{
    Activations, AdamW, AdamWConfig, Bank, BankConfig, Lm, LoraConfig, Middle, Plan, Prefix, RowCounts, RowSet,
    Sharing, Storage, Tensor, TokenRow, Trace, answer_logp,
};
use run::{Progress, Run};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Kind, no_grad};
use text::{Answer, OverLong, Tokenizer};

use crate::losses::{PairLogps, PairLoss, PairObjective};
use crate::{Error, Pair, Policies, Result};

/// A DPO stage, as written in `configs/dpo/*.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DpoConfig {
    /// Rank, scale, layers.
    pub lora: LoraConfig,
    /// Where policies start; also what they are measured against.
    pub start: Start,
    /// Peak learning rate, schedule, clip: each user's own.
    pub optimizer: AdamWConfig,
    /// How far the policy may move from the base: the margin's scale.
    pub beta: f64,
    /// What a pair's margin is turned into.
    #[serde(default, skip_serializing_if = "is_default")]
    pub loss: PairLoss,
    /// Share of pairs taken to be the wrong way round.
    #[serde(default, skip_serializing_if = "is_default")]
    pub label_smoothing: f64,
    /// Weight of the chosen answer's negative log-likelihood a token.
    #[serde(default, skip_serializing_if = "is_default")]
    pub nll: f64,
    /// Pairs of each user in a batch.
    pub batch_pairs: NonZero<usize>,
    /// Training ends after so many passes over a user's pairs ...
    pub max_epochs: NonZero<usize>,
    /// ... or with the user's last batch that fits into so many tokens (both rows of every pair).
    pub token_budget_per_user: usize,
    /// Tokens of prompt and answer.
    pub max_row_tokens: usize,
    /// What becomes of a pair with a longer row.
    pub over_long: OverLong,
    /// A batch is computed in parts of so many tokens; the result does not change.
    pub micro_batch_tokens: NonZero<usize>,
    /// What a part keeps for its backward pass.
    pub activations: Activations,
    /// Steps between two checkpoints.
    pub save_every_steps: NonZero<usize>,
}

/// A setting that is not there is the same as its default, also for who asks whether a stage stands.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
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
    /// Rows left out or changed.
    pub rows: RowCounts,
}

/// Where DPO's policies start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// As the base.
    Base,
    /// As the per-user policies of the stage `sft`.
    Sft,
}

/// All distinct rows, and where each pair's two are.
struct Tokenised<'a> {
    rows: Vec<TokenRow>,
    kept: Vec<&'a Pair>,
    pairs: Vec<(usize, usize)>,
    counts: RowCounts,
}

impl<'a> Tokenised<'a> {
    fn new(tokenizer: &'a Tokenizer, pairs: &'a [Pair], max_row_tokens: usize, over_long: OverLong) -> Result<Self> {
        let mut set = RowSet::new(tokenizer, max_row_tokens, over_long);
        let (mut kept, mut places) = (Vec::new(), Vec::new());
        for (n, pair) in pairs.iter().enumerate() {
            let mut index = |answer: &'a Answer| {
                let place = || format!("dpo, pair {} of user `{}`", n + 1, pair.user);
                set.index(&pair.prompt, &answer.text, answer.ending(), place)
            };
            let (chosen, rejected) = (index(&pair.chosen)?, index(&pair.rejected)?);
            if let Some(both) = chosen.zip(rejected) {
                kept.push(pair);
                places.push(both);
            }
        }
        Ok(Self { rows: set.rows, kept, pairs: places, counts: set.counts })
    }

    /// Tokens of the pair's two answers.
    fn answer_tokens(&self, pair: usize) -> [f32; 2] {
        let (chosen, rejected) = self.pairs[pair];
        [chosen, rejected].map(|i| (self.rows[i].ids.len() - self.rows[i].answer_start.max(1)) as f32)
    }

    fn tokens(&self, pair: usize) -> usize {
        self.rows[self.pairs[pair].0].ids.len() + self.rows[self.pairs[pair].1].ids.len()
    }
}

/// Trains a policy for every user in `users`, side by side, resuming where an earlier run stopped.
pub fn train(
    config: &DpoConfig,
    lm: &Lm,
    tokenizer: &Tokenizer,
    pairs: &[Pair],
    users: &[String],
    start: Option<Policies>,
    run: &mut Run,
) -> Result<(Policies, DpoReport)> {
    // No `..`: a new field that nobody reads here does not compile.
    let DpoConfig {
        lora,
        optimizer,
        beta,
        loss,
        label_smoothing,
        nll,
        batch_pairs,
        max_epochs,
        token_budget_per_user,
        max_row_tokens,
        over_long,
        start: _,
        micro_batch_tokens,
        activations,
        save_every_steps,
    } = config;
    let objective = PairObjective { loss: *loss, beta: *beta, label_smoothing: *label_smoothing, nll: *nll };
    if let Some((key, expected, found)) = objective.problem() {
        return Err(Error::Invalid {
            place: format!("dpo, `{key}`"),
            expected: expected.into(),
            found: found.to_string(),
            hint: "configs/dpo/per-user.toml is an example".into(),
        });
    }
    let rows = Tokenised::new(tokenizer, pairs, *max_row_tokens, *over_long)?;
    let pairs = &rows.kept;
    // The order is a stream that only the user's id and the epoch decide.
    let plans: Vec<Plan> = users
        .iter()
        .map(|user| {
            let own: Vec<usize> = (0..pairs.len()).filter(|p| pairs[*p].user == *user).collect();
            let rng = |epoch: usize| run.rng(&["order", user, &epoch.to_string()]);
            lm::plan(&own, *batch_pairs, *max_epochs, *token_budget_per_user, |p| rows.tokens(p), rng)
        })
        .collect();
    if let Some(user) = plans.iter().position(|plan| plan.batches.is_empty()) {
        return Err(Error::Invalid {
            place: format!("dpo, user `{}`", users[user]),
            expected: "at least one batch of pairs within the token budget".into(),
            found: "none".into(),
            hint: "raise `token_budget_per_user`, or make more pairs".into(),
        });
    }
    let steps = plans.iter().map(|plan| plan.batches.len()).max().unwrap_or(0);

    let (down, up) = (Sharing::Personal, Sharing::Personal);
    let bank_config = BankConfig { lora: lora.clone(), down, up, middle: Middle::None, users: users.len() };
    let started = start.is_some();
    let bank = match start {
        None => Bank::new(&bank_config, lm, users, &Storage::memory(), |name| run.rng(&["init", name]))?,
        Some(Policies { bank, users: theirs }) if theirs == users && *bank.config() == bank_config => bank,
        Some(Policies { bank, users: theirs }) => {
            return Err(Error::Invalid {
                place: "dpo, the policies to start from".into(),
                expected: format!("users {} and the same `lora`", users.join(", ")),
                found: format!("users {} and {:?}", theirs.join(", "), bank.config().lora),
                hint: "give the stages `sft` and `dpo` the same `lora` table, and every user pairs".into(),
            });
        }
    };
    let mut bar = Progress::new("dpo: frozen blocks", rows.rows.len(), 0);
    let prefix = Prefix::new(lm, rows.rows.clone(), bank.first_block()..lm.depth(), |n| bar.advance(n, ""))?;
    drop(bar);
    // The reference of each pair's two rows: what the policies start as. A row that several users have is computed once
    // where they start as the base.
    let reference: Vec<[f32; 2]> = match run.finished_part("reference")? {
        Some(saved) => saved,
        None if matches!(loss, PairLoss::Simpo { .. }) => vec![[0.0; 2]; rows.pairs.len()], // it has none
        None => run.save_part("reference", reference_logp(lm, &prefix, &rows, started.then_some(&bank), users))?,
    };

    let users_count = users.len().try_into().expect("a plan for at least one user");
    let mut adam = AdamW::new(optimizer.clone(), bank.parameters(), users_count, &Storage::memory())?;
    let mut history: Vec<Vec<Option<(f64, f64)>>> = Vec::new(); // of each step and user: loss, accuracy
    if let Some((mut tensors, earlier)) = read_checkpoint(run)? {
        adam.load_state(&mut tensors)?;
        history = earlier;
    }
    let mut step = history.len();
    run.rewind_log(step)?;

    let mut bar = Progress::new("dpo: training", steps, step);
    while step < steps {
        // Every user's batch of this step.
        let batch: Vec<(usize, usize)> = plans
            .iter()
            .enumerate()
            .flat_map(|(u, plan)| plan.batches.get(step).into_iter().flatten().map(move |p| (u, *p)))
            .collect();
        // The sum of the users' means: a user's gradient does not depend on who else is in the batch.
        let counts: Vec<usize> = (0..users.len()).map(|u| batch.iter().filter(|(v, _)| *v == u).count()).collect();
        let present: Vec<usize> = (0..users.len()).filter(|u| counts[*u] > 0).collect();
        let names: Vec<&str> = present.iter().map(|u| users[*u].as_str()).collect();
        let place = format!("dpo, step {step}, users {}, pairs {}", names.join(", "), numbers(&batch));
        let here = bank.present(&present);
        let parameters: Vec<Tensor> = here.parameters().into_iter().map(|p| p.tensor).collect();
        let place_of = |u: &usize| present.binary_search(u).expect("users of the batch, in order");
        let seeds = dropout_seeds(run, step, &batch, users);

        // The batch in parts: gradients and metrics are those of the whole.
        let lengths: Vec<usize> = batch.iter().map(|(_, p)| rows.tokens(*p)).collect();
        let (mut gradients, mut metrics) = (None, vec![PairMetrics::default(); batch.len()]);
        for part in lm::under_budget(&lengths, micro_batch_tokens.get()) {
            let groups: Vec<Vec<usize>> =
                part.iter().map(|i| rows.pairs[batch[*i].1]).map(|(c, r)| vec![c, r]).collect();
            let own: Vec<usize> = part.iter().map(|i| batch[*i].0).collect();
            let of_rows: Vec<f32> = part.iter().flat_map(|i| reference[batch[*i].1]).collect();
            let weights: Vec<f32> = own.iter().map(|u| 1.0 / counts[*u] as f32).collect();
            let on_device = |values: &[f32]| Tensor::from_slice(values).to_device(lm.device);
            let inputs = prefix.batch(lm, &groups);
            let dropout = here.dropout(part.iter().map(|i| seeds[*i]).collect(), inputs.lengths());
            let owners: Vec<usize> = own.iter().map(place_of).collect();
            let factors = here.rows(&owners, inputs.lengths()).with_dropout(dropout);

            let trace = Trace::new(lm, &inputs, factors, *activations);
            let logp = answer_logp(lm, &inputs, &trace.hidden).view([-1, 2]).tr(); // [2, P]: chosen, rejected
            let logp_ref = on_device(&of_rows).view([-1, 2]).tr();
            let tokens: Vec<f32> = part.iter().flat_map(|i| rows.answer_tokens(batch[*i].1)).collect();
            let tokens = on_device(&tokens).view([-1, 2]).tr();
            let pairs = PairLogps { policy: &logp, reference: &logp_ref, tokens: &tokens };
            let each = objective.losses(&pairs); // [P]
            let loss = (&each * on_device(&weights)).sum(Kind::Float);
            lm::accumulate(&mut gradients, trace.backward(&loss, &parameters, &[], &place)?);
            let values = PairMetrics::of(&each, &objective.rewards(&pairs), &logp);
            part.iter().zip(values).for_each(|(i, value)| metrics[*i] = value);
        }

        let rates: Vec<(usize, f64)> =
            present.iter().map(|u| (*u, optimizer.rate(step, plans[*u].batches.len()))).collect();
        let norms = adam.step(&gradients.unwrap_or_default(), 0.0, &rates, &place)?;

        let of_user =
            |u: usize| PairMetrics::mean(batch.iter().zip(&metrics).filter(|((v, _), _)| *v == u).map(|(_, m)| m));
        history.push((0..users.len()).map(|u| of_user(u).map(|m| (m.loss, m.accuracy))).collect());
        let mut line = json!({"step": step});
        for ((u, rate), norm) in rates.iter().zip(&norms.users) {
            if let Some(m) = of_user(*u) {
                let user = &users[*u];
                line[format!("user/{user}")] = json!({"loss": m.loss, "rewards/chosen": m.chosen,
                    "rewards/rejected": m.rejected, "rewards/accuracies": m.accuracy,
                    "rewards/margins": m.chosen - m.rejected, "logps/chosen": m.logp_chosen,
                    "logps/rejected": m.logp_rejected, "grad_norm": norm, "learning_rate": rate});
            }
        }
        run.log(&line)?;
        step += 1;
        let mean: f64 = metrics.iter().map(|m| m.loss).sum::<f64>() / metrics.len() as f64;
        bar.advance(1, &format!("loss {mean:.3}"));
        if step.is_multiple_of(save_every_steps.get()) && step < steps {
            let note = serde_json::to_string(&history).expect("plain data");
            lm::write_tensors(&run.state(CHECKPOINT), &adam.state(), Some(("history", note)))?;
            run.checkpointed();
        }
    }
    drop(bar);

    let mut report =
        DpoReport { users: BTreeMap::new(), tokens: plans.iter().map(|plan| plan.tokens).sum(), rows: rows.counts };
    for (u, user) in users.iter().enumerate() {
        let own: Vec<(f64, f64)> = history.iter().filter_map(|s| s[u]).collect();
        let tail = &own[own.len() - own.len().div_ceil(10)..];
        let mean = |f: fn(&(f64, f64)) -> f64| tail.iter().map(f).sum::<f64>() / tail.len() as f64;
        let entry = UserReport {
            pairs: pairs.iter().filter(|p| p.user == *user).count(),
            steps: own.len(),
            tokens: plans[u].tokens,
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

/// Numbers of a batch's pairs in the table, for messages.
fn numbers(batch: &[(usize, usize)]) -> String {
    batch.iter().map(|(_, p)| (p + 1).to_string()).collect::<Vec<_>>().join(" ")
}

/// A dropout stream for every pair of a step: decided by user, step and the pair's number among the user's.
fn dropout_seeds(run: &Run, step: usize, batch: &[(usize, usize)], users: &[String]) -> Vec<[u8; 32]> {
    let mut counts = vec![0usize; users.len()];
    let seed = |(user, _): &(usize, usize)| {
        counts[*user] += 1;
        let name = ["dpo", "dropout", &users[*user], &step.to_string(), &counts[*user].to_string()];
        run::derive(run.seed(), &name)
    };
    batch.iter().map(seed).collect()
}

/// Log-probabilities of each pair's (chosen, rejected) under the base, or under its user's policy in `bank`.
fn reference_logp(lm: &Lm, prefix: &Prefix, rows: &Tokenised, bank: Option<&Bank>, users: &[String]) -> Vec<[f32; 2]> {
    let mut bar = Progress::new("dpo: reference", rows.pairs.len(), 0);
    let mut out = vec![[0.0; 2]; rows.pairs.len()];
    let owners = if bank.is_some() { users.len() } else { 1 };
    for (owner, user) in users.iter().enumerate().take(owners) {
        let own = |p: &usize| bank.is_none() || rows.kept[*p].user == *user;
        let pairs: Vec<usize> = (0..rows.pairs.len()).filter(own).collect();
        let mut needed: Vec<usize> = pairs.iter().flat_map(|p| [rows.pairs[*p].0, rows.pairs[*p].1]).collect();
        needed.sort_unstable();
        needed.dedup();
        let mut by_row = HashMap::new();
        for groups in prefix.passes(&needed) {
            let batch = prefix.batch(lm, &groups);
            let factors = bank.map(|b| b.rows(&vec![owner; groups.len()], batch.lengths()));
            let logp = no_grad(|| answer_logp(lm, &batch, &lm::forward(lm, &batch, factors.as_ref())));
            let logp = Vec::<f32>::try_from(logp).expect("one number a row");
            by_row.extend(groups.into_iter().flatten().zip(logp));
        }
        for p in &pairs {
            out[*p] = [by_row[&rows.pairs[*p].0], by_row[&rows.pairs[*p].1]];
        }
        bar.advance(pairs.len(), "");
    }
    out
}

/// What is seen of a pair in a step.
#[derive(Clone, Debug, Default)]
struct PairMetrics {
    loss: f64,
    accuracy: f64,
    chosen: f64,
    rejected: f64,
    logp_chosen: f64,
    logp_rejected: f64,
}

impl PairMetrics {
    fn of(each: &Tensor, rewards: &Tensor, logp: &Tensor) -> Vec<Self> {
        let list = |t: &Tensor| Vec::<f64>::try_from(t.detach().to_kind(Kind::Double).reshape(-1)).expect("a list");
        let (loss, margin) = (list(each), list(&(rewards.get(0) - rewards.get(1))));
        let (chosen, rejected) = (list(&rewards.get(0)), list(&rewards.get(1)));
        let (logp_chosen, logp_rejected) = (list(&logp.get(0)), list(&logp.get(1)));
        let pair = |i: usize| Self {
            loss: loss[i],
            accuracy: f64::from(u8::from(margin[i] > 0.0)),
            chosen: chosen[i],
            rejected: rejected[i],
            logp_chosen: logp_chosen[i],
            logp_rejected: logp_rejected[i],
        };
        (0..loss.len()).map(pair).collect()
    }

    fn mean<'a>(pairs: impl Iterator<Item = &'a Self>) -> Option<Self> {
        let all: Vec<&Self> = pairs.collect();
        let mean = |f: fn(&Self) -> f64| all.iter().map(|m| f(m)).sum::<f64>() / all.len() as f64;
        (!all.is_empty()).then(|| Self {
            loss: mean(|m| m.loss),
            accuracy: mean(|m| m.accuracy),
            chosen: mean(|m| m.chosen),
            rejected: mean(|m| m.rejected),
            logp_chosen: mean(|m| m.logp_chosen),
            logp_rejected: mean(|m| m.logp_rejected),
        })
    }
}
