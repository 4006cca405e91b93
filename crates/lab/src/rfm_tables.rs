//! What RFM's lab found: rows, a summary and a plot.

use std::collections::BTreeSet;
use std::path::Path;

use data::Column;
use problem::Result;
use report::{Series, log_plot, markdown};
use serde_json::{Value, json};

use crate::rfm::{RfmLab, RfmRow, Served};
use crate::summary::{distinct, over_seeds, shown};

/// A table: the rows of an experiment, by what is varied, in one figure.
struct Table {
    experiment: &'static str,
    title: &'static str,
    /// What is varied.
    place: fn(&RfmRow) -> String,
    figure: &'static str,
    value: fn(&Served) -> f64,
}

const fn accuracy(experiment: &'static str, title: &'static str, place: fn(&RfmRow) -> String) -> Table {
    Table { experiment, title, place, figure: "accuracy", value: |s| s.accuracy }
}

const TABLES: [Table; 8] = [
    accuracy("raters", "Raters in training, 30 votes each, 30 of a new rater, p = 0.5", |r| r.raters.to_string()),
    accuracy("disagreement", "How alike raters are, p; 60 raters", |r| format!("{}", r.alike)),
    accuracy("shots", "Votes of a new rater; 60 raters, p = 0.5", |r| r.shots.to_string()),
    accuracy("budget", "1,920 votes in all: raters x votes", |r| format!("{} x {}", r.raters, r.votes)),
    accuracy(
        "leave one out",
        "8 raters of unlike tastes, 240 votes each, every one new once: votes of the new one",
        |r| r.shots.to_string(),
    ),
    accuracy("questions", "Questions at random and chosen from 200 pairs; 256 raters", |r| r.shots.to_string()),
    Table {
        experiment: "shots",
        title: "Best of 16: true reward above the answers' mean, deviations; votes of a new rater",
        place: |r| r.shots.to_string(),
        figure: "gained",
        value: |s| s.gained,
    },
    Table {
        experiment: "shots",
        title: "Best of 16: share of prompts where the pick beats that by one reward for all; votes of a new rater",
        place: |r| r.shots.to_string(),
        figure: "beats",
        value: |s| s.beats,
    },
];

/// Writes `rows.parquet`, `summary.json` and `shots.svg` into `folder`; gives the tables as Markdown.
///
/// # Errors
/// A file that cannot be written.
pub fn write_rfm(lab: &RfmLab, rows: &[RfmRow], seed: u64, folder: &Path) -> Result<String> {
    write_rows(rows, folder)?;
    let methods = distinct(rows.iter().map(|r| r.method.as_str()));
    let (mut summary, mut printed): (Vec<Value>, Vec<String>) = (Vec::new(), Vec::new());
    for table in &TABLES {
        printed.push(table.fill(rows, &methods, seed, &mut summary));
    }
    for method in ["information", "determinant"] {
        let needed = votes_needed(rows, method);
        let mean = over_seeds(&needed, &mut run::rng(seed, &["votes needed", method]));
        summary.push(json!({"experiment": "questions", "method": method, "figure": "votes_needed", "mean": mean}));
        printed.push(format!("Chosen by {method}, as good as 30 random votes after {}\n", shown(&mean, 1)));
    }
    run::write_json(&folder.join("summary.json"), &json!({"lab": lab, "seed": seed, "rows": summary}))?;
    let svg = log_plot("RFM: new raters", "votes of a new rater", "accuracy", &curves(rows, &methods))?;
    run::write_atomic(&folder.join("shots.svg"), svg.as_bytes())?;
    Ok(printed.join("\n"))
}

fn write_rows(rows: &[RfmRow], folder: &Path) -> Result<()> {
    let text = |f: fn(&RfmRow) -> &String| Column::Text(rows.iter().map(|r| f(r).clone()).collect());
    let count = |f: fn(&RfmRow) -> usize| Column::Integer(rows.iter().map(|r| f(r) as i64).collect());
    let real = |f: fn(&RfmRow) -> f64| Column::Real(rows.iter().map(f).collect());
    let columns = [
        ("experiment", text(|r| &r.experiment)),
        ("method", text(|r| &r.method)),
        ("seed", count(|r| r.seed)),
        ("raters", count(|r| r.raters)),
        ("votes", count(|r| r.votes)),
        ("alike", real(|r| r.alike)),
        ("shots", count(|r| r.shots)),
        ("accuracy", real(|r| r.served.accuracy)),
        ("gained", real(|r| r.served.gained)),
        ("beats", real(|r| r.served.beats)),
    ];
    data::write_table(&folder.join("rows.parquet"), &columns)
}

