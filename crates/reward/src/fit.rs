//! Fitting by the pooled likelihood of votes, P-ShareLoRA eq. 3.3, phase by phase.
//!
//! Left out of the paper's listing: PPO, which is `policy`'s.

use std::collections::BTreeMap;

use data::{Split, Vote};
use lm::{Checkpoints, Lm, Quarantine};
use problem::Result;
use run::{Progress, Run};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use text::Tokenizer;

use crate::config::RewardConfig;
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

/// Fits one reward model for `users` on the training votes, resuming where an earlier run stopped. A user whose loss or gradient is not finite
/// goes into quarantine: the others go on, and the model knows them alone.
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
    let count = plan.steps.batches.len();
    let storage = config.storage(run);

    let (mut checkpoints, saved) = Checkpoints::<Note, Option<f64>>::open(run)?;
    let mut step = saved.as_ref().map_or(0, |saved| saved.step);
    let mut learner = Learner::at(step, config, lm, &plan, &storage, run)?;
    let mut watch = Watch::new(config, lm, tokenizer, votes, &learner.model)?;
    let (mut losses, mut quarantine) = (Vec::new(), Quarantine::default());
    if let Some(mut saved) = saved {
        let mut tensors = saved.take(STATE)?;
        watch.load(saved.note.best, &learner.model, &mut tensors)?;
        learner.load(&mut tensors)?;
        (losses, quarantine) = (saved.history, saved.note.quarantine);
        watch.skip(&quarantine);
        storage.release();
    }
    let mut written = losses.len();
    let prefix = plan.frozen_blocks(&learner.model, lm)?;
    let inputs = Inputs { config, lm, plan: &plan, prefix: &prefix, storage: &storage };

    let training = run::phase("training");
    let mut bar = Progress::new("reward: training", count, step);
    while step < count && !watch.over() {
        let _step = run::step(step);
        learner = learner.turn(step, config, &plan.steps, &storage)?;
        let healthy = quarantine.clone();
        let taken = take(&inputs, &mut learner, &mut quarantine, step, run)?;
        if quarantine != healthy {
            watch.leave_out(&quarantine);
        }
        let mean = taken.as_ref().map(Taken::mean_loss);
        run.log(&line(step, taken.as_ref(), &plan))?;
        losses.push(mean);
        step += 1;
        if let Some(loss) = watch.look(lm, &learner.model, step, count, &storage)? {
            run.log(&json!({"step": step - 1, "eval_loss": loss}))?;
        }
        bar.advance(1, &format!("loss {:.3}", mean.unwrap_or(f64::NAN)));
        if step.is_multiple_of(config.save_every_steps.get()) && step < count && !watch.over() {
            let mut tensors = learner.state();
            tensors.extend(watch.state());
            let note = Note { best: watch.best(), quarantine: quarantine.clone() };
            checkpoints.save(run, step, &note, &losses[written..], &[(STATE, tensors)])?;
            written = losses.len();
            storage.release();
        }
    }
    drop((bar, training));
    let healthy = quarantine.survivors("reward", users)?;
    let report = FitReport::of(&plan, &losses, watch.restore(&learner.model), &quarantine);
    Ok((learner.model.only(&healthy, &storage)?.with_probes(lm, &prefix), report))
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
        batch.present.iter().zip(&norms.users).map(|(u, norm)| (plan.users[*u].as_str(), *norm)).collect();
    json!({"step": step, "loss": taken.map(Taken::mean_loss), "accuracy": over_decided(|m| f64::from(u8::from(m > 0.0))),
        "margin": over_decided(|m| m), "learning_rate": rate, "grad_norm": norms.shared, "grad_norm_users": of_users})
}
