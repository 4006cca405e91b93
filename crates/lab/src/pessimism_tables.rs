//! What the lab of pessimism found: rows, a summary and a plot.

use std::path::Path;

use data::Column;
use problem::Result;
use report::{Series, line_plot, markdown};
use serde_json::{Value, json};

use crate::pessimism::{PessimismLab, PessimismRow};
use crate::summary::{over_seeds, shown};

/// The divergence that the table is about: as far as a trained policy goes.
const FAR: f64 = 3.0;

/// A figure's name, its table's title, and its value.
type Figure = (&'static str, &'static str, fn(&PessimismRow) -> f64);

const FIGURES: [Figure; 3] = [
    ("gold", "True reward", |r| r.gold),
    ("worst", "True reward of the tenth of the users who fare worst", |r| r.worst),
    ("proxy", "Reward by the fitted mean", |r| r.proxy),
];

/// Writes `rows.parquet`, `summary.json` and `over-optimisation.svg` into `folder`; gives the tables as Markdown.
///
/// # Errors
/// A file that cannot be written.
pub fn write_pessimism(lab: &PessimismLab, rows: &[PessimismRow], seed: u64, folder: &Path) -> Result<String> {
    write_rows(rows, folder)?;
    let (mut summary, mut tables) = (Vec::new(), Vec::new());
    for figure in FIGURES {
        tables.push(table(lab, rows, seed, figure, &mut summary));
    }
    run::write_json(&folder.join("summary.json"), &json!({"lab": lab, "seed": seed, "rows": summary}))?;
    let svg = over_optimisation(lab, rows)?;
    run::write_atomic(&folder.join("over-optimisation.svg"), svg.as_bytes())?;
    Ok(tables.join("\n"))
}

fn write_rows(rows: &[PessimismRow], folder: &Path) -> Result<()> {
    let count = |f: fn(&PessimismRow) -> usize| Column::Integer(rows.iter().map(|r| f(r) as i64).collect());
    let real = |f: fn(&PessimismRow) -> f64| Column::Real(rows.iter().map(f).collect());
    let columns = [
        ("prior", Column::Text(rows.iter().map(|r| r.prior.clone()).collect())),
        ("votes", count(|r| r.votes)),
        ("caution", real(|r| r.caution)),
        ("divergence", real(|r| r.divergence)),
        ("seed", count(|r| r.seed)),
        ("proxy", real(|r| r.proxy)),
        ("gold", real(|r| r.gold)),
        ("worst", real(|r| r.worst)),
    ];
    data::write_table(&folder.join("rows.parquet"), &columns)
}

/// A figure's values in all repetitions.
fn values(
    rows: &[PessimismRow],
    (prior, votes): (&str, usize),
    (caution, divergence): (f64, f64),
    value: fn(&PessimismRow) -> f64,
) -> Vec<f64> {
    let own =
        |r: &&PessimismRow| r.prior == prior && r.votes == votes && r.caution == caution && r.divergence == divergence;
    rows.iter().filter(own).map(value).collect()
}

/// One figure's table; all divergences go into the summary.
fn table(
    lab: &PessimismLab,
    rows: &[PessimismRow],
    seed: u64,
    (figure, title, value): Figure,
    summary: &mut Vec<Value>,
) -> String {
    let mut lines = Vec::new();
    for prior in ["flat", "right"] {
        for caution in &lab.cautions {
            let mut line = vec![prior.to_owned(), format!("{caution}")];
            for votes in &lab.votes {
                for divergence in &lab.divergences {
                    let name = ["pessimism", figure, prior, &format!("{caution} {votes} {divergence}")];
                    let own = values(rows, (prior, *votes), (*caution, *divergence), value);
                    let mean = over_seeds(&own, &mut run::rng(seed, &name));
                    if *divergence == FAR {
                        line.push(shown(&mean, 2));
                    }
                    summary.push(json!({"figure": figure, "prior": prior, "caution": caution, "votes": votes,
                                        "divergence": divergence, "mean": mean}));
                }
            }
            lines.push(line);
        }
    }
    let votes: Vec<String> = lab.votes.iter().map(|n| format!("{n} votes")).collect();
    let head: Vec<&str> = ["prior", "caution"].into_iter().chain(votes.iter().map(String::as_str)).collect();
    format!("{title} at {FAR} nats from the base, deviations of the base's answers\n\n{}", markdown(&head, &lines))
}

fn over_optimisation(lab: &PessimismLab, rows: &[PessimismRow]) -> Result<String> {
    let curve = |name: &str, caution: f64, value: fn(&PessimismRow) -> f64| {
        let point = |kl: &f64| {
            let own = values(rows, ("flat", lab.votes[0]), (caution, *kl), value);
            (*kl, own.iter().sum::<f64>() / own.len() as f64)
        };
        Series { name: name.into(), points: lab.divergences.iter().map(point).collect(), reference: false }
    };
    let lines = [
        curve("greedy, fitted reward", 0.0, |r| r.proxy),
        curve("greedy, true reward", 0.0, |r| r.gold),
        curve("careful (1 standard error), true reward", 1.0, |r| r.gold),
        curve("careful (2), true reward", 2.0, |r| r.gold),
    ];
    let title = format!("Over-optimisation, {} votes of each user, a flat prior", lab.votes[0]);
    line_plot(&title, "KL from the base, nats", "reward, deviations of the base", &lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_has_a_table_and_every_divergence_is_in_the_summary() {
        let row = |prior: &str, caution: f64, divergence: f64, seed: usize| PessimismRow {
            prior: prior.into(),
            votes: 10,
            caution,
            divergence,
            seed,
            proxy: 2.0,
            gold: 1.0 + seed as f64,
            worst: 0.5,
        };
        let lab = PessimismLab {
            votes: vec![10],
            cautions: vec![0.0],
            divergences: vec![1.0, FAR],
            ..PessimismLab::default()
        };
        let rows: Vec<PessimismRow> = ["flat", "right"]
            .iter()
            .flat_map(|p| [1.0, FAR].map(|d| [row(p, 0.0, d, 0), row(p, 0.0, d, 1)]))
            .flatten()
            .collect();
        let folder = tempfile::tempdir().unwrap();
        let text = write_pessimism(&lab, &rows, 7, folder.path()).unwrap();
        assert!(text.contains("| flat | 0 | 1.50 [1.00, 2.00] |") && text.contains("fitted mean at 3 nats"), "{text}");
        let summary: Value = run::read_json(&folder.path().join("summary.json")).unwrap();
        assert_eq!(summary["rows"].as_array().unwrap().len(), 3 * 2 * 2);
        assert!(fs_err::read_to_string(folder.path().join("over-optimisation.svg")).unwrap().contains("careful (2)"));
        assert!(folder.path().join("rows.parquet").exists());
    }
}