impl Table {
    /// The table with its title; every mean goes into the summary too.
    fn fill(&self, rows: &[RfmRow], methods: &[&str], seed: u64, summary: &mut Vec<Value>) -> String {
        let Self { experiment, title, place, figure, value } = *self;
        let own: Vec<&RfmRow> = rows.iter().filter(|r| r.experiment == experiment).collect();
        let places = distinct(own.iter().map(|r| place(r)));
        let values = |method: &str, at: &str| -> Vec<f64> {
            own.iter().filter(|r| r.method == method && place(r) == at).map(|r| value(&r.served)).collect()
        };
        let mut lines = Vec::new();
        let there = |method: &&&str| own.iter().any(|r| r.method == **method);
        for method in methods.iter().filter(there) {
            let mut line = vec![(*method).to_owned()];
            for at in &places {
                let own = values(method, at);
                let mut rng = run::rng(seed, &["summary", experiment, figure, method, at]);
                let mean = over_seeds(&own, &mut rng);
                line.push(if own.is_empty() { String::new() } else { shown(&mean, 3) });
                if !own.is_empty() {
                    summary.push(
                        json!({"experiment": experiment, "at": at, "method": method, "figure": figure, "mean": mean}),
                    );
                }
            }
            lines.push(line);
        }
        // The margin, repetition by repetition.
        let mut line = vec!["RFM minus one reward for all".to_owned()];
        for at in places.iter().filter(|_| experiment != "questions") {
            let margins: Vec<f64> =
                values("RFM", at).iter().zip(values("one reward for all", at)).map(|(a, b)| a - b).collect();
            let mean = over_seeds(&margins, &mut run::rng(seed, &["margin", experiment, figure, at]));
            line.push(shown(&mean, 3));
            summary.push(
                json!({"experiment": experiment, "at": at, "method": "RFM minus one reward for all", "figure": figure, "mean": mean}),
            );
        }
        if line.len() > 1 {
            lines.push(line);
        }
        let head: Vec<&str> = std::iter::once("method").chain(places.iter().map(String::as_str)).collect();
        format!("{title}\n\n{}", markdown(&head, &lines))
    }
}

/// Accuracy of every method by votes of a new rater.
fn curves(rows: &[RfmRow], methods: &[&str]) -> Vec<Series> {
    let of_shots = || rows.iter().filter(|r| r.experiment == "shots");
    // 0 has no place on a logarithmic axis.
    let shots: BTreeSet<usize> = of_shots().map(|r| r.shots).filter(|n| *n > 0).collect();
    let curve = |method: &&str| {
        let mean = |n: usize| {
            let of = of_shots().filter(|r| r.method == *method && r.shots == n);
            let values: Vec<f64> = of.map(|r| r.served.accuracy).collect();
            values.iter().sum::<f64>() / values.len() as f64
        };
        let points = shots.iter().map(|n| (*n as f64, mean(*n))).collect();
        Series { name: (*method).to_owned(), points, reference: false }
    };
    methods.iter().map(curve).collect()
}

/// Votes chosen by `method` until a new rater is served as well as 30 random ones do it, repetition by repetition: between the numbers of votes
/// that were looked at, accuracy is taken to rise evenly.
fn votes_needed(rows: &[RfmRow], method: &str) -> Vec<f64> {
    let of = |method: &str, seed: usize| -> Vec<(f64, f64)> {
        let own = rows.iter().filter(|r| r.experiment == "questions" && r.method == method && r.seed == seed);
        own.map(|r| (r.shots as f64, r.served.accuracy)).collect()
    };
    let seeds: BTreeSet<usize> = rows.iter().map(|r| r.seed).collect();
    let needed = |seed: usize| -> Option<f64> {
        let goal = of("random", seed).last()?.1;
        let curve = of(method, seed);
        let mut before = (0.0, 0.5); // a coin
        for point in curve {
            if point.1 >= goal {
                return Some(
                    before.0 + (point.0 - before.0) * ((goal - before.1) / (point.1 - before.1)).clamp(0.0, 1.0),
                );
            }
            before = point;
        }
        Some(before.0) // not within the questions that were asked
    };
    seeds.into_iter().filter_map(needed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn votes_needed_are_interpolated_between_the_numbers_that_were_looked_at() {
        let row = |method: &str, shots: usize, accuracy: f64| RfmRow {
            experiment: "questions".into(),
            method: method.into(),
            seed: 0,
            raters: 8,
            votes: 30,
            alike: 0.5,
            shots,
            served: Served { accuracy, gained: f64::NAN, beats: f64::NAN },
        };
        let rows =
            [row("random", 10, 0.6), row("random", 30, 0.8), row("information", 10, 0.7), row("information", 20, 0.9)];
        // Half of the way from .7 to .9, and never beyond what was asked.
        assert!((votes_needed(&rows, "information")[0] - 15.0).abs() < 1e-9);
        let slow = [row("random", 30, 0.8), row("determinant", 30, 0.7)];
        assert_eq!(votes_needed(&slow, "determinant"), [30.0]);
    }
}
