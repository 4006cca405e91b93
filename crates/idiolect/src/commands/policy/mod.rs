//! `idiolect policy`: judge trained policies, or make users' from those of reward features.

mod combine;
mod eval;

use clap::Subcommand;
use problem::Result;

use combine::CombineArgs;
use eval::EvalArgs;

#[derive(Subcommand)]
pub(crate) enum PolicyCommand {
    /// Win rates over the base and over a model for everybody, at equal length, the matrix of users, divergence, diversity, drift
    Eval(EvalArgs),
    /// Policies at once, from those of reward features (`whose = { features = {} }`), weighted by tastes: for users adapted since
    Combine(CombineArgs),
}

impl PolicyCommand {
    pub(crate) fn execute(self) -> Result<()> {
        match self {
            Self::Eval(args) => args.execute(),
            Self::Combine(args) => args.execute(),
        }
    }
}
