//! Users' policies as sums of the policies that were trained for reward features, weighted by the users' preference weights.

use std::collections::BTreeMap;

use estimate::Taste;
use lm::Lm;
use policy::{Combination, Policies, PpoReport};
use problem::{Result, mistake};

/// The file of features' policies in the folder of a stage `ppo`.
pub(crate) const BASIS: &str = "basis.safetensors";

/// What a reward feature, counted from 1, is called among policies.
pub(crate) fn feature_name(number: usize) -> String {
    format!("feature {number}")
}

/// Policies of these users, in their order, from the policies `basis` of reward features whose training `report` tells of; and each user's
/// weights of the features.
///
/// # Errors
/// A feature without a policy, or a taste without a direction.
pub(crate) fn combined(
    basis: &Policies,
    report: &PpoReport,
    tastes: &BTreeMap<String, Taste>,
    how: Combination,
    lm: &Lm,
) -> Result<(Policies, BTreeMap<String, Vec<f64>>)> {
    let d = tastes.values().next().map_or(0, |taste| taste.mean.len());
    let names: Vec<String> = (1..=d).map(feature_name).collect();
    if basis.users != names {
        let message = format!("policies of features: expected {}, found {}", names.join(", "), basis.users.join(", "));
        let why: Vec<String> = report.quarantined.iter().map(|(feature, why)| format!("{feature}: {why}")).collect();
        let hint = if why.is_empty() {
            "train them against this very reward model".into()
        } else {
            format!("in quarantine: {}; lower `learning_rate` or widen `max_kl`", why.join("; "))
        };
        return Err(mistake(message, hint));
    }
    let deviations: Vec<f64> = names.iter().map(|name| f64::from(report.scales[name].deviation)).collect();
    let mut all = BTreeMap::new();
    for (user, taste) in tastes {
        let own = policy::taste_weights(taste.mean.as_slice(), &deviations, how.strength).ok_or_else(|| {
            mistake(format!("`{user}`: expected preference weights that are not all zero"), "ask for more votes")
        })?;
        all.insert(user.clone(), own);
    }
    let users: Vec<String> = all.keys().cloned().collect();
    let each: Vec<Vec<f64>> = all.values().cloned().collect();
    Ok((basis.combined(lm, &users, &each, how.rank)?, all))
}
