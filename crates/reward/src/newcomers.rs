//! Users who come after training: everything that is shared stays as it is, and only what is their own is fitted, from the mean of
//! the users before them (not in the paper; Park et al. 2024, algorithm 2, for a linear head).

use data::{Split, Vote};
use lm::{Lm, Owner};
use problem::Result;
use run::Run;
use text::Tokenizer;

use crate::config::{Factors, Phase};
use crate::fit::{Job, role_of, train};
use crate::{FitReport, RewardConfig, RewardModel};

/// The votes of split `adapt` fit the personal factors of `names`, users whom `model` does not know; what comes back knows everybody.
/// Nobody else's scores change. A model without personal factors learns the names alone.
pub fn welcome(
    config: &RewardConfig,
    model: &RewardModel,
    lm: &Lm,
    tokenizer: &Tokenizer,
    votes: &[Vote],
    names: &[String],
    run: &mut Run,
) -> Result<(RewardModel, Option<FitReport>)> {
    let mut names: Vec<String> = names.iter().filter(|n| model.users.binary_search(n).is_err()).cloned().collect();
    names.sort();
    names.dedup();
    let storage = config.storage(run);
    let fresh = model.of_mean(&names, &storage)?;
    let mut train_roles: Vec<_> =
        fresh.parameters().iter().filter(|p| p.owner == Owner::PerUser).map(|p| role_of(&p.name)).collect();
    train_roles.dedup();
    // Tastes over frozen features are convex statistics: [`crate::taste_people`] finds them.
    let (fresh, report) = if train_roles.is_empty() || names.is_empty() || model.head.features.is_some() {
        (fresh, None)
    } else {
        let phases =
            vec![Phase { factors: Factors::Personal, epochs: config.newcomer_epochs, train: Some(train_roles) }];
        let own: Vec<Vote> = votes.iter().filter(|v| names.binary_search(&v.user_id).is_ok()).cloned().collect();
        let job = Job { split: Split::Adapt, phases, from: Some(fresh) };
        let (fresh, report) = train(config, lm, tokenizer, &own, &names, job, run)?;
        (fresh, Some(report))
    };
    let mut all: Vec<(&String, usize)> =
        model.users.iter().chain(&names).enumerate().map(|(i, name)| (name, i)).collect();
    all.sort();
    let order: Vec<usize> = all.iter().map(|(_, i)| *i).collect();
    let users = all.into_iter().map(|(name, _)| name.clone()).collect();
    Ok((model.joined(&fresh, &order, users, &storage)?, report))
}
