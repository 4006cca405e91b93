//! What LoCo-RLHF's lab found: rows, a summary, slopes and plots.

use std::collections::BTreeMap;
use std::path::Path;

use data::Column;
use problem::Result;
use report::{Series, log_plot, markdown};
use serde_json::{Value, json};
use stats::Slope;

use crate::loco::{Deployment, LocoLab, LocoRow};
use crate::summary::{distinct, over_seeds, shown, slopes_table};

/// Methods whose slopes and curves are looked at.
const CURVES: [&str; 5] = ["PRS", "greedy low-rank", "pessimistic full-rank", "greedy full-rank", "greedy, no context"];

/// A column: the cell of each method.
type Cells<'a> = Box<dyn Fn(&str) -> String + 'a>;

/// What belongs together: experiment, deployment, (dx, dphi, rank, votes), method; and its sub-optimality in each repetition.
type Groups<'a> = BTreeMap<(&'a str, String, [usize; 4], &'a str), Vec<&'a LocoRow>>;

fn word(deployment: Deployment) -> String {
    json!(deployment).as_str().unwrap_or_default().to_owned()
}

/// Writes `rows.parquet`, `summary.json`, `slopes.json` and a plot for each deployment into `folder`; gives the tables as Markdown.
///
/// # Errors
/// A file that cannot be written.
pub fn write_loco(lab: &LocoLab, rows: &[LocoRow], seed: u64, folder: &Path) -> Result<String> {
    write_rows(rows, folder)?;
    let mut groups = Groups::new();
    for row in rows {
        let place = [row.dx, row.dphi, row.rank, row.votes];
        groups.entry((&row.experiment, word(row.deployment), place, &row.method)).or_default().push(row);
    }
    let summary = summary(&groups, seed);
    run::write_json(&folder.join("summary.json"), &json!({"lab": lab, "seed": seed, "rows": summary}))?;
    let slopes = slopes(rows, seed);
    run::write_json(&folder.join("slopes.json"), &slopes)?;
    for deployment in [Deployment::Same, Deployment::OtherPeople, Deployment::UncoveredAnswers] {
        let word = word(deployment);
        let svg = log_plot(&format!("LoCo-RLHF: {word}"), "votes, N", "sub-optimality", &curves(&groups, &word))?;
        run::write_atomic(&folder.join(format!("{word}.svg")), svg.as_bytes())?;
    }
    Ok(format!("{}\n{}", slopes_table(&slopes), tables(&groups, rows, seed)))
}

fn write_rows(rows: &[LocoRow], folder: &Path) -> Result<()> {
    let text = |f: &dyn Fn(&LocoRow) -> String| Column::Text(rows.iter().map(f).collect());
    let count = |f: fn(&LocoRow) -> usize| Column::Integer(rows.iter().map(|r| f(r) as i64).collect());
    let real = |f: fn(&LocoRow) -> f64| Column::Real(rows.iter().map(f).collect());
    let columns = [
        ("experiment", text(&|r| r.experiment.clone())),
        ("deployment", text(&|r| word(r.deployment))),
        ("method", text(&|r| r.method.clone())),
        ("seed", count(|r| r.seed)),
        ("dx", count(|r| r.dx)),
        ("dphi", count(|r| r.dphi)),
        ("rank", count(|r| r.rank)),
        ("votes", count(|r| r.votes)),
        ("suboptimality", real(|r| r.suboptimality)),
        ("coverage", real(|r| r.coverage)),
    ];
    data::write_table(&folder.join("rows.parquet"), &columns)
}

fn summary(groups: &Groups<'_>, seed: u64) -> Vec<Value> {
    let row = |((experiment, deployment, place, method), own): (&(&str, String, [usize; 4], &str), &Vec<&LocoRow>)| {
        let values: Vec<f64> = own.iter().map(|r| r.suboptimality).collect();
        let name = format!("{experiment} {deployment} {place:?} {method}");
        let lost = over_seeds(&values, &mut run::rng(seed, &["summary", &name]));
        let coverage: f64 = own.iter().map(|r| r.coverage).sum::<f64>() / own.len() as f64;
        json!({"experiment": experiment, "deployment": deployment, "dx": place[0], "dphi": place[1], "rank": place[2],
               "votes": place[3], "method": method, "suboptimality": lost,
               "coverage": if coverage.is_finite() { json!(coverage) } else { Value::Null }})
    };
    groups.iter().map(row).collect()
}

