//! `idiolect reward`: judge a saved reward model, or let it choose.

mod eval;
mod rank;

use clap::Subcommand;
use problem::Result;

use eval::EvalArgs;
use rank::RankArgs;

#[derive(Subcommand)]
pub(crate) enum RewardCommand {
    /// Accuracy, log-loss, calibration of every user on a split, beside the simplest baselines
    Eval(EvalArgs),
    /// The best of a prompt's answers for one user, by any reward model, beside another model's pick
    Rank(RankArgs),
}

impl RewardCommand {
    pub(crate) fn execute(self) -> Result<()> {
        match self {
            Self::Eval(args) => args.execute(),
            Self::Rank(args) => args.execute(),
        }
    }
}
