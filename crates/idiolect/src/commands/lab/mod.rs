//! `idiolect lab`: what the theories predict, on synthetic users whose ground-truth reward is known, and on given embeddings.

mod args;
mod loco;
mod newcomers;
mod pessimism;
mod rfm;
mod share_lora;

use clap::Subcommand;
use problem::Result;

use args::LabArgs;
use newcomers::NewcomersArgs;

#[derive(Subcommand)]
pub(crate) enum LabCommand {
    /// P-ShareLoRA: subspace, value gap and bias beside the predicted slopes; two minutes
    ShareLora(LabArgs),
    /// RFM: new raters served by learnt features, beside one reward for all and other methods; five minutes
    Rfm(LabArgs),
    /// Real votes: people whom a method has not seen, after 0 to 40 of their votes; embeds the texts first
    Newcomers(NewcomersArgs),
    /// LoCo-RLHF: policies by low-rank contextual rewards, careful and not, under shifts; six minutes
    Loco(LabArgs),
    /// When caution pays: policies moved towards a fitted reward, judged by the truth; half a minute
    Pessimism(LabArgs),
}

impl LabCommand {
    pub(crate) fn execute(self) -> Result<()> {
        match self {
            Self::ShareLora(args) => share_lora::run(&args),
            Self::Rfm(args) => rfm::run(&args),
            Self::Newcomers(args) => args.execute(),
            Self::Loco(args) => loco::run(&args),
            Self::Pessimism(args) => pessimism::run(&args),
        }
    }
}
