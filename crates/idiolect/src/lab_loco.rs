//! `idiolect lab loco`: rows.parquet, summary.json, slopes.json, plots.

use lab::LocoLab;
use problem::Result;

use crate::lab_command::{LabArgs, publish};
use crate::table;

pub(crate) fn run(args: &LabArgs) -> Result<()> {
    let (repetitions, aside) = args.begin(20)?;
    let lab = LocoLab { seeds: repetitions, ..LocoLab::default() };
    let mut bar = run::Progress::new("lab loco", 0, 0);
    let rows = lab.run(|name| run::rng(args.seed, &["lab", "loco", name]), |done, all| bar.reach(done, all));
    drop(bar);
    let text = lab::write_loco(&lab, &rows, args.seed, &aside)?;
    publish(&aside, &args.out)?;
    table::print(&text)
}
