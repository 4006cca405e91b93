//! What the labs have in common.

use std::path::PathBuf;

use clap::Args;
use problem::{Result, mistake};

use crate::new_folder::NewFolder;

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

impl LabArgs {
    /// Repetitions, and the folder to write into.
    pub(crate) fn begin(&self, default: usize) -> Result<(usize, NewFolder)> {
        let repetitions = self.repetitions.unwrap_or(default);
        if repetitions < 10 {
            let message = format!("--repetitions: expected at least 10, found {repetitions}");
            return Err(mistake(message, "an interval over fewer says little"));
        }
        Ok((repetitions, NewFolder::begin(&self.out)?))
    }
}
