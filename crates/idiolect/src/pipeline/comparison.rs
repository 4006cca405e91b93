//! Reward models of all cells of a matrix on the votes that they were tested on: folds together, seeds as fits of one method.

use std::collections::{BTreeMap, BTreeSet};

use eval::{Method, Prediction};
use problem::Result;
use reward::{RewardConfig, Variant};

use super::graph::NodeId;
use super::walk::{State, Walker};
use crate::table;

/// A method while its cells are gathered.
struct Tested<'p> {
    name: String,
    config: &'p RewardConfig,
    /// Predictions of all folds, by fit.
    fits: BTreeMap<String, Vec<Prediction>>,
    swapped: Vec<f64>,
}

/// Writes `comparison.json`, `comparison.md`, which it prints, and `comparison.svg`, where several methods have a tested reward model. Only
/// results of this run, or of earlier ones that are up to date in it, are compared.
pub(crate) fn compare(walker: &Walker, states: &[State]) -> Result<()> {
    let (graph, folder) = (walker.graph, walker.folder);
    let mut tested: Vec<Tested> = Vec::new();
    let (mut seen, mut without) = (BTreeSet::new(), BTreeSet::new());
    for cell in &graph.cells {
        let of =
            |id: &NodeId| graph.nodes[*id].stage.as_any().downcast_ref::<RewardConfig>().map(|config| (*id, config));
        let Some((id, config)) = cell.nodes.iter().find_map(of) else { return Ok(()) };
        if !seen.insert(id) {
            continue; // cells that differ in their policies share a reward model
        }
        let Some(manifest) = states[id].manifest() else {
            without.insert(cell.method.as_str());
            continue; // it diverged
        };
        let known = tested.iter().position(|t| t.name == cell.method);
        let at = known.unwrap_or_else(|| {
            tested.push(Tested { name: cell.method.clone(), config, fits: BTreeMap::new(), swapped: vec![] });
            tested.len() - 1
        });
        tested[at].swapped.extend(manifest.summary["test"]["swapped"].as_f64());
        let predictions = walker.target(&graph.nodes[id]).join("predictions-test.parquet");
        let of_fit = tested[at].fits.entry(cell.fit.clone()).or_default();
        of_fit.extend(eval::read_predictions(&predictions)?);
    }
    let found = tested.len();
    tested.retain(|t| !without.contains(t.name.as_str()));
    if found > 0 && !without.is_empty() {
        let names: Vec<&str> = without.into_iter().collect();
        tracing::info!("not compared, since cells of theirs have no result: {}", names.join(", "));
    }
    if tested.len() < 2 {
        return Ok(());
    }
    let first = |wanted| tested.iter().find(|t| t.config.variant == wanted).map(|t| t.name.as_str());
    // Verdicts speak of the last personal method: a pipeline names first what it compares with.
    let personal = tested.iter().rev().find(|t| t.config.variant == Variant::PShareLora).map(|t| t.name.as_str());
    let mean = |v: &[f64]| (!v.is_empty()).then(|| v.iter().sum::<f64>() / v.len() as f64);
    let methods: Vec<Method> = tested
        .iter()
        .map(|t| Method { name: t.name.clone(), seeds: t.fits.values().cloned().collect(), swapped: mean(&t.swapped) })
        .collect();
    let (global, local) = (first(Variant::LoraGlobal), first(Variant::LoraLocal));
    let Some(comparison) = eval::compare(&methods, global, local, personal, graph.seed) else {
        tracing::info!("no vote was predicted by every method with every seed: nothing to compare");
        return Ok(());
    };
    table::print(&comparison.write(folder)?)?;
    Ok(())
}
