//! `idiolect lab loco`: rows.parquet, summary.json, slopes.json, plots.

use lab::LocoLab;
use problem::Result;

use super::args::LabArgs;
use crate::table;

pub(crate) fn run(args: &LabArgs) -> Result<()> {
    let (repetitions, new) = args.begin(20)?;
    let lab = LocoLab { seeds: repetitions, ..LocoLab::default() };
    let mut bar = run::Progress::new("lab loco", 0, 0);
    let rows = lab.run(|name| run::rng(args.seed, &["lab", "loco", name]), |done, all| bar.reach(done, all));
    drop(bar);
    let text = lab::write_loco(&lab, &rows, args.seed, new.path())?;
    new.publish()?;
    table::print(&text)
}
