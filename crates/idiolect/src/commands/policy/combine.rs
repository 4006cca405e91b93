//! Policies at once: every user's from those that were trained for reward features, weighted by the user's taste.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use policy::{Combination, Policies, PpoReport};
use problem::{Result, mistake};

use crate::combined::{BASIS, combined};
use crate::compute::ComputeArgs;
use crate::new_folder::NewFolder;
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

impl CombineArgs {
    pub(crate) fn execute(&self) -> Result<()> {
        run(self)
    }
}

fn run(args: &CombineArgs) -> Result<()> {
    let new = NewFolder::begin(&args.out)?;
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
    policies.write(&new.path().join("policies.safetensors"))?;
    run::write_json(&new.path().join("weights.json"), &weights)?;
    new.publish()?;
    let rank = policies.bank.config().lora.rank;
    let features = basis.users.len();
    table::print(&format!("{} policies of rank {rank} from {features} of features, without training", tastes.len()))?;
    Ok(())
}
