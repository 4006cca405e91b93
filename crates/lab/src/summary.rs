//! What all tables of the labs share: means over repetitions, in order of appearance.

use report::markdown;
use stats::{Interval, Slope, clustered_mean};

/// A mean over repetitions with its 95% interval (repetitions drawn).
pub(crate) fn over_seeds(values: &[f64], rng: &mut impl rand::Rng) -> Interval {
    let clusters: Vec<(f64, usize)> = values.iter().map(|v| (*v, 1)).collect();
    clustered_mean(&clusters, rng).unwrap_or(Interval { mean: f64::NAN, low: f64::NAN, high: f64::NAN })
}

/// As a table shows it.
pub(crate) fn shown(i: &Interval, digits: usize) -> String {
    format!("{:.digits$} [{:.digits$}, {:.digits$}]", i.mean, i.low, i.high)
}

/// Each name once, in order of appearance.
pub(crate) fn distinct<T: PartialEq>(names: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut out: Vec<T> = Vec::new();
    for name in names {
        if !out.contains(&name) {
            out.push(name);
        }
    }
    out
}

/// A table of measured and predicted slopes.
pub(crate) fn slopes_table(slopes: &[Slope]) -> String {
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
    markdown(&["quantity", "measured slope, 95% interval", "of the bound", "source"], &rows)
}
