//! What the study of held-out users found: rows and a summary.

use std::collections::BTreeMap;
use std::path::Path;

use data::Column;
use problem::Result;
use report::markdown;
use serde_json::{Value, json};
use stats::{Interval, clustered_mean};

use crate::held_out_users::{HeldOutRow, HeldOutStudy};
use crate::summary::{distinct, shown};

/// Writes `rows.parquet` and `summary.json` into `folder`, users by their `names`; `depth` is the block behind which texts were read. Gives the
/// table as Markdown.
///
/// # Errors
/// A file that cannot be written.
pub fn write_held_out(
    study: &HeldOutStudy,
    rows: &[HeldOutRow],
    names: &[&str],
    depth: usize,
    seed: u64,
    folder: &Path,
) -> Result<String> {
    let count = |f: fn(&HeldOutRow) -> usize| Column::Integer(rows.iter().map(|r| f(r) as i64).collect());
    let columns = [
        ("user", Column::Text(rows.iter().map(|r| names[r.user].to_owned()).collect())),
        ("split", count(|r| r.split)),
        ("method", Column::Text(rows.iter().map(|r| r.method.to_owned()).collect())),
        ("shots", count(|r| r.shots)),
        ("votes", count(|r| r.votes)),
        ("right", Column::Real(rows.iter().map(|r| r.right).collect())),
    ];
    data::write_table(&folder.join("rows.parquet"), &columns)?;
    let (summary, text) = summarise(rows, study, seed);
    run::write_json(
        &folder.join("summary.json"),
        &json!({"study": study, "seed": seed, "depth": depth, "rows": summary}),
    )?;
    Ok(text)
}

/// Mean over people of their accuracy over splits, people drawn; and what votes gain over none, person by person.
fn summarise(rows: &[HeldOutRow], study: &HeldOutStudy, seed: u64) -> (Vec<Value>, String) {
    let methods = distinct(rows.iter().map(|r| r.method));
    let by_person = |method: &str, shots: usize| -> BTreeMap<usize, f64> {
        let mut sums: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
        for r in rows.iter().filter(|r| r.method == method && r.shots == shots) {
            let sum = sums.entry(r.user).or_default();
            *sum = (sum.0 + r.right / r.votes as f64, sum.1 + 1.0);
        }
        sums.into_iter().map(|(user, (sum, n))| (user, sum / n)).collect()
    };
    let interval = |values: Vec<f64>, name: &str| -> Option<Interval> {
        let clusters: Vec<(f64, usize)> = values.into_iter().map(|v| (v, 1)).collect();
        clustered_mean(&clusters, &mut run::rng(seed, &["newcomers", name]))
    };
    let (mut summary, mut lines) = (Vec::new(), Vec::new());
    for method in &methods {
        let mut line = vec![(*method).to_owned()];
        for shots in &study.shots {
            let own = by_person(method, *shots);
            let mean = interval(own.into_values().collect(), &format!("{method} {shots}"));
            line.push(mean.map_or(String::new(), |m| shown(&m, 3)));
            summary.extend(mean.map(|m| json!({"method": method, "shots": shots, "accuracy": m})));
        }
        let (none, twenty) = (by_person(method, 0), by_person(method, 20));
        let gains: Vec<f64> = twenty.iter().filter_map(|(user, a)| Some(a - none.get(user)?)).collect();
        let gain = interval(gains, &format!("{method} gain"));
        line.push(gain.map_or(String::new(), |m| shown(&m, 3)));
        summary.extend(gain.map(|m| json!({"method": method, "gain_of_20": m})));
        lines.push(line);
    }
    let mut head = vec!["method".to_owned()];
    head.extend(study.shots.iter().map(|n| format!("{n} votes")));
    head.push("20 minus 0".to_owned());
    let head: Vec<&str> = head.iter().map(String::as_str).collect();
    (summary, markdown(&head, &lines))
}
