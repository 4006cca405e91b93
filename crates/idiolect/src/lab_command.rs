//! `idiolect lab`: what the theories predict, on synthetic users whose truth is known.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use data::Column;
use problem::{Result, mistake};
use reward::{LabRow, ShareLoraLab, Slope};
use run::Series;
use serde_json::json;

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

/// A mean over repetitions with its 95% interval (repetitions drawn), for a table and for JSON.
pub(crate) fn over_seeds(values: &[f64], rng: &mut impl rand::Rng) -> estimate::Interval {
    let clusters: Vec<(f64, usize)> = values.iter().map(|v| (*v, 1)).collect();
    estimate::clustered_mean(&clusters, rng).unwrap_or(estimate::Interval {
        mean: f64::NAN,
        low: f64::NAN,
        high: f64::NAN,
    })
}

/// As a table shows it.
pub(crate) fn shown(i: &estimate::Interval, digits: usize) -> String {
    format!("{:.digits$} [{:.digits$}, {:.digits$}]", i.mean, i.low, i.high)
}

fn share_lora(args: &LabArgs) -> Result<()> {
    let (repetitions, aside) = args.begin(12)?;
    let lab = ShareLoraLab { seeds: repetitions, ..ShareLoraLab::default() };
    let mut bar = run::Progress::new("lab share-lora", 0, 0);
    let rows = lab.run(args.seed, |done, all| bar.reach(done, all));
    drop(bar);
    let slopes = reward::slopes(&rows, args.seed);

    let text = |f: fn(&LabRow) -> &String| Column::Text(rows.iter().map(|r| f(r).clone()).collect());
    let count = |f: fn(&LabRow) -> usize| Column::Integer(rows.iter().map(|r| f(r) as i64).collect());
    let real = |f: fn(&LabRow) -> f64| Column::Real(rows.iter().map(f).collect());
    let columns = [
        ("experiment", text(|r| &r.experiment)),
        ("method", text(|r| &r.method)),
        ("seed", count(|r| r.seed)),
        ("users", count(|r| r.users)),
        ("votes", count(|r| r.votes)),
        ("tail", real(|r| r.tail)),
        ("x", real(|r| r.x)),
        ("distance", real(|r| r.distance)),
        ("gap", real(|r| r.gap)),
    ];
    data::write_table(&aside.join("rows.parquet"), &columns)?;
    run::write_json(&aside.join("slopes.json"), &json!({"lab": lab, "seed": args.seed, "slopes": slopes}))?;
    let plots = [
        ("subspace.svg", "samples", "distance", "votes of all users, N N_p", "distance of subspaces", -0.5),
        ("value.svg", "votes", "gap", "votes of a user, N_p", "value gap, mean over users", -0.5),
        ("tail-subspace.svg", "tail", "distance", "Sigma_tail", "distance of subspaces", 0.5),
        ("tail-value.svg", "tail", "gap", "Sigma_tail", "value gap, mean over users", 0.25),
    ];
    for (file, experiment, quantity, x, y, bound) in plots {
        let series = series(&rows, experiment, quantity, bound);
        run::log_plot(&aside.join(file), &format!("P-ShareLoRA: {experiment}"), x, y, &series)?;
    }
    publish(&aside, &args.out)?;
    table::print(&markdown(&slopes))?;
    Ok(())
}

/// Means over repetitions of each method, and a line of the predicted slope through the shared one's first point.
fn series(rows: &[LabRow], experiment: &str, quantity: &str, bound: f64) -> Vec<Series> {
    type Places = BTreeMap<String, Vec<(f64, f64)>>;
    let mut by_method: BTreeMap<&str, Places> = BTreeMap::new();
    for row in rows.iter().filter(|r| r.experiment == experiment) {
        let value = if quantity == "gap" { row.gap } else { row.distance };
        // A tail differs a little between repetitions: what belongs together has the same order of magnitude.
        let place =
            if experiment == "tail" { format!("{:.0}", 4.0 * row.x.max(1e-9).log2()) } else { format!("{}", row.x) };
        if value.is_finite() {
            by_method.entry(&row.method).or_default().entry(place).or_default().push((row.x, value));
        }
    }
    let mean = |points: &Vec<(f64, f64)>| {
        let n = points.len() as f64;
        (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n)
    };
    let mut out: Vec<Series> = by_method
        .iter()
        .map(|(method, places)| {
            let mut points: Vec<(f64, f64)> = places.values().map(mean).filter(|(x, _)| *x > reward::NO_TAIL).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Series { name: (*method).to_owned(), points, reference: false }
        })
        .collect();
    if let Some(shared) = out.iter().find(|s| s.name == "shared" && !s.points.is_empty()) {
        let (x0, y0) = shared.points[0];
        let line = shared.points.iter().map(|(x, _)| (*x, y0 * (x / x0).powf(bound))).collect();
        out.push(Series { name: format!("predicted bound, slope {bound}"), points: line, reference: true });
    }
    out
}

pub(crate) fn markdown(slopes: &[Slope]) -> String {
    let rows: Vec<Vec<String>> = slopes
        .iter()
        .map(|s| {
            vec![
                s.what.clone(),
                format!("{:.2} [{:.2}, {:.2}]", s.measured, s.low, s.high),
                format!("{:.2}", s.bound),
                s.source.clone(),
            ]
        })
        .collect();
    table::markdown(&["quantity", "measured slope, 95% interval", "of the bound", "source"], &rows)
}
