//! Held-out users, who come after training: everything that is shared stays as it is, and only what is their own is fitted, from the mean of
//! the users before them (not in the paper; Park et al. 2024, algorithm 2, for a linear head).

use data::{Split, Vote};
use lm::{Lm, Owner};
use problem::Result;
use run::{Progress, Run};
use text::Tokenizer;

use crate::config::{Factors, Phase, RewardConfig};
use crate::fit::idle;
use crate::fit_report::FitReport;
use crate::learner::{Learner, role_of};
use crate::model::RewardModel;
use crate::plan::Plan;
use crate::step::{Inputs, Taken, take};

/// The votes of split `adapt` fit the personal factors of `names`, users whom `model` does not know; what comes back knows everybody but those
/// whose loss or gradient was not finite. Nobody else's scores change. A model without personal factors learns the names alone.
///
/// # Errors
/// No batch of votes; a row over the limit where that is an error.
pub fn welcome(
    config: &RewardConfig,
    model: &RewardModel,
    lm: &Lm,
    tokenizer: &Tokenizer,
    votes: &[Vote],
    names: &[String],
    run: &mut Run,
) -> Result<(RewardModel, Option<FitReport>)> {
    config.check()?;
    let mut names: Vec<String> = names.iter().filter(|n| model.users.binary_search(n).is_err()).cloned().collect();
    names.sort();
    names.dedup();
    let storage = config.storage(run);
    let fresh = model.of_mean(&names, &storage)?;
    let mut roles: Vec<_> =
        fresh.parameters().iter().filter(|p| p.owner == Owner::PerUser).map(|p| role_of(&p.name)).collect();
    roles.dedup();
    // Preference weights over frozen features are convex statistics: [`crate::taste_people`] finds them.
    let (fresh, report) = if roles.is_empty() || names.is_empty() || model.head.features.is_some() {
        (fresh, None)
    } else {
        let phase = Phase { factors: Factors::Personal, epochs: config.newcomer_epochs, train: Some(roles) };
        let own: Vec<Vote> = votes.iter().filter(|v| names.binary_search(&v.user_id).is_ok()).cloned().collect();
        let (fitted, report) = fit_held_out(config, fresh, lm, tokenizer, &own, &names, phase, run)?;
        // All of them may be in quarantine: the others' model is whole without them.
        (fitted.map_or_else(|| model.of_mean(&[], &storage), Ok)?, Some(report))
    };
    let mut all: Vec<(&String, usize)> =
        model.users.iter().chain(&fresh.users).enumerate().map(|(i, name)| (name, i)).collect();
    all.sort();
    let order: Vec<usize> = all.iter().map(|(_, i)| *i).collect();
    let users = all.into_iter().map(|(name, _)| name.clone()).collect();
    Ok((model.joined(&fresh, &order, users, &storage)?, report))
}

/// A short fit of one phase, without a log, checkpoints or early stopping. Gives no model if all of its users are in quarantine.
fn fit_held_out(
    config: &RewardConfig,
    start: RewardModel,
    lm: &Lm,
    tokenizer: &Tokenizer,
    votes: &[Vote],
    names: &[String],
    phase: Phase,
    run: &Run,
) -> Result<(Option<RewardModel>, FitReport)> {
    let storage = config.storage(run);
    let plan = Plan::new(config, tokenizer, votes, names, (Split::Adapt, &[phase]), run)?;
    let mut learner = Learner::over(start, config, &plan.steps, 0, &storage)?;
    let prefix = plan.frozen_blocks(&learner.model, lm)?;
    let inputs = Inputs { config, lm, plan: &plan, prefix: &prefix, storage: &storage };

    let (mut losses, mut quarantine) = (Vec::new(), idle(config, &plan));
    let _phase = run::phase("held-out users");
    let mut bar = Progress::new("reward: held-out users", plan.steps.batches.len(), 0);
    for step in 0..plan.steps.batches.len() {
        let _step = run::step(step);
        let taken = take(&inputs, &mut learner, &mut quarantine, step, run)?;
        losses.push(taken.as_ref().map(Taken::mean_loss));
        bar.advance(1, "");
    }
    let report = FitReport::of(&plan, &losses, None, &quarantine);
    let healthy = quarantine.healthy(names.len());
    let fitted = (!healthy.is_empty()).then(|| learner.model.only(&healthy, &storage)).transpose()?;
    Ok((fitted, report))
}
