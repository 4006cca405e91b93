//! `idiolect lab rfm`: rows.parquet, summary.json, a plot.

use anyhow::Result;
use data::Column;
use estimate::{RfmLab, RfmRow};
use run::Series;
use serde_json::{Value, json};

use crate::lab_command::{LabArgs, over_seeds, publish, shown};
use crate::table;

pub(crate) fn run(args: &LabArgs) -> Result<()> {
    let (repetitions, aside) = args.begin(12)?;
    let lab = RfmLab { seeds: repetitions, ..RfmLab::default() };
    let mut bar = run::Progress::new("lab rfm", 0, 0);
    let rows = lab.run(|name| run::rng(args.seed, &["lab", "rfm", name]), |done, all| bar.reach(done, all));
    drop(bar);

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
        ("accuracy", real(|r| r.accuracy)),
    ];
    data::write_table(&aside.join("rows.parquet"), &columns)?;

    let mut methods: Vec<&str> = Vec::new();
    rows.iter().for_each(|r| {
        if !methods.contains(&r.method.as_str()) {
            methods.push(&r.method);
        }
    });
    type Place = fn(&RfmRow) -> String;
    let experiments: [(&str, &str, Place); 4] = [
        ("raters", "Raters in training, 30 votes each, 30 of a new rater, p = 0.5", |r| r.raters.to_string()),
        ("disagreement", "How alike raters are, p; 60 raters", |r| format!("{}", r.alike)),
        ("shots", "Votes of a new rater; 60 raters, p = 0.5", |r| r.shots.to_string()),
        ("budget", "1,920 votes in all: raters x votes", |r| format!("{} x {}", r.raters, r.votes)),
    ];
    let (mut summary, mut printed): (Vec<Value>, Vec<String>) = (Vec::new(), Vec::new());
    for (experiment, title, place) in experiments {
        let own: Vec<&RfmRow> = rows.iter().filter(|r| r.experiment == experiment).collect();
        let mut places: Vec<String> = Vec::new();
        own.iter().for_each(|r| {
            if !places.contains(&place(r)) {
                places.push(place(r));
            }
        });
        let values = |method: &str, at: &str| -> Vec<f64> {
            own.iter().filter(|r| r.method == method && place(r) == at).map(|r| r.accuracy).collect()
        };
        let mut lines = Vec::new();
        for method in &methods {
            let mut line = vec![(*method).to_owned()];
            for at in &places {
                let accuracies = values(method, at);
                let mut rng = run::rng(args.seed, &["summary", experiment, method, at]);
                let mean = over_seeds(&accuracies, &mut rng);
                line.push(if accuracies.is_empty() { String::new() } else { shown(&mean, 3) });
                if !accuracies.is_empty() {
                    summary.push(json!({"experiment": experiment, "at": at, "method": method, "accuracy": mean}));
                }
            }
            lines.push(line);
        }
        // The margin, repetition by repetition.
        let mut line = vec!["RFM minus one reward for all".to_owned()];
        for at in &places {
            let margins: Vec<f64> =
                values("RFM", at).iter().zip(values("one reward for all", at)).map(|(a, b)| a - b).collect();
            let mean = over_seeds(&margins, &mut run::rng(args.seed, &["margin", experiment, at]));
            line.push(shown(&mean, 3));
            summary.push(
                json!({"experiment": experiment, "at": at, "method": "RFM minus one reward for all", "accuracy": mean}),
            );
        }
        lines.push(line);
        let head: Vec<&str> = std::iter::once("method").chain(places.iter().map(String::as_str)).collect();
        printed.push(format!("{title}\n\n{}", table::markdown(&head, &lines)));
    }
    run::write_json(&aside.join("summary.json"), &json!({"lab": lab, "seed": args.seed, "rows": summary}))?;

    let series: Vec<Series> = methods
        .iter()
        .map(|method| {
            let mut shots: Vec<usize> = rows.iter().filter(|r| r.experiment == "shots").map(|r| r.shots).collect();
            shots.sort_unstable();
            shots.dedup();
            let mean = |n: usize| {
                let of = rows.iter().filter(|r| r.experiment == "shots" && r.method == *method && r.shots == n);
                let values: Vec<f64> = of.map(|r| r.accuracy).collect();
                values.iter().sum::<f64>() / values.len() as f64
            };
            // 0 has no place on a logarithmic axis.
            let points = shots.into_iter().filter(|n| *n > 0).map(|n| (n as f64, mean(n))).collect();
            Series { name: (*method).to_owned(), points, reference: false }
        })
        .collect();
    run::log_plot(&aside.join("shots.svg"), "RFM: new raters", "votes of a new rater", "accuracy", &series)?;
    publish(&aside, &args.out)?;
    table::print(&printed.join("\n"));
    Ok(())
}
