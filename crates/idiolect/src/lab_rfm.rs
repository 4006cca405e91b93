//! `idiolect lab rfm`: rows.parquet, summary.json, a plot.

use data::Column;
use estimate::{RfmLab, RfmRow, Served};
use problem::Result;
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
        ("accuracy", real(|r| r.served.accuracy)),
        ("gained", real(|r| r.served.gained)),
        ("beats", real(|r| r.served.beats)),
    ];
    data::write_table(&aside.join("rows.parquet"), &columns)?;

    let mut methods: Vec<&str> = Vec::new();
    rows.iter().for_each(|r| {
        if !methods.contains(&r.method.as_str()) {
            methods.push(&r.method);
        }
    });
    type Place = fn(&RfmRow) -> String;
    type Figure = (&'static str, fn(&Served) -> f64);
    const ACCURACY: Figure = ("accuracy", |s| s.accuracy);
    let experiments: [(&str, &str, Place, Figure); 8] = [
        ("raters", "Raters in training, 30 votes each, 30 of a new rater, p = 0.5", |r| r.raters.to_string(), ACCURACY),
        ("disagreement", "How alike raters are, p; 60 raters", |r| format!("{}", r.alike), ACCURACY),
        ("shots", "Votes of a new rater; 60 raters, p = 0.5", |r| r.shots.to_string(), ACCURACY),
        ("budget", "1,920 votes in all: raters x votes", |r| format!("{} x {}", r.raters, r.votes), ACCURACY),
        (
            "leave one out",
            "8 raters of unlike tastes, 240 votes each, every one new once: votes of the new one",
            |r| r.shots.to_string(),
            ACCURACY,
        ),
        ("questions", "Questions at random and chosen from 200 pairs; 256 raters", |r| r.shots.to_string(), ACCURACY),
        (
            "shots",
            "Best of 16: true reward above the answers' mean, deviations; votes of a new rater",
            |r| r.shots.to_string(),
            ("gained", |s| s.gained),
        ),
        (
            "shots",
            "Best of 16: share of prompts where the pick beats that by one reward for all; votes of a new rater",
            |r| r.shots.to_string(),
            ("beats", |s| s.beats),
        ),
    ];
    let (mut summary, mut printed): (Vec<Value>, Vec<String>) = (Vec::new(), Vec::new());
    for (experiment, title, place, (figure, value)) in experiments {
        let own: Vec<&RfmRow> = rows.iter().filter(|r| r.experiment == experiment).collect();
        let mut places: Vec<String> = Vec::new();
        own.iter().for_each(|r| {
            if !places.contains(&place(r)) {
                places.push(place(r));
            }
        });
        let values = |method: &str, at: &str| -> Vec<f64> {
            own.iter().filter(|r| r.method == method && place(r) == at).map(|r| value(&r.served)).collect()
        };
        let mut lines = Vec::new();
        let there = |method: &&&str| own.iter().any(|r| r.method == **method);
        for method in methods.iter().filter(there) {
            let mut line = vec![(*method).to_owned()];
            for at in &places {
                let own = values(method, at);
                let mut rng = run::rng(args.seed, &["summary", experiment, figure, method, at]);
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
            let mean = over_seeds(&margins, &mut run::rng(args.seed, &["margin", experiment, figure, at]));
            line.push(shown(&mean, 3));
            summary.push(
                json!({"experiment": experiment, "at": at, "method": "RFM minus one reward for all", "figure": figure, "mean": mean}),
            );
        }
        if line.len() > 1 {
            lines.push(line);
        }
        let head: Vec<&str> = std::iter::once("method").chain(places.iter().map(String::as_str)).collect();
        printed.push(format!("{title}\n\n{}", table::markdown(&head, &lines)));
    }
    for method in ["information", "determinant"] {
        let needed = votes_needed(&rows, method);
        let mean = over_seeds(&needed, &mut run::rng(args.seed, &["votes needed", method]));
        summary.push(json!({"experiment": "questions", "method": method, "figure": "votes_needed", "mean": mean}));
        printed.push(format!("Chosen by {method}, as good as 30 random votes after {}\n", shown(&mean, 1)));
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
                let values: Vec<f64> = of.map(|r| r.served.accuracy).collect();
                values.iter().sum::<f64>() / values.len() as f64
            };
            // 0 has no place on a logarithmic axis.
            let points = shots.into_iter().filter(|n| *n > 0).map(|n| (n as f64, mean(n))).collect();
            Series { name: (*method).to_owned(), points, reference: false }
        })
        .collect();
    run::log_plot(&aside.join("shots.svg"), "RFM: new raters", "votes of a new rater", "accuracy", &series)?;
    publish(&aside, &args.out)?;
    table::print(&printed.join("\n"))?;
    Ok(())
}

/// Votes chosen by `method` until a new rater is served as well as 30 random ones do it, repetition by repetition: between the numbers of votes
/// that were looked at, accuracy is taken to rise evenly.
fn votes_needed(rows: &[RfmRow], method: &str) -> Vec<f64> {
    let of = |method: &str, seed: usize| -> Vec<(f64, f64)> {
        let own = rows.iter().filter(|r| r.experiment == "questions" && r.method == method && r.seed == seed);
        own.map(|r| (r.shots as f64, r.served.accuracy)).collect()
    };
    let seeds: std::collections::BTreeSet<usize> = rows.iter().map(|r| r.seed).collect();
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
