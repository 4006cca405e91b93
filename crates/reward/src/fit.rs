//! Fitting by the pooled likelihood of votes, P-ShareLoRA eq. 3.3, phase by phase.
//!
//! Left out of the paper's listing: PPO, which is `policy`'s.

use std::collections::{BTreeMap, BTreeSet};

use data::{Split, Vote};
use device::Checked;
use lm::{AdamW, Bank, BankConfig, Lm, Parameter, RowCounts, ScalarHead, Sharing, Storage, Tensor, Trace};
use problem::{Result, invalid};
use run::{Progress, Run};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::Kind;
use text::Tokenizer;

use crate::config::{Factors, Phase, RewardConfig, Role};
use crate::habits::Habits;
use crate::objective::{Judged, Ties, Weighting};
use crate::pull::Means;
use crate::schedule::Steps;
use crate::watch::{Best, Watch};
use crate::{RewardModel, Texts};

/// What a fit was made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FitReport {
    /// Training votes that the objective speaks of.
    pub votes: usize,
    /// Of these, ties.
    pub ties: usize,
    /// Training votes that are ties and were left out.
    pub ties_left_out: usize,
    /// Distinct texts among them.
    pub texts: usize,
    /// Rows left out or changed.
    pub rows: RowCounts,
    /// Optimiser steps.
    pub steps: usize,
    /// Of these, steps with one adapter for all.
    pub global_steps: usize,
    /// The step whose parameters were kept, where `dev` decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_step: Option<usize>,
    /// Tokens of all rows in all planned batches.
    pub tokens: usize,
    /// Mean loss over the last tenth of the steps.
    pub final_loss: f64,
}

const CHECKPOINT: &str = "checkpoint.safetensors";

/// Fits one reward model for `users` on the training votes, resuming where an earlier run stopped.
///
/// # Errors
/// Settings that mean nothing, no batch of votes, a loss or gradient that is not finite.
pub fn fit(
    config: &RewardConfig,
    lm: &Lm,
    tokenizer: &Tokenizer,
    votes: &[Vote],
    users: &[String],
    run: &mut Run,
) -> Result<(RewardModel, FitReport)> {
    train(
        config,
        lm,
        tokenizer,
        votes,
        users,
        Job { split: Split::Train, phases: config.own_phases(), from: None },
        run,
    )
}

/// What a loop trains.
pub(crate) struct Job {
    /// On which votes.
    pub(crate) split: Split,
    pub(crate) phases: Vec<Phase>,
    /// The model to start from, a short job that neither logs nor checkpoints; none starts anew, as the configuration says.
    pub(crate) from: Option<RewardModel>,
}

