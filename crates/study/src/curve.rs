//! Gold against proxy: what a policy's reward model thought of its answers along training, and what the truth says of them
//! (Gao et al. 2022: where the two part, the reward model is being exploited).

use std::collections::BTreeMap;
use std::path::Path;

use data::read_table;
use problem::{Result, invalid};
use report::{Series, line_plot};
use run::Run;
use serde::{Deserialize, Serialize};

use crate::truth::Truth;

/// One user's rounds `first` to `last`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// The user.
    pub user: String,
    /// First round.
    pub first: usize,
    /// Last round.
    pub last: usize,
    /// Answers in them.
    pub answers: usize,
    /// Mean score of the reward model, calibrated: 0 is the base, 1 a standard deviation of the base's answers.
    pub proxy: f64,
    /// Mean truth, on the same scale.
    pub gold: f64,
    /// Mean divergence from the reference, nats an answer.
    pub kl: f64,
}

/// Points of a user's curve.
const POINTS: usize = 12;

/// Reads the answers that training sampled (`rollouts.parquet` of the stage `ppo`), lets every user's truth judge them, and writes
/// `curve.json`, `curve.svg` (rounds) and `frontier.svg` (divergence) into the run's folder. `base` holds every user's truths of answers of
/// the base: their mean and deviation are the scale.
pub fn curve(rollouts: &Path, truth: &Truth, base: &BTreeMap<String, Vec<f64>>, run: &Run) -> Result<Vec<CurvePoint>> {
    let table = read_table(rollouts, &["user_id", "step", "answer", "score", "kl"])?;
    let (users, answers) = (table.full_text("user_id")?, table.full_text("answer")?);
    let (steps, scores, kl) = (table.full_real("step")?, table.full_real("score")?, table.full_real("kl")?);
    let mut rounds: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (row, user) in users.iter().enumerate() {
        rounds.entry(user).or_default().push(row);
    }
    let mut out = Vec::new();
    for (user, rows) in rounds {
        let Some(known) = base.get(user) else {
            return Err(invalid(
                format!("{}, user `{user}`", rollouts.display()),
                "a user whose truth is known",
                "another",
                "this is for simulated raters",
            ));
        };
        let n = known.len() as f64;
        let mean = known.iter().sum::<f64>() / n;
        let deviation = (known.iter().map(|t| (t - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0)).sqrt();
        let last = rows.iter().map(|r| steps[*r] as usize).max().unwrap_or(0);
        let width = (last + 1).div_ceil(POINTS);
        for first in (0..=last).step_by(width) {
            let inside: Vec<usize> =
                rows.iter().copied().filter(|r| (first..first + width).contains(&(steps[*r] as usize))).collect();
            if inside.is_empty() {
                continue;
            }
            let mean_of = |f: &dyn Fn(usize) -> f64| inside.iter().map(|r| f(*r)).sum::<f64>() / inside.len() as f64;
            out.push(CurvePoint {
                user: user.to_owned(),
                first,
                last: (first + width - 1).min(last),
                answers: inside.len(),
                proxy: mean_of(&|r| scores[r]),
                gold: mean_of(&|r| (truth.of(user, &answers[r]).unwrap_or_default() - mean) / deviation.max(1e-12)),
                kl: mean_of(&|r| kl[r]),
            });
        }
    }
    run::write_json(&run.path("curve.json"), &out)?;
    plots(&out, run)?;
    Ok(out)
}

fn plots(points: &[CurvePoint], run: &Run) -> Result<()> {
    let line = |name: String, points: Vec<(f64, f64)>, reference| Series { name, points, reference };
    // Over rounds: means of all users.
    let mut by_round: BTreeMap<usize, Vec<&CurvePoint>> = BTreeMap::new();
    points.iter().for_each(|p| by_round.entry(p.first).or_default().push(p));
    let mean = |f: fn(&CurvePoint) -> f64| -> Vec<(f64, f64)> {
        let point = |(round, some): (&usize, &Vec<&CurvePoint>)| {
            (*round as f64, some.iter().map(|p| f(p)).sum::<f64>() / some.len() as f64)
        };
        by_round.iter().map(point).collect()
    };
    let lines = [line("proxy".into(), mean(|p| p.proxy), false), line("gold".into(), mean(|p| p.gold), false)];
    let (x, y) = ("round", "mean over users, deviations of the base");
    let svg = line_plot("What the reward model thinks, and the truth", x, y, &lines)?;
    run::write_atomic(&run.path("curve.svg"), svg.as_bytes())?;
    let users: Vec<&str> = {
        let mut users: Vec<&str> = points.iter().map(|p| p.user.as_str()).collect();
        users.dedup();
        users
    };
    let frontier = |user: &&str| {
        let mut own: Vec<(f64, f64)> = points.iter().filter(|p| p.user == **user).map(|p| (p.kl, p.gold)).collect();
        own.sort_by(|a, b| a.0.total_cmp(&b.0));
        line((*user).to_owned(), own, false)
    };
    let lines: Vec<Series> = users.iter().map(frontier).collect();
    let (x, y) = ("KL from the base, nats an answer", "truth, deviations of the base");
    let svg = line_plot("True reward against divergence", x, y, &lines)?;
    run::write_atomic(&run.path("frontier.svg"), svg.as_bytes())
}
