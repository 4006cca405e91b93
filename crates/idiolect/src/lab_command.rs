//! `idiolect lab`: what the theories predict, on synthetic users whose truth is known.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use lab::ShareLoraLab;
use problem::{Result, mistake};

use crate::cli::refuse_folder;
use crate::lab_newcomers::NewcomersArgs;
use crate::{lab_loco, lab_newcomers, lab_pessimism, lab_rfm, table};

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

#[derive(Args)]
pub(crate) struct LabArgs {
    /// A new folder for the table of all fits, a JSON summary and the plots
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Repetitions of everything, at least 10 [default: 12, loco and pessimism 20]
    #[arg(long)]
    pub(crate) repetitions: Option<usize>,
    /// Seed of truths and votes
    #[arg(long, default_value_t = 7)]
    pub(crate) seed: u64,
}

impl LabCommand {
    pub(crate) fn execute(self) -> Result<()> {
        match self {
            Self::ShareLora(args) => share_lora(&args),
            Self::Rfm(args) => lab_rfm::run(&args),
            Self::Newcomers(args) => lab_newcomers::run(&args),
            Self::Loco(args) => lab_loco::run(&args),
            Self::Pessimism(args) => lab_pessimism::run(&args),
        }
    }
}

impl LabArgs {
    /// Repetitions, and the folder to write into.
    pub(crate) fn begin(&self, default: usize) -> Result<(usize, PathBuf)> {
        let repetitions = self.repetitions.unwrap_or(default);
        if repetitions < 10 {
            let message = format!("--repetitions: expected at least 10, found {repetitions}");
            return Err(mistake(message, "an interval over fewer says little"));
        }
        Ok((repetitions, begin(&self.out)?))
    }
}

/// A folder beside `out` to write into, which [`publish`] gives its name.
pub(crate) fn begin(out: &Path) -> Result<PathBuf> {
    refuse_folder(out)?;
    let aside = out.with_extension("part");
    if aside.exists() {
        fs_err::remove_dir_all(&aside)?;
    }
    fs_err::create_dir_all(&aside)?;
    Ok(aside)
}

pub(crate) fn publish(aside: &Path, out: &Path) -> Result<()> {
    Ok(fs_err::rename(aside, out)?)
}

fn share_lora(args: &LabArgs) -> Result<()> {
    let (repetitions, aside) = args.begin(12)?;
    let lab = ShareLoraLab { seeds: repetitions, ..ShareLoraLab::default() };
    let mut bar = run::Progress::new("lab share-lora", 0, 0);
    let rows = lab.run(args.seed, |done, all| bar.reach(done, all));
    drop(bar);
    let text = lab::write_share_lora(&lab, &rows, args.seed, &aside)?;
    publish(&aside, &args.out)?;
    table::print(&text)
}
