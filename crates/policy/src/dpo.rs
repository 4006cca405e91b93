//! DPO for many users at once: raise the chosen answer's log-probability over the rejected one's, measured against the
//! frozen base. Rafailov et al. 2023, eq. 7, and its kin ([`crate::PairLoss`]).

use std::collections::BTreeMap;

use lm::{AdamW, Bank, Lm, Plan, Prefix, Storage, Tensor, Trace, answer_token_logp};
use problem::{Result, invalid};
use run::{Progress, Run};
use serde_json::json;
use tch::Kind;
use text::Tokenizer;

use crate::dpo_record::{DpoReport, Learner, PairMetrics, Standing, UserReport, WorstDecile, worst_tenth};
use crate::dpo_rows::{Tokenised, reference_logp};
use crate::losses::{PairLogps, PairLoss};
use crate::model::{nobody_left, shared_rate, starting_bank};
use crate::{DpoConfig, Pair, Policies};

/// What a step's gradients are computed from.
struct Inputs<'a> {
    config: &'a DpoConfig,
    lm: &'a Lm,
    rows: &'a Tokenised<'a>,
    prefix: &'a Prefix,
    reference: &'a [[f32; 2]],
    betas: &'a [f32], // of each user
    bank: &'a Bank,
}

/// A user whose numbers left the finite ones, and which.
struct Fault {
    user: usize,
    what: &'static str,
}

