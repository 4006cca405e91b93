//! `idiolect lab pessimism`: rows.parquet, summary.json, a plot.

use lab::PessimismLab;
use problem::Result;

use super::args::LabArgs;
use crate::table;

pub(crate) fn run(args: &LabArgs) -> Result<()> {
    let (repetitions, new) = args.begin(20)?;
    let lab = PessimismLab { seeds: repetitions, ..PessimismLab::default() };
    let mut bar = run::Progress::new("lab pessimism", 0, 0);
    let rows = lab.run(|name| run::rng(args.seed, &["lab", "pessimism", name]), |done, all| bar.reach(done, all));
    drop(bar);
    let text = lab::write_pessimism(&lab, &rows, args.seed, new.path())?;
    new.publish()?;
    table::print(&text)
}
