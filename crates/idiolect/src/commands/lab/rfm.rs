//! `idiolect lab rfm`: rows.parquet, summary.json, a plot.

use lab::RfmLab;
use problem::Result;

use super::args::LabArgs;
use crate::table;

pub(crate) fn run(args: &LabArgs) -> Result<()> {
    let (repetitions, new) = args.begin(12)?;
    let lab = RfmLab { seeds: repetitions, ..RfmLab::default() };
    let mut bar = run::Progress::new("lab rfm", 0, 0);
    let rows = lab.run(|name| run::rng(args.seed, &["lab", "rfm", name]), |done, all| bar.reach(done, all));
    drop(bar);
    let text = lab::write_rfm(&lab, &rows, args.seed, new.path())?;
    new.publish()?;
    table::print(&text)
}