/// Gradients in the order of the parameters, and what was seen of each pair.
type Gradients = std::result::Result<(Vec<Tensor>, Vec<PairMetrics>), Fault>;

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
    config.check(users)?;
    let rows = Tokenised::new(config, tokenizer, pairs)?;
    let pairs = &rows.kept;
    // The order is a stream that only the user's id and the epoch decide.
    let plan_of = |user: &String| {
        let own: Vec<usize> = (0..pairs.len()).filter(|p| pairs[*p].user == *user).collect();
        let rng = |epoch: usize| run.rng(&["order", user, &epoch.to_string()]);
        let budget = config.token_budget_per_user;
        let mut plan = lm::plan(&own, config.batch_pairs, config.max_epochs, budget, |p| rows.tokens(p), rng);
        if let Some(steps) = config.user.get(user).and_then(|own| own.steps) {
            plan.batches.truncate(steps.get());
            plan.tokens = plan.batches.iter().flatten().map(|p| rows.tokens(*p)).sum();
        }
        plan
    };
    let plans: Vec<Plan> = users.iter().map(plan_of).collect();
    let optimizers: Vec<_> = users.iter().map(|u| config.optimizer_of(u)).collect();
    let betas: Vec<f32> = users.iter().map(|u| config.beta_of(u) as f32).collect();

    let started = start.is_some();
    let bank = starting_bank("dpo", &config.lora, config.personal, lm, users, start, run)?;
    let frozen = run::phase("frozen blocks");
    let mut bar = Progress::new("dpo: frozen blocks", rows.rows.len(), 0);
    let prefix = Prefix::new(lm, rows.rows.clone(), bank.first_block()..lm.depth(), |n| bar.advance(n, ""))?;
    drop((bar, frozen));
    // The reference of each pair's two rows: what the policies start as. A row that several users have is computed once
    // where they start as the base.
    let reference: Vec<[f32; 2]> = match run.finished_part("reference")? {
        Some(saved) => saved,
        None if matches!(config.loss, PairLoss::Simpo { .. }) => vec![[0.0; 2]; rows.pairs.len()], // it has none
        None => {
            let reference = reference_logp(lm, &prefix, &rows, started.then_some(&bank), users, run)?;
            run.save_part("reference", reference)?
        }
    };
    let inputs = Inputs { config, lm, rows: &rows, prefix: &prefix, reference: &reference, betas: &betas, bank: &bank };

    let users_count = users.len().try_into().expect("at least one user");
    let mut adam = AdamW::new(config.optimizer.clone(), bank.parameters(), users_count, &Storage::memory())?;
    let none = "no batch of pairs within the token budget";
    let fresh = |plan: &Plan| Learner { past: vec![], quarantined: plan.batches.is_empty().then(|| none.to_owned()) };
    let mut standing = Standing { tick: 0, learners: plans.iter().map(fresh).collect() };
    if let Some((mut tensors, saved)) = read_checkpoint(run)? {
        adam.load_state(&mut tensors)?;
        standing = saved;
    }
    run.rewind_log(standing.tick)?;

    let total = plans.iter().map(|plan| plan.batches.len()).sum();
    let _phase = run::phase("training");
    let mut bar = Progress::new("dpo: steps of users", total, standing.learners.iter().map(|l| l.past.len()).sum());
    loop {
        // The first users who are not through, with each one's next batch: a user's own step number decides all that is drawn.
        let busy = |u: &usize| {
            let Learner { past, quarantined } = &standing.learners[*u];
            quarantined.is_none() && past.len() < plans[*u].batches.len()
        };
        let at_once = config.users_at_once.map_or(users.len(), std::num::NonZero::get);
        let active: Vec<usize> = (0..users.len()).filter(busy).take(at_once).collect();
        if active.is_empty() {
            break;
        }
        let steps: Vec<usize> = standing.learners.iter().map(|l| l.past.len()).collect();
        let batch: Vec<(usize, usize)> =
            active.iter().flat_map(|u| plans[*u].batches[steps[*u]].iter().map(move |p| (*u, *p))).collect();
        let names: Vec<&str> = active.iter().map(|u| users[*u].as_str()).collect();
        let _step = run::step(standing.tick);
        let place = format!("dpo, step {}, users {}, pairs {}", standing.tick, names.join(", "), numbers(&batch));
        let seeds = dropout_seeds(run, &steps, &batch, users);
        let fault = match gradients(&inputs, &batch, &active, &seeds, &place)? {
            Err(fault) => Some(fault),
            Ok((gradients, metrics)) => {
                let norms = adam.norms(&gradients, active.len())?;
                match norms.users.iter().position(|n| !n.is_finite()) {
                    Some(at) => Some(Fault { user: active[at], what: "the gradient" }),
                    None => {
                        let rate = |u: &usize| optimizers[*u].rate(steps[*u], plans[*u].batches.len());
                        let rates: Vec<(usize, f64)> = active.iter().map(|u| (*u, rate(u))).collect();
                        adam.step(&gradients, shared_rate(&rates), &rates, &place)?;
                        let mut line = json!({"step": standing.tick});
                        for ((u, rate), norm) in rates.iter().zip(&norms.users) {
                            let own = batch.iter().zip(&metrics).filter(|((v, _), _)| v == u).map(|(_, m)| m);
                            let m = PairMetrics::mean(own).expect("a pair of every active user");
                            standing.learners[*u].past.push((m.loss, m.accuracy));
                            line[format!("user/{}", users[*u])] = json!({
                                "loss": m.loss, "rewards/chosen": m.chosen, "rewards/rejected": m.rejected,
                                "rewards/accuracies": m.accuracy, "rewards/margins": m.chosen - m.rejected,
                                "logps/chosen": m.logp_chosen, "logps/rejected": m.logp_rejected,
                                "grad_norm": norm, "learning_rate": rate});
                        }
                        let latest = |u: &usize| *standing.learners[*u].past.last().expect("this step's");
                        line["worst_decile/loss"] = json!(worst_tenth(active.iter().map(|u| latest(u).0), true));
                        line["worst_decile/rewards/accuracies"] =
                            json!(worst_tenth(active.iter().map(|u| latest(u).1), false));
                        run.log(&line)?;
                        let mean: f64 = metrics.iter().map(|m| m.loss).sum::<f64>() / metrics.len() as f64;
                        bar.advance(active.len(), &format!("loss {mean:.3}"));
                        None
                    }
                }
            }
        };
        if let Some(Fault { user, what }) = fault {
            // Nothing was changed; the others take this step without them.
            let why = format!("step {} of the user's: {what} is not finite", steps[user]);
            standing.learners[user].quarantined = Some(why);
            continue;
        }
        standing.tick += 1;
        let left = |(learner, plan): (&Learner, &Plan)| learner.past.len() < plan.batches.len();
        let more = standing.learners.iter().zip(&plans).any(left);
        if standing.tick.is_multiple_of(config.save_every_steps.get()) && more {
            let note = serde_json::to_string(&standing).expect("plain data");
            lm::write_tensors(&run.state(CHECKPOINT), &adam.state(), Some((STANDING, note)))?;
            run.checkpointed();
        }
    }
    drop(bar);

    let mut report = DpoReport {
        users: BTreeMap::new(),
        quarantined: BTreeMap::new(),
        worst_decile: WorstDecile::default(),
        tokens: 0,
        rows: rows.counts,
    };
    for ((user, learner), plan) in users.iter().zip(&standing.learners).zip(&plans) {
        let taken = &plan.batches[..learner.past.len()];
        let tokens: usize = taken.iter().flatten().map(|p| rows.tokens(*p)).sum();
        report.tokens += tokens;
        if let Some(why) = &learner.quarantined {
            report.quarantined.insert(user.clone(), why.clone());
            continue;
        }
        let past = &learner.past;
        let tail = &past[past.len() - past.len().div_ceil(10)..];
        let mean = |f: fn(&(f64, f64)) -> f64| tail.iter().map(f).sum::<f64>() / tail.len() as f64;
        let pairs = pairs.iter().filter(|p| p.user == *user).count();
        let (final_loss, final_accuracy) = (mean(|m| m.0), mean(|m| m.1));
        let entry = UserReport { pairs, steps: past.len(), tokens, final_loss, final_accuracy };
        report.users.insert(user.clone(), entry);
    }
    report.worst_decile = WorstDecile::of(&report.users);
    let healthy: Vec<usize> = (0..users.len()).filter(|u| standing.learners[*u].quarantined.is_none()).collect();
    if healthy.is_empty() {
        return Err(nobody_left("dpo", &report.quarantined));
    }
    let names = healthy.iter().map(|u| users[*u].clone()).collect();
    Ok((Policies { bank: bank.present(&healthy), users: names }, report))
}