/// Sub-optimality by votes in a deployment, and a line of the theory's slope through the first method's first point.
fn curves(groups: &Groups<'_>, deployment: &str) -> Vec<Series> {
    let curve = |method: &str| -> Vec<(f64, f64)> {
        let of = groups.iter().filter(|((e, d, _, m), _)| *e == "votes" && d == deployment && *m == method);
        of.map(|((_, _, place, _), own)| {
            (place[3] as f64, own.iter().map(|r| r.suboptimality).sum::<f64>() / own.len() as f64)
        })
        .collect()
    };
    let mut series: Vec<Series> =
        CURVES.iter().map(|m| Series { name: (*m).to_owned(), points: curve(m), reference: false }).collect();
    if let Some((x0, y0)) = series[0].points.first().copied() {
        let line = series[0].points.iter().map(|(x, _)| (*x, y0 * (x / x0).powf(-0.5))).collect();
        series.push(Series { name: "slope -1/2".into(), points: line, reference: true });
    }
    series
}

fn slopes(rows: &[LocoRow], seed: u64) -> Vec<Slope> {
    let source = "LoCo-RLHF: C* (((dx + dphi) r + log(1/delta)) / N)^(1/2)";
    CURVES
        .iter()
        .filter_map(|method| {
            let same =
                |r: &&LocoRow| r.experiment == "votes" && r.deployment == Deployment::Same && r.method == *method;
            let points: Vec<(usize, f64, f64)> =
                rows.iter().filter(same).map(|r| (r.seed, r.votes as f64, r.suboptimality)).collect();
            let slope = Slope::of(&points, &mut run::rng(seed, &["slope", method]))?;
            Some(Slope { what: format!("sub-optimality in N, {method}"), bound: -0.5, source: source.into(), ..slope })
        })
        .collect()
}

/// The tables that a reader looks for: shifts, ranks, dimensions.
fn tables(groups: &Groups<'_>, rows: &[LocoRow], seed: u64) -> String {
    let methods = distinct(rows.iter().map(|r| r.method.as_str()));
    let cell = |experiment: &str, deployment: &str, wanted: &dyn Fn(&[usize; 4]) -> bool, method: &str| {
        let of =
            groups.iter().find(|((e, d, p, m), _)| *e == experiment && d == deployment && wanted(p) && *m == method);
        of.map_or(String::new(), |(key, own)| {
            let values: Vec<f64> = own.iter().map(|r| r.suboptimality).collect();
            shown(&over_seeds(&values, &mut run::rng(seed, &["table", &format!("{key:?}")])), 3)
        })
    };
    let table = |title: &str, columns: Vec<(String, Cells<'_>)>| {
        let mut head = vec!["method"];
        head.extend(columns.iter().map(|(name, _)| name.as_str()));
        let body: Vec<Vec<String>> = methods
            .iter()
            .map(|m| std::iter::once((*m).to_owned()).chain(columns.iter().map(|(_, f)| f(m))).collect())
            .collect();
        format!("{title}\n\n{}", markdown(&head, &body))
    };
    let shift = |votes: usize| {
        ["same", "other-people", "uncovered-answers"]
            .map(|d| {
                let cell = &cell;
                let f: Cells<'_> = Box::new(move |m| cell("votes", d, &|p| p[3] == votes, m));
                (d.to_owned(), f)
            })
            .into_iter()
            .collect()
    };
    let ranks = [1, 2, 5, 20]
        .map(|r| {
            let cell = &cell;
            let f: Cells<'_> = Box::new(move |m| cell("rank", "same", &|p| p[2] == r, m));
            (format!("r = {r}"), f)
        })
        .into_iter()
        .collect();
    let dimensions = [(10, 50), (20, 40), (30, 30)]
        .map(|(dx, dphi)| {
            let cell = &cell;
            let f: Cells<'_> = Box::new(move |m| cell("dimensions", "same", &|p| (p[0], p[1]) == (dx, dphi), m));
            (format!("{dx} x {dphi}"), f)
        })
        .into_iter()
        .collect();
    [
        table("Sub-optimality, N = 1000, dx = dphi = 20, r = 2", shift(1000)),
        table("Sub-optimality, N = 5000", shift(5000)),
        table("Sub-optimality by the truth's rank, N = 5000", ranks),
        table("Sub-optimality at the same dx + dphi and rank, N = 5000", dimensions),
    ]
    .join("\n")
}