pub(crate) fn train(
    config: &RewardConfig,
    lm: &Lm,
    tokenizer: &Tokenizer,
    all_votes: &[Vote],
    users: &[String],
    job: Job,
    run: &mut Run,
) -> Result<(RewardModel, FitReport)> {
    // No `..`: a new field that nobody reads here does not compile.
    let RewardConfig {
        variant: _,
        structure: _,
        personal: _,
        phases: _,
        depth: _,
        features,
        token_budget: _,
        lora: _,
        batch_votes: _,
        pooling,
        head_scale,
        ref optimizer,
        personal_rate,
        objective,
        early_stopping,
        max_row_tokens,
        over_long,
        micro_batch_tokens,
        activations,
        save_every_steps,
        swap: _,
        newcomer_epochs: _,
        personal_factors: _,
        frozen_states: _,
    } = *config;
    config.check()?;
    let own: Vec<&Vote> = all_votes.iter().filter(|v| v.split == job.split).collect();
    let with_ties = objective.ties != Ties::LeaveOut;
    let ties = own.iter().filter(|v| v.tie).count();
    let tied_share = ties as f64 / own.len().max(1) as f64;
    let own: Vec<&Vote> = own.into_iter().filter(|v| with_ties || !v.tie).collect();
    let texts = Texts::new(tokenizer, own, max_row_tokens, over_long)?;
    let votes = &texts.votes;
    let owner: Vec<usize> = votes.iter().filter_map(|v| users.binary_search(&v.user_id).ok()).collect();
    let rng = |epoch: usize| run.rng(&["order", &epoch.to_string()]);
    let steps = Steps::plan(config, &job.phases, votes.len(), |v| texts.tokens(v), rng);
    if steps.batches.is_empty() || owner.len() != votes.len() {
        return Err(invalid(
            "reward",
            format!("at least one batch of {} votes, all by known users", job.split.name()),
            format!(
                "{} votes, {} of known users, a budget of {} tokens",
                votes.len(),
                owner.len(),
                config.token_budget
            ),
            "raise `token_budget` or gather votes",
        ));
    }
    let count = steps.batches.len();
    let votes_of = counts(&owner, users.len());
    let (owners, head_owner) = config.owners();

    // A global phase trains one adapter for all; then every user gets a copy of it.
    let depth = config.depth_of(lm.depth())?;
    let lora = config.lora_within(depth)?;
    let storage = config.storage(run);
    let start = |factors: Factors| -> Result<RewardModel> {
        let one = factors == Factors::Global;
        let sharing = |own: Sharing| if one { Sharing::Shared } else { own };
        let bank = BankConfig {
            lora: lora.clone(),
            down: sharing(owners.down),
            up: sharing(owners.up),
            middle: config.middle(sharing(owners.middle)),
            users: users.len(),
        };
        let bank = Bank::new(&bank, lm, users, &storage, |name| run.rng(&["init", name]))?;
        let bank = if one { bank.ahead_of(owners) } else { bank };
        let (width, scale, rng) = (lm.shape.hidden_size, head_scale as f32, &mut run.rng(&["head"]));
        let head = match features.map(|d| d.get().min(users.len())) {
            None => ScalarHead::new(width, scale, rng, lm.device),
            // Of more features than users some could not be told apart.
            Some(d) => ScalarHead::of_features(d, width, scale, rng, lm.device),
        };
        let personal_head = sharing(head_owner) == Sharing::Personal;
        Ok(RewardModel {
            bank,
            head: if personal_head { head.personalised(users.len(), &storage)? } else { head },
            habits: Habits::new(&objective, sharing(head_owner), users.len(), tied_share, lm.device),
            pooling,
            depth,
            users: users.to_vec(),
            probes: vec![],
        })
    };
    let short = job.from.is_some();
    let saved = if short { None } else { Checkpoint::read(run)? };
    let mut step = saved.as_ref().map_or(0, |c| c.step);
    // The checkpoint of a phase's last step still holds that phase's model.
    let mut phase = steps.phase(step.saturating_sub(usize::from(steps.turns(step))));
    let mut model = match job.from {
        Some(model) => model,
        None => start(steps.phases[phase].factors)?,
    };
    let mut adam = optimiser(config, &model, &steps.phases[phase], &storage)?;
    let mut means = Means::of(&model, objective.shrinkage, &storage);
    let mut losses = Vec::new();
    let watched = early_stopping.filter(|_| !short);
    let mut watch = Watch::new(config, lm, tokenizer, all_votes, &model, watched)?;
    if let Some(Checkpoint { mut tensors, losses: earlier, best, .. }) = saved {
        for mut parameter in untrained(&model, &adam) {
            let shape = parameter.tensor.size();
            let value = tensors.take(&format!("frozen.{}", parameter.name), &shape)?;
            tch::no_grad(|| parameter.tensor.copy_(&value));
        }
        means.load(&mut tensors)?;
        watch.load(best, &model, &mut tensors)?;
        adam.load_state(&mut tensors)?;
        losses = earlier;
        storage.release();
    }
    if !short {
        run.rewind_log(step)?;
    }

    let frozen = run::phase("frozen blocks");
    let mut bar = Progress::new("reward: frozen blocks", texts.rows.len(), 0);
    let prefix = model.prefix(lm, texts.rows.clone(), |n| bar.advance(n, ""))?;
    drop((bar, frozen));

    let _phase = run::phase("training");
    let mut bar = Progress::new("reward: training", count, step);
    while step < count && !watch.over() {
        let _step = run::step(step);
        if steps.turns(step) {
            let before = steps.phases[phase].factors;
            phase = steps.phase(step);
            if before == Factors::Global && steps.phases[phase].factors == Factors::Personal {
                model = model.personalised(owners, head_owner, &storage)?;
            }
            adam = optimiser(config, &model, &steps.phases[phase], &storage)?;
            means = Means::of(&model, objective.shrinkage, &storage);
        }
        let batch = &steps.batches[step];
        let voters: Vec<usize> = batch.iter().map(|v| owner[*v]).collect();
        let given: Vec<f32> = batch.iter().map(|v| votes[*v].weight).collect();
        let weights = if config.independent() {
            weights_of_user_means(&voters, &given)
        } else {
            weights_of(objective.weighting, &voters, &given, &votes_of)
        };
        let place = format!("reward, step {step}, rows {}", source_rows(votes, batch));
        // Only those who are here: memory and time do not depend on how many others there are.
        let mut present = voters.clone();
        present.sort_unstable();
        present.dedup();
        let here = model.present(&present);
        let local: Vec<usize> =
            voters.iter().map(|u| present.binary_search(u).expect("the batch's own users")).collect();
        let (of_bank, others) = trained(&here, &steps.phases[phase]);
        let [parameters, others] = [of_bank, others].map(|p| p.into_iter().map(|p| p.tensor).collect::<Vec<Tensor>>());
        let seeds = dropout_seeds(run, step, &voters, users);

        // The batch in parts: gradients and margins are those of the whole.
        let lengths: Vec<usize> = batch.iter().map(|v| texts.tokens(*v)).collect();
        let (mut gradients, mut margins, mut each) = (None, vec![0.0; batch.len()], vec![0.0; batch.len()]);
        for part in lm::under_budget(&lengths, micro_batch_tokens.get()) {
            let pairs: Vec<Vec<usize>> = part.iter().map(|i| texts.pairs[batch[*i]]).map(|(c, r)| vec![c, r]).collect();
            let own: Vec<usize> = part.iter().map(|i| local[*i]).collect();
            let column = |f: &dyn Fn(usize) -> f32| {
                Tensor::from_slice(&part.iter().map(|i| f(*i)).collect::<Vec<f32>>()).to_device(lm.device)
            };
            let rows = prefix.batch(lm, &pairs);
            let dropout = here.bank.dropout(part.iter().map(|i| seeds[*i]).collect(), rows.lengths());
            let factors = here.bank.rows(&own, rows.lengths()).with_dropout(dropout);

            let trace = Trace::new(lm, rows, factors, activations);
            let hidden = lm::pooled_hidden(lm, &trace.batch, &trace.hidden, pooling); // [2P, E]
            let twice: Vec<usize> = own.iter().flat_map(|u| [*u, *u]).collect();
            let rewards = here.head.score(&hidden, &twice).view([-1, 2]); // [P, 2]: chosen, rejected
            let (tie, lapse) = here.habits.of(&own, lm.device);
            let judged = Judged {
                rewards: &rewards,
                tied: &column(&|i| f32::from(u8::from(votes[batch[i]].tie))),
                margins: &column(&|i| votes[batch[i]].margin.unwrap_or(0.0)),
                tie: tie.as_ref(),
                lapse: lapse.as_ref(),
            };
            let of_votes = objective.losses(&judged); // [P]
            let loss = (&of_votes * column(&|i| weights[i])).sum(Kind::Float);
            lm::accumulate(&mut gradients, trace.backward(&loss, &parameters, &others, &place)?);
            let margin = rewards.select(1, 0) - rewards.select(1, 1);
            let numbers = |t: &Tensor| Vec::<f64>::try_from(t.detach().to_kind(Kind::Double));
            for ((i, margin), loss) in part.iter().zip(numbers(&margin).checked()?).zip(numbers(&of_votes).checked()?) {
                (margins[*i], each[*i]) = (margin, loss);
            }
        }

        let rate = optimizer.rate(step, count);
        let rates: Vec<(usize, f64)> = present.iter().map(|u| (*u, rate * personal_rate)).collect();
        let norms = adam.step(&gradients.unwrap_or_default(), rate, &rates, &place)?;
        means.pull(&model, &here, &present, rate * objective.shrinkage);
        storage.release();

        let mean = each.iter().sum::<f64>() / each.len() as f64;
        losses.push(mean);
        let decided: Vec<f64> = (0..batch.len()).filter(|i| !votes[batch[*i]].tie).map(|i| margins[i]).collect();
        let over_decided = |f: fn(f64) -> f64| {
            (!decided.is_empty()).then(|| decided.iter().map(|m| f(*m)).sum::<f64>() / decided.len() as f64)
        };
        let of_users: BTreeMap<&str, f64> =
            present.iter().zip(&norms.users).map(|(u, norm)| (users[*u].as_str(), *norm)).collect();
        let line = json!({"step": step, "loss": mean, "accuracy": over_decided(|m| f64::from(u8::from(m > 0.0))),
            "margin": over_decided(|m| m), "learning_rate": rate, "grad_norm": norms.shared,
            "grad_norm_users": of_users});
        if !short {
            run.log(&line)?;
        }
        step += 1;
        if let Some(loss) = watch.look(lm, &model, step, count, &storage)? {
            run.log(&json!({"step": step - 1, "eval_loss": loss}))?;
        }
        bar.advance(1, &format!("loss {mean:.3}"));
        if !short && step.is_multiple_of(save_every_steps.get()) && step < count && !watch.over() {
            let mut tensors = adam.state();
            tensors.extend(untrained(&model, &adam).into_iter().map(|p| (format!("frozen.{}", p.name), p.tensor)));
            tensors.extend(means.state());
            tensors.extend(watch.state());
            Checkpoint::write(run, &tensors, step, &losses, watch.best())?;
            storage.release();
        }
    }
    drop(bar);
    let best_step = watch.restore(&model);
    let tail = &losses[losses.len() - losses.len().div_ceil(10)..];
    let of_phase = |p: usize| steps.ends[p] - if p == 0 { 0 } else { steps.ends[p - 1] };
    let report = FitReport {
        votes: votes.len(),
        ties: votes.iter().filter(|v| v.tie).count(),
        ties_left_out: if with_ties { 0 } else { ties },
        texts: texts.rows.len(),
        rows: texts.counts,
        steps: losses.len(),
        global_steps: (0..steps.phases.len())
            .filter(|p| steps.phases[*p].factors == Factors::Global)
            .map(of_phase)
            .sum(),
        best_step,
        tokens: steps.tokens,
        final_loss: tail.iter().sum::<f64>() / tail.len() as f64,
    };
    Ok((model.with_probes(lm, &prefix), report))
}