/// Gradients of the sum over users of their pairs' weighted mean loss: a user's does not depend on who else is in the batch. The batch
/// is computed in parts; gradients and metrics are those of the whole.
fn gradients(
    inputs: &Inputs,
    batch: &[(usize, usize)],
    present: &[usize],
    seeds: &[[u8; 32]],
    place: &str,
) -> Result<Gradients> {
    let Inputs { config, lm, rows, prefix, reference, betas, bank } = *inputs;
    let objective = config.objective();
    let weight_of = |(_, p): &(usize, usize)| rows.kept[*p].weight;
    let whole = |u: usize| batch.iter().filter(|(v, _)| *v == u).map(weight_of).sum::<f32>();
    let here = bank.present(present);
    let parameters: Vec<Tensor> = here.parameters().into_iter().map(|p| p.tensor).collect();
    let place_of = |u: &usize| present.binary_search(u).expect("users of the batch, in order");
    let on_device = |values: &[f32]| Tensor::from_slice(values).to_device(lm.device);
    let in_pairs = |values: &[f32]| on_device(values).view([-1, 2]).tr(); // [2, P]: chosen, rejected
    let lengths: Vec<usize> = batch.iter().map(|(_, p)| rows.tokens(*p)).collect();
    let (mut sum, mut metrics) = (None, vec![PairMetrics::default(); batch.len()]);
    for part in lm::under_budget(&lengths, config.micro_batch_tokens.get()) {
        let groups: Vec<Vec<usize>> = part.iter().map(|i| rows.pairs[batch[*i].1]).map(|(c, r)| vec![c, r]).collect();
        let own: Vec<usize> = part.iter().map(|i| batch[*i].0).collect();
        let of_rows: Vec<f32> = part.iter().flat_map(|i| reference[batch[*i].1]).collect();
        let shares: Vec<f32> = part.iter().map(|i| weight_of(&batch[*i]) / whole(batch[*i].0)).collect();
        let tokens: Vec<f32> = part.iter().flat_map(|i| rows.answer_tokens(batch[*i].1)).map(|n| n as f32).collect();
        let counts: Vec<f32> = part.iter().flat_map(|i| rows.weights(batch[*i].1)).flatten().collect();

        let input = prefix.batch(lm, &groups);
        let dropout = here.dropout(part.iter().map(|i| seeds[*i]).collect(), input.lengths());
        let owners: Vec<usize> = own.iter().map(place_of).collect();
        let factors = here.rows(&owners, input.lengths()).with_dropout(dropout);
        let trace = Trace::new(lm, input, factors, config.activations);
        let each = answer_token_logp(lm, &trace.batch, &trace.hidden, 1.0); // [M]
        let of_row: Vec<i64> =
            trace.batch.answer_lengths().iter().enumerate().flat_map(|(r, n)| vec![r as i64; *n]).collect();
        let zeros = Tensor::zeros([tokens.len() as i64], (Kind::Float, lm.device));
        let logp = zeros.index_add(0, &Tensor::from_slice(&of_row).to_device(lm.device), &(each * on_device(&counts)));
        let logp = logp.view([-1, 2]).tr();
        let (logp_ref, tokens) = (in_pairs(&of_rows), in_pairs(&tokens));
        let beta = on_device(&own.iter().map(|u| betas[*u]).collect::<Vec<f32>>());
        let pairs = PairLogps { policy: &logp, reference: &logp_ref, tokens: &tokens, beta: &beta };
        let losses = objective.losses(&pairs); // [P]
        let values = PairMetrics::of(&losses, &pairs.rewards(config.loss), &logp);
        if let Some(at) = (0..part.len()).find(|i| !(values[*i].loss * f64::from(shares[*i])).is_finite()) {
            return Ok(Err(Fault { user: own[at], what: "the loss" }));
        }
        let loss = (&losses * on_device(&shares)).sum(Kind::Float);
        lm::accumulate(&mut sum, trace.backward(&loss, &parameters, &[], place)?);
        part.iter().zip(values).for_each(|(i, value)| metrics[*i] = value);
    }
    Ok(Ok((sum.unwrap_or_default(), metrics)))
}

