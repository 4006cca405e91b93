//! Reward models of all cells of a matrix on the votes that they were tested on: folds together, seeds as fits of one method.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use eval::{Method, Prediction};
use problem::Result;
use reward::{RewardConfig, Variant};
use serde_json::Value;

use crate::pipeline::Pipeline;
use crate::stages::Stage;
use crate::table;

/// A method while its cells are gathered.
struct Tested<'p> {
    name: String,
    config: &'p RewardConfig,
    /// Predictions of all folds, by fit.
    fits: BTreeMap<String, Vec<Prediction>>,
    swapped: Vec<f64>,
}

/// Writes `comparison.json`, `comparison.md`, which it prints, and `comparison.svg`, where several methods have a tested reward model.
pub(crate) fn compare(pipeline: &Pipeline, folder: &Path) -> Result<()> {
    let mut tested: Vec<Tested> = Vec::new();
    let (mut seen, mut without) = (BTreeSet::new(), BTreeSet::new());
    for cell in &pipeline.cells {
        let reward = cell.stages.iter().find_map(|plan| match &plan.stage {
            Stage::Reward(config) => Some((folder.join(&plan.folder), config)),
            _ => None,
        });
        let Some((stage, config)) = reward else { return Ok(()) };
        if !seen.insert(stage.clone()) {
            continue; // cells that differ in their policies share a reward model
        }
        let predictions = stage.join("predictions-test.parquet");
        if !predictions.exists() {
            without.insert(cell.method.as_str());
            continue; // it diverged, or `--until` a stage before
        }
        let known = tested.iter().position(|t| t.name == cell.method);
        let at = known.unwrap_or_else(|| {
            tested.push(Tested { name: cell.method.clone(), config, fits: BTreeMap::new(), swapped: vec![] });
            tested.len() - 1
        });
        let report: Value = run::read_json(&stage.join("report.json"))?;
        tested[at].swapped.extend(report["test"]["swapped"].as_f64());
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
    let Some(comparison) = eval::compare(&methods, global, local, personal, pipeline.seed) else {
        tracing::info!("no vote was predicted by every method with every seed: nothing to compare");
        return Ok(());
    };
    table::print(&comparison.write(folder)?)?;
    Ok(())
}
