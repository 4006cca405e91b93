//! `idiolect lab share-lora`: rows.parquet, slopes.json, plots.

use lab::ShareLoraLab;
use problem::Result;

use super::args::LabArgs;
use crate::table;

pub(crate) fn run(args: &LabArgs) -> Result<()> {
    let (repetitions, new) = args.begin(12)?;
    let lab = ShareLoraLab { seeds: repetitions, ..ShareLoraLab::default() };
    let mut bar = run::Progress::new("lab share-lora", 0, 0);
    let rows = lab.run(args.seed, |done, all| bar.reach(done, all));
    drop(bar);
    let text = lab::write_share_lora(&lab, &rows, args.seed, new.path())?;
    new.publish()?;
    table::print(&text)
}