const CHECKPOINT: &str = "checkpoint.safetensors";
const STANDING: &str = "standing";

fn read_checkpoint(run: &Run) -> Result<Option<(lm::Tensors, Standing)>> {
    let path = run.state(CHECKPOINT);
    if !path.exists() {
        return Ok(None);
    }
    let tensors = lm::read_tensors(&path, tch::Device::Cpu, None)?;
    let standing = tensors.metadata.get(STANDING).and_then(|t| serde_json::from_str::<Standing>(t).ok());
    let standing = standing.ok_or_else(|| {
        invalid(
            path.display().to_string(),
            "a checkpoint of this stage",
            "none in its header",
            "remove the stage's .partial folder and run again",
        )
    })?;
    Ok(Some((tensors, standing)))
}

/// Numbers of a batch's pairs in the table, for messages.
fn numbers(batch: &[(usize, usize)]) -> String {
    batch.iter().map(|(_, p)| (p + 1).to_string()).collect::<Vec<_>>().join(" ")
}

/// A dropout stream for every pair of a step: decided by user, the user's step and the pair's number among the user's.
fn dropout_seeds(run: &Run, steps: &[usize], batch: &[(usize, usize)], users: &[String]) -> Vec<[u8; 32]> {
    let mut counts = vec![0usize; users.len()];
    let seed = |(user, _): &(usize, usize)| {
        counts[*user] += 1;
        let name = ["dpo", "dropout", &users[*user], &steps[*user].to_string(), &counts[*user].to_string()];
        run::derive(run.seed(), &name)
    };
    batch.iter().map(seed).collect()
}