/// What a parameter is, by its name.
pub(crate) fn role_of(name: &str) -> Role {
    match name.rsplit('.').next() {
        _ if name == ScalarHead::NAME || name == ScalarHead::FEATURES => Role::Head,
        _ if name == ScalarHead::TASTES => Role::Tastes,
        Some("down") => Role::Down,
        Some("up") => Role::Up,
        Some("kernel") => Role::Kernel,
        Some("scale") => Role::Scale,
        Some(crate::habits::TIE) => Role::Ties,
        _ => Role::Lapse,
    }
}

/// What a phase trains: of the bank, and of the rest.
fn trained(model: &RewardModel, phase: &Phase) -> (Vec<Parameter>, Vec<Parameter>) {
    let wanted = |p: &Parameter| phase.train.as_ref().is_none_or(|roles| roles.contains(&role_of(&p.name)));
    let of_bank: Vec<String> = model.bank.parameters().into_iter().map(|p| p.name).collect();
    model.parameters().into_iter().filter(wanted).partition(|p| of_bank.contains(&p.name))
}

/// What this phase does not train: an earlier one may have.
fn untrained(model: &RewardModel, adam: &AdamW) -> Vec<Parameter> {
    let trained: BTreeSet<String> = adam.names().collect();
    model.parameters().into_iter().filter(|p| !trained.contains(&p.name)).collect()
}

