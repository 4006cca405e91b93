//! What P-ShareLoRA's lab found: rows, slopes and plots.

use std::collections::BTreeMap;
use std::path::Path;

use data::Column;
use problem::Result;
use report::{Series, log_plot};
use serde_json::json;

use crate::share_lora::{LabRow, NO_TAIL, ShareLoraLab, slopes};
use crate::summary::slopes_table;

/// Writes `rows.parquet`, `slopes.json` and four plots into `folder`; gives the table of slopes as Markdown.
///
/// # Errors
/// A file that cannot be written.
pub fn write_share_lora(lab: &ShareLoraLab, rows: &[LabRow], seed: u64, folder: &Path) -> Result<String> {
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
    data::write_table(&folder.join("rows.parquet"), &columns)?;
    let slopes = slopes(rows, seed);
    run::write_json(&folder.join("slopes.json"), &json!({"lab": lab, "seed": seed, "slopes": slopes}))?;
    let plots = [
        ("subspace.svg", "samples", "distance", "votes of all users, N N_p", "distance of subspaces", -0.5),
        ("value.svg", "votes", "gap", "votes of a user, N_p", "value gap, mean over users", -0.5),
        ("tail-subspace.svg", "tail", "distance", "Sigma_tail", "distance of subspaces", 0.5),
        ("tail-value.svg", "tail", "gap", "Sigma_tail", "value gap, mean over users", 0.25),
    ];
    for (file, experiment, quantity, x, y, bound) in plots {
        let series = series(rows, experiment, quantity, bound);
        let svg = log_plot(&format!("P-ShareLoRA: {experiment}"), x, y, &series)?;
        run::write_atomic(&folder.join(file), svg.as_bytes())?;
    }
    Ok(slopes_table(&slopes))
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
            let mut points: Vec<(f64, f64)> = places.values().map(mean).filter(|(x, _)| *x > NO_TAIL).collect();
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
