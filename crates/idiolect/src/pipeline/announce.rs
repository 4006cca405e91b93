//! What will run, why, with how many tokens, and how long that may take.

use std::collections::BTreeMap;

use problem::{Problem, Result, mistake};

use super::graph::{Node, NodeId};
use super::sizes::Known;
use super::speed::Speed;
use super::walk::{Look, State, Walker};
use crate::stages::Budget;
use crate::table;

/// Walks through the pipeline without running anything, and says what a run would do. A dry run prints a line for each stage, and also
/// counts what is in source files. Gives what the run would refuse: results of another environment.
pub(crate) fn announce(walker: &Walker, dry_run: bool) -> Result<Vec<Problem>> {
    let graph = walker.graph;
    let mut reasons: Vec<String> = Vec::new();
    let mut refusals: Vec<Problem> = Vec::new();
    let states = walker.walk(|id, look, _| {
        let (reason, state) = match look {
            Look::UpToDate(manifest) => ("up to date".to_owned(), State::Done(manifest)),
            Look::Run { why, .. } => (why, State::Pending),
            Look::OtherEnvironment { finished, differences } => {
                let refusal = other_environment(&graph.nodes[id], finished.is_some(), &differences);
                let reason = format!("ends with an error: {refusal}");
                refusals.push(refusal);
                (reason, finished.map_or(State::Pending, State::Done))
            }
            Look::Waits(provider) => (format!("waits for {}", graph.nodes[provider].folder), State::Pending),
            Look::Unreachable => ("waits".into(), State::Pending), // no node fails in a dry run
        };
        reasons.push(reason);
        Ok(state)
    })?;
    let budgets = budgets(walker, &states, dry_run)?;
    let pending = |id: &NodeId| matches!(states[*id], State::Pending);
    if dry_run {
        let tokens = |n: usize| if n == 0 { String::new() } else { n.to_string() };
        let row = |id: usize| {
            let Budget { sampled, trained, .. } = budgets[&id];
            vec![graph.nodes[id].folder.clone(), reasons[id].clone(), tokens(sampled), tokens(trained)]
        };
        let rows: Vec<Vec<String>> = (0..graph.nodes.len()).map(row).collect();
        table::print(&report::markdown(&["stage", "why", "at most sampled", "at most trained"], &rows))?;
    }
    let mut total = Budget::default();
    budgets.iter().filter(|(id, _)| pending(id)).for_each(|(_, budget)| total.add(*budget));
    if total.sampled > 0 || total.trained > 0 {
        let parameters = Known { walker, cell: &graph.cells[0], states: &states }.base().0;
        estimate(walker, total, parameters);
    }
    Ok(refusals)
}

/// The budget of every node, by the first cell that it is part of.
fn budgets(walker: &Walker, states: &[State], count: bool) -> Result<BTreeMap<NodeId, Budget>> {
    let mut budgets = BTreeMap::new();
    for cell in &walker.graph.cells {
        if cell.nodes.iter().all(|id| budgets.contains_key(id)) {
            continue;
        }
        let sizes = Known { walker, cell, states }.sizes(count)?;
        for id in &cell.nodes {
            budgets.entry(*id).or_insert_with(|| walker.graph.nodes[*id].stage.budget(&sizes));
        }
    }
    Ok(budgets)
}

fn estimate(walker: &Walker, total: Budget, parameters: f64) {
    let compute = walker.compute;
    let speed = Speed::measure(compute, parameters);
    tracing::info!(
        "{} on {} in {}, {} threads: up to {} tokens to sample and {} to train; about {:.0} minutes on this machine",
        walker.graph.name,
        compute.device_name(),
        compute.dtype(),
        compute.threads,
        total.sampled,
        total.trained,
        (speed.seconds(total) / 60.0).ceil()
    );
    let cpu = format!("{}, {} threads", device::cpu_kind().name(), compute.threads);
    let device = if compute.device == device::Device::Cpu { cpu } else { compute.device_name() };
    tracing::info!("this machine ({device}): {}", speed.compared_with_the_documents());
}

/// The refusal of a result of another environment.
pub(crate) fn other_environment(node: &Node, finished: bool, differences: &[String]) -> Problem {
    let (what, kept) =
        if finished { ("was computed", "uses it as it is") } else { ("was begun", "goes on from there") };
    let hint = format!(
        "--accept-environment {kept}; or run it as before; nothing is deleted{}",
        if finished { format!("; --force {} computes it again", node.stage.kind()) } else { String::new() }
    );
    mistake(format!("{}: {what} in another environment: {}", node.folder, differences.join(", ")), hint)
}