fn optimiser(config: &RewardConfig, model: &RewardModel, phase: &Phase, storage: &Storage) -> Result<AdamW> {
    let (mut parameters, others) = trained(model, phase);
    parameters.extend(others);
    let users = model.users.len().try_into().expect("at least one user");
    AdamW::new(config.optimizer.clone(), parameters, users, storage)
}

fn counts(owner: &[usize], users: usize) -> Vec<usize> {
    let mut counts = vec![0usize; users];
    owner.iter().for_each(|u| counts[*u] += 1);
    counts
}

/// Weights that make a sum over votes the sum of users' weighted means: a user's gradient does not depend on how many votes
/// others have in the batch.
fn weights_of_user_means(voters: &[usize], given: &[f32]) -> Vec<f32> {
    let total = |u: usize| voters.iter().zip(given).filter(|(v, _)| **v == u).map(|(_, w)| *w).sum::<f32>();
    voters.iter().zip(given).map(|(u, w)| w / total(*u).max(f32::MIN_POSITIVE)).collect()
}

/// Weights of a batch's votes: those of the source, times a power of the number of training votes of their users, so scaled
/// that the power's mean over all training votes is 1, over the number of votes in the batch.
fn weights_of(weighting: Weighting, voters: &[usize], given: &[f32], votes_of: &[usize]) -> Vec<f32> {
    let power = match weighting {
        Weighting::ByRow => 1.0,
        Weighting::ByUser => 0.0,
        Weighting::Temperature(power) => power,
    };
    let there = || votes_of.iter().filter(|n| **n > 0).map(|n| *n as f64);
    let scale = there().sum::<f64>() / there().map(|n| n.powf(power)).sum::<f64>();
    let weight = |u: usize| (votes_of[u] as f64).powf(power - 1.0) * scale;
    voters.iter().zip(given).map(|(u, w)| (f64::from(*w) * weight(*u) / voters.len() as f64) as f32).collect()
}

