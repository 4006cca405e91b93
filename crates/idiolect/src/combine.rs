//! Policies at once: every user's from those that were trained for reward features, weighted by the user's taste.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use estimate::Taste;
use lm::Lm;
use policy::{Combination, Policies, PpoReport};
use problem::{Result, mistake};

use crate::cli::ComputeArgs;
use crate::cli::refuse_folder;
use crate::lab_command::{begin, publish};
use crate::served::{Served, ServedArgs};
use crate::table;

#[derive(Args)]
pub(crate) struct CombineArgs {
    /// The folder of a stage `ppo` with `whose = { features = {} }`
    #[arg(long)]
    basis: PathBuf,
    /// The folder of the reward stage that it was trained against, with people.safetensors
    #[arg(long)]
    reward: PathBuf,
    /// The base, a Hugging Face folder
    #[arg(long)]
    model: PathBuf,
    /// These users, adapted ones included [default: all of its training]
    #[arg(long)]
    user: Vec<String>,
    /// The nearest adapters of this rank; without it they are exact, at the basis's rank times the features
    #[arg(long)]
    rank: Option<std::num::NonZero<usize>>,
    /// How far users' policies go: 1 is as far as the basis's
    #[arg(long, default_value_t = 1.0)]
    strength: f64,
    /// A new folder for policies.safetensors
    #[arg(long)]
    out: PathBuf,
    #[command(flatten)]
    compute: ComputeArgs,
}

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

pub(crate) fn run(args: &CombineArgs) -> Result<()> {
    refuse_folder(&args.out)?;
    if !(args.strength.is_finite() && args.strength > 0.0) {
        let message = format!("--strength: expected a positive number, found {}", args.strength);
        return Err(mistake(message, "1 goes as far as the basis"));
    }
    let served = Served::open(&ServedArgs::new(&args.reward, &args.model, &args.compute))?;
    let basis = Policies::read(&args.basis.join(BASIS), &served.lm)?;
    let report: PpoReport = run::read_json(&args.basis.join("report.json"))?;
    let users = if args.user.is_empty() { served.people.tastes.keys().cloned().collect() } else { args.user.clone() };
    let mut tastes = BTreeMap::new();
    for user in users {
        let taste = served.taste(&user)?.ok_or_else(|| {
            let message = format!("{}: expected a taste of `{user}`, found none", args.reward.display());
            mistake(message, "`idiolect adapt` makes the model know a new user")
        })?;
        tastes.insert(user, taste);
    }
    let how = Combination { rank: args.rank, strength: args.strength };
    let (policies, weights) = combined(&basis, &report, &tastes, how, &served.lm)?;
    let aside = begin(&args.out)?;
    policies.write(&aside.join("policies.safetensors"))?;
    run::write_json(&aside.join("weights.json"), &weights)?;
    publish(&aside, &args.out)?;
    let rank = policies.bank.config().lora.rank;
    let features = basis.users.len();
    table::print(&format!("{} policies of rank {rank} from {features} of features, without training", tastes.len()))?;
    Ok(())
}
