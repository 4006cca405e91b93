//! Fitting by the pooled likelihood of votes, P-ShareLoRA eq. 3.3, phase by phase.
//!
//! Left out of the paper's listing: PPO, which is `policy`'s.

use std::collections::BTreeMap;

use data::{Split, Vote};
use lm::{Checkpoints, Lm, Quarantine, Saved, Storage};
use problem::Result;
use run::{Progress, Run};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use text::Tokenizer;

use crate::config::{RewardConfig, Variant};
use crate::fit_report::FitReport;
use crate::learner::Learner;
use crate::model::RewardModel;
use crate::plan::Plan;
use crate::step::{Inputs, Taken, take};
use crate::watch::{Best, Watch};

/// What a checkpoint holds beside tensors and losses.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    best: Option<Best>,
    quarantine: Quarantine,
}

/// The one part of a checkpoint's tensors.
const STATE: &str = "state";

/// Where a fit stands between two steps.
struct Standing {
    /// Steps that were taken.
    step: usize,
    learner: Learner,
    watch: Watch,
    /// Each step's mean loss; none where all users of its votes were in quarantine.
    losses: Vec<Option<f64>>,
    /// How many of them the last checkpoint holds.
    written: usize,
    quarantine: Quarantine,
}

/// Fits one reward model for `users` on the training votes, resuming where an earlier run stopped. A user whose loss or gradient is not finite
/// goes into quarantine: the others go on, and the model knows them alone. What all share has no user to blame: in a phase with one adapter for
/// all, a gradient that is not finite ends the fit. Where something is personal, a user who has training votes but none that is learnt from goes into
/// quarantine before the first step.
///
/// # Errors
/// Settings that mean nothing, no batch of votes; all users in quarantine, or numbers that are not finite and no user's.
pub fn fit(
    config: &RewardConfig,
    lm: &Lm,
    tokenizer: &Tokenizer,
    votes: &[Vote],
    users: &[String],
    run: &mut Run,
) -> Result<(RewardModel, FitReport)> {
    config.check()?;
    let plan = Plan::new(config, tokenizer, votes, users, (Split::Train, &config.own_phases()), run)?;
    let (count, storage) = (plan.steps.batches.len(), config.storage(run));
    let (mut checkpoints, saved) = Checkpoints::open(run)?;
    let mut standing = start(config, lm, tokenizer, votes, &plan, saved, &storage, run)?;
    let prefix = plan.frozen_blocks(&standing.learner.model, lm)?;
    let inputs = Inputs { config, lm, plan: &plan, prefix: &prefix, storage: &storage };

    let training = run::phase("training");
    let mut bar = Progress::new("reward: training", count, standing.step);
    while standing.step < count && !standing.watch.over() {
        let Standing { step, learner, watch, losses, quarantine, .. } = &mut standing;
        let _step = run::step(*step);
        learner.turn(*step, config, &plan.steps, &storage)?;
        let taken = take(&inputs, learner, quarantine, *step, run)?;
        watch.leave_out(quarantine);
        run.log(&line(*step, taken.as_ref(), &plan))?;
        losses.push(taken.as_ref().map(Taken::mean_loss));
        if let Some(loss) = watch.look(lm, &learner.model, *step + 1, count, &storage)? {
            run.log(&json!({"step": *step, "eval_loss": loss}))?;
        }
        *step += 1;
        bar.advance(1, &taken.map_or_else(String::new, |taken| format!("loss {:.3}", taken.mean_loss())));
        if step.is_multiple_of(config.save_every_steps.get()) && *step < count && !watch.over() {
            checkpoint(&mut standing, &mut checkpoints, run)?;
            storage.release();
        }
    }
    drop((bar, training));
    let Standing { learner, watch, losses, quarantine, .. } = standing;
    let healthy = quarantine.survivors("reward", users)?;
    let report = FitReport::of(&plan, &losses, watch.restore(&learner.model), &quarantine);
    Ok((learner.model.only(&healthy, &storage)?.with_probes(lm, &prefix), report))
}

/// A fit before its first step, or behind its last checkpoint.
fn start(
    config: &RewardConfig,
    lm: &Lm,
    tokenizer: &Tokenizer,
    votes: &[Vote],
    plan: &Plan,
    saved: Option<Saved<Note, Option<f64>>>,
    storage: &Storage,
    run: &Run,
) -> Result<Standing> {
    let step = saved.as_ref().map_or(0, |saved| saved.step);
    let mut learner = Learner::at(step, config, lm, plan, storage, run)?;
    let mut watch = Watch::new(config, lm, tokenizer, votes, &learner.model)?;
    let Some(mut saved) = saved else {
        let quarantine = idle(config, plan);
        watch.leave_out(&quarantine);
        return Ok(Standing { step, learner, watch, losses: vec![], written: 0, quarantine });
    };
    let mut tensors = saved.take(STATE)?;
    let Note { best, quarantine } = saved.note;
    watch.leave_out(&quarantine);
    watch.load(best, &learner.model, &mut tensors)?;
    learner.load(&mut tensors)?;
    storage.release();
    let (losses, written) = (saved.history, step);
    Ok(Standing { step, learner, watch, losses, written, quarantine })
}

/// Users who have votes of which none is learnt from, in quarantine where factors are a user's own. A user's preference weights over reward features
/// are the population's mean then, and a model that all share knows every user.
pub(crate) fn idle(config: &RewardConfig, plan: &Plan) -> Quarantine {
    let mut quarantine = Quarantine::default();
    if config.variant != Variant::LoraGlobal && config.variant != Variant::Rfm {
        plan.idle.iter().for_each(|(user, why)| quarantine.put(*user, why.clone()));
    }
    quarantine
}

/// Saves where the fit stands.
fn checkpoint(standing: &mut Standing, checkpoints: &mut Checkpoints<Note, Option<f64>>, run: &mut Run) -> Result<()> {
    let Standing { step, learner, watch, losses, written, quarantine } = standing;
    let mut tensors = learner.state();
    tensors.extend(watch.state());
    let note = Note { best: watch.best(), quarantine: quarantine.clone() };
    checkpoints.save(run, *step, &note, &losses[*written..], &[(STATE, tensors)])?;
    *written = losses.len();
    Ok(())
}

/// A step's line of `metrics.jsonl`.
fn line(step: usize, taken: Option<&Taken>, plan: &Plan) -> Value {
    let Some(Taken { batch, gradients, norms, rate }) = taken else {
        return json!({"step": step, "votes": 0}); // all users of its votes are in quarantine
    };
    let tie = |i: &usize| plan.texts.votes[batch.votes[*i]].tie;
    let decided: Vec<f64> = (0..batch.votes.len()).filter(|i| !tie(i)).map(|i| gradients.margins[i]).collect();
    let over_decided = |f: fn(f64) -> f64| {
        (!decided.is_empty()).then(|| decided.iter().map(|m| f(*m)).sum::<f64>() / decided.len() as f64)
    };
    let of_users: BTreeMap<&str, f64> =
        batch.present.users().iter().zip(&norms.users).map(|(u, norm)| (plan.users[u.0].as_str(), *norm)).collect();
    json!({"step": step, "loss": taken.map(Taken::mean_loss), "accuracy": over_decided(|m| f64::from(u8::from(m > 0.0))),
        "margin": over_decided(|m| m), "learning_rate": rate, "grad_norm": norms.shared, "grad_norm_users": of_users})
}
