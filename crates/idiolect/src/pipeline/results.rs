//! One table over all cells of a matrix.

use std::collections::BTreeMap;

use problem::Result;
use serde_json::{Value, json};

use super::walk::{State, Walker};
use crate::table;

/// Users whose figures are in a line of the table.
const LISTED: usize = 8;

/// One table over all cells of a matrix: the reward model's test accuracy, and the policies' win rates and divergences, which
/// `frontier.svg` shows as a line for each user.
pub(crate) fn write(walker: &Walker, states: &[State]) -> Result<()> {
    let folder = walker.folder;
    let mut rows = Vec::new();
    let mut entries = Vec::new();
    let mut frontier: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for cell in walker.graph.cells.iter().filter(|cell| cell.nodes.iter().all(|id| states[*id].manifest().is_some())) {
        let summary = |kind: &str| {
            let node = cell.nodes.iter().find(|id| walker.graph.nodes[**id].stage.kind() == kind)?;
            states[*node].manifest().map(|manifest| &manifest.summary)
        };
        let (label, reward) = (&cell.label, summary("reward").map(|s| &s["test"]));
        let evaluation = summary("evaluate").map(|s| &s["users"]);
        let accuracy = reward.map_or(Value::Null, |r| r["mean_accuracy"].clone());
        // A table of many users is in each cell's own report.
        let users: Vec<Value> = reward.and_then(|r| r["users"].as_array().cloned()).unwrap_or_default();
        let listed = if users.len() <= LISTED { users.as_slice() } else { &[] };
        let number = |v: &Value| v.as_f64().map_or(String::new(), |n| format!("{n:.3}"));
        let each = listed
            .iter()
            .map(|u| format!("{} {}", u["user"].as_str().unwrap_or_default(), number(&u["accuracy"]["mean"])));
        let wins = evaluation.and_then(Value::as_object).map(|map| {
            let each = map.iter().map(|(user, v)| {
                if let (Some(kl), Some(win)) = (v["kl"].as_f64(), v["win_rate"].as_f64()) {
                    frontier.entry(user.clone()).or_default().push((kl, win));
                }
                format!("{user} {} at {:.1}", number(&v["win_rate"]), v["kl"].as_f64().unwrap_or(f64::NAN))
            });
            each.collect::<Vec<_>>().join(", ")
        });
        rows.push(vec![
            label.clone(),
            number(&accuracy),
            each.collect::<Vec<_>>().join(", "),
            wins.unwrap_or_default(),
        ]);
        entries.push(json!({"cell": label, "reward_test_accuracy": accuracy, "reward_test_users": users,
                            "policy_users": evaluation.cloned().unwrap_or(Value::Null)}));
    }
    let text = report::markdown(&["cell", "test accuracy", "by user", "win rate over base, at nats an answer"], &rows);
    run::write_json(&folder.join("results.json"), &entries)?;
    run::write_atomic(&folder.join("results.md"), text.as_bytes())?;
    if !frontier.is_empty() {
        let lines: Vec<report::Series> = frontier
            .into_iter()
            .map(|(name, mut points)| {
                points.sort_by(|a, b| a.0.total_cmp(&b.0));
                report::Series { name, points, reference: false }
            })
            .collect();
        let (x, y) = ("divergence from the base, nats an answer", "win rate over the base");
        let svg = report::line_plot("What policies gain, and how far they go", x, y, &lines)?;
        run::write_atomic(&folder.join("frontier.svg"), svg.as_bytes())?;
    }
    table::print(&text)?;
    Ok(())
}