/// A dropout stream for every vote of a step: decided by user, step and the vote's number among the user's.
fn dropout_seeds(run: &Run, step: usize, voters: &[usize], users: &[String]) -> Vec<[u8; 32]> {
    let mut counts = BTreeMap::new();
    let seed = |user: &usize| {
        let count = counts.entry(*user).or_insert(0);
        *count += 1;
        let name = ["reward", "dropout", &users[*user], &step.to_string(), &count.to_string()];
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
    best: Option<Best>,
    tensors: lm::Tensors,
}

impl Checkpoint {
    fn write(
        run: &mut Run,
        tensors: &[(String, Tensor)],
        step: usize,
        losses: &[f64],
        best: Option<Best>,
    ) -> Result<()> {
        let note = json!({"step": step, "losses": losses, "best": best}).to_string();
        lm::write_tensors(&run.state(CHECKPOINT), tensors, Some(("progress", note)))?;
        run.checkpointed();
        Ok(())
    }

    fn read(run: &Run) -> Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Note {
            step: usize,
            losses: Vec<f64>,
            best: Option<Best>,
        }
        let path = run.state(CHECKPOINT);
        if !path.exists() {
            return Ok(None);
        }
        let tensors = lm::map_tensors(&path)?;
        let note = tensors.metadata.get("progress").and_then(|t| serde_json::from_str::<Note>(t).ok());
        let Note { step, losses, best } = note.ok_or_else(|| {
            invalid(
                path.display().to_string(),
                "a checkpoint of this stage",
                "no progress note",
                "remove the stage's .partial folder and run again",
            )
        })?;
        Ok(Some(Self { step, losses, best, tensors }))
    }
}
