//! Running a pipeline: every stage in order, skipping what stands.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::TryLockError;
use std::path::Path;
use std::time::Instant;

use device::Compute;
use problem::{Problem, Result, bug, invalid, mistake};
use run::{Manifest, Run, Standing};
use serde_json::{Value, json};

use crate::cli::RunArgs;
use crate::estimate_time::Speed;
use crate::exit::Outcome;
use crate::methods;
use crate::pipeline::{Cell, Pipeline, StagePlan};
use crate::stages::{Budget, Inputs, Stage};
use crate::table;

/// `idiolect run`
pub(crate) fn run(args: &RunArgs) -> Result<Outcome> {
    if !args.pipeline.is_file() {
        let hint = "pipelines/quickstart.toml is an example";
        return Err(invalid(args.pipeline.display(), "a pipeline file", "none", hint));
    }
    let file = fs_err::canonicalize(&args.pipeline)?;
    // Paths in pipelines and configs are relative to the folder above `pipelines/`.
    if let Some(root) = file.parent().and_then(Path::parent) {
        std::env::set_current_dir(root).map_err(|e| Problem::from(e).within(root.display()))?;
    }
    let pipeline = Pipeline::read(&file, &args.set, args.seed)?;
    let known: Vec<&str> = pipeline.cells[0].stages.iter().map(|s| s.stage.kind()).collect();
    for name in args.until.iter().chain(&args.force) {
        if !known.contains(&name.as_str()) {
            return Err(mistake(
                format!("expected a stage of {}, found `{name}`", file.display()),
                format!("the stages are: {}", known.join(", ")),
            ));
        }
    }
    let compute = args.compute.resolve()?;
    let folder = Path::new("checkpoints").join(&pipeline.name);
    fs_err::create_dir_all(&folder)?;
    let _lock = lock(&folder)?;
    let _span = tracing::info_span!("pipeline", pipeline = pipeline.name).entered();
    announce(&pipeline, &folder, args, &compute)?;
    if args.dry_run {
        return Ok(Outcome::Done);
    }
    let mut results = Vec::new();
    let mut diverged = Vec::new();
    let mut forced = args.force.clone();
    let count = pipeline.cells.len();
    for (number, cell) in pipeline.cells.iter().enumerate() {
        let _span = (!cell.label.is_empty()).then(|| tracing::info_span!("cell", cell = cell.label).entered());
        if !cell.label.is_empty() {
            tracing::info!("[{} of {count}: {}]", number + 1, cell.label);
        }
        match run_cell(cell, &folder, args, &compute, &mut forced) {
            Ok(manifests) => results.push((cell.label.clone(), manifests)),
            // A step size too large for one cell says nothing about the others.
            Err(problem) if count > 1 && problem.is_not_finite() => {
                tracing::warn!("[{}] ends here, the other cells go on: {problem}", cell.label);
                run::close_stage_log();
                diverged.push(problem.within(format!("[{}]", cell.label)));
            }
            Err(problem) => return Err(problem),
        }
    }
    if results.is_empty()
        && let Some(last) = diverged.pop()
    {
        return Err(last.within(format!("none of {count} cells has a result, the last")));
    }
    if count > 1 {
        compare(&folder, &results)?;
        methods::compare(&pipeline, &folder)?;
    }
    let mut missing: Vec<String> =
        results.iter().flat_map(|(label, manifests)| quarantined(label, manifests)).collect();
    missing.extend(diverged.iter().map(ToString::to_string));
    let hint = diverged.first().and_then(Problem::hint).map(str::to_owned);
    Ok(if missing.is_empty() { Outcome::Done } else { Outcome::Partly(missing, hint) })
}

/// The pipeline's folder is one process's at a time.
fn lock(folder: &Path) -> Result<fs_err::File> {
    let lock = fs_err::File::create(folder.join(".lock"))?;
    match lock.file().try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            let hint = "wait for it, or stop it; a stopped run is continued by the same command";
            Err(mistake(format!("{}: another run is working here", folder.display()), hint))
        }
        Err(TryLockError::Error(error)) => Err(Problem::from(error).within(folder.join(".lock").display())),
    }
}

/// Users whose training a cell's stages stopped, a sentence each.
fn quarantined(label: &str, manifests: &BTreeMap<&'static str, Manifest>) -> Vec<String> {
    let of_stage = |(kind, manifest): (&&str, &Manifest)| {
        let users = manifest.summary["quarantined"].as_object().cloned().unwrap_or_default();
        let stage = if label.is_empty() { (*kind).to_owned() } else { format!("{kind} [{label}]") };
        let each = |(user, why): (String, Value)| {
            format!("{stage}, `{user}` in quarantine: {}", why.as_str().unwrap_or_default())
        };
        users.into_iter().map(each).collect::<Vec<_>>()
    };
    manifests.iter().flat_map(of_stage).collect()
}

/// A stage's identity, if everything that it reads stands.
fn identity(plan: &StagePlan, contents: &BTreeMap<&str, String>, compute: &Compute) -> Result<Option<run::Identity>> {
    let mut inputs = BTreeMap::new();
    for kind in plan.stage.reads() {
        match contents.get(kind) {
            Some(content) => _ = inputs.insert((*kind).to_owned(), content.clone()),
            None => return Ok(None),
        }
    }
    plan.stage.identity(plan.seed, inputs, compute).map(Some)
}

fn why(standing: &Standing) -> String {
    match standing {
        Standing::Finished(_) => "stands".into(),
        Standing::Resumable => "an interrupted run goes on".into(),
        Standing::Changed(parts) => format!("changed: {}", parts.join(", ")),
        Standing::Damaged(path) => format!("damaged: {path}"),
        Standing::Absent => "not there yet".into(),
    }
}

/// Says what will run, why, with which token budget, and how long that may take.
fn announce(pipeline: &Pipeline, folder: &Path, args: &RunArgs, compute: &Compute) -> Result<()> {
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut total = Budget::default();
    let mut rows = Vec::new();
    let (parameters, blocks) = size(&pipeline.cells[0]).unwrap_or((135e6, 30));
    for cell in &pipeline.cells {
        let (prompts, users) = simulated(cell);
        let mut contents = BTreeMap::new();
        let mut pending: Vec<(&str, &str)> = Vec::new(); // what a stage provides, and its kind
        for plan in &cell.stages {
            let kind = plan.stage.kind();
            let reason = match identity(plan, &contents, compute)? {
                None => {
                    let waited = |(name, _): &&(&str, &str)| plan.stage.reads().contains(name);
                    let on = pending.iter().rev().find(waited).map_or("", |(_, kind)| *kind);
                    format!("waits for {on}")
                }
                Some(identity) => {
                    let standing = run::standing(&folder.join(&plan.folder), &identity)?;
                    match &standing {
                        Standing::Finished(_) if args.force.iter().any(|f| f == kind) => "forced".into(),
                        Standing::Finished(manifest) => {
                            for name in plan.stage.provides() {
                                contents.insert(name, manifest.content.clone());
                            }
                            why(&standing)
                        }
                        _ => why(&standing),
                    }
                }
            };
            if !contents.contains_key(kind) {
                for name in plan.stage.provides() {
                    contents.remove(name);
                    pending.push((name, kind));
                }
            }
            if seen.insert(plan.folder.clone()) {
                let budget = plan.stage.budget(prompts.as_ref(), users, blocks);
                if !contents.contains_key(kind) {
                    total.sampled += budget.sampled;
                    total.trained += budget.trained;
                    total.weighted += budget.weighted;
                }
                let tokens = |n: usize| if n == 0 { String::new() } else { n.to_string() };
                rows.push(vec![plan.folder.clone(), reason, tokens(budget.sampled), tokens(budget.trained)]);
            }
            if args.until.as_deref() == Some(kind) {
                break;
            }
        }
    }
    if args.dry_run {
        table::print(&report::markdown(&["stage", "why", "at most sampled", "at most trained"], &rows))?;
    }
    if total.sampled + total.trained > 0 {
        let speed = Speed::measure(compute, parameters);
        tracing::info!(
            "{} on {} in {}, {} threads: up to {} tokens to sample and {} to train; about {:.0} minutes on this machine",
            pipeline.name,
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
    Ok(())
}

/// Prompts and number of raters of the simulation, if there is one.
fn simulated(cell: &Cell) -> (Option<study::Prompts>, usize) {
    let config = cell.stages.iter().find_map(|s| match &s.stage {
        Stage::Simulate(config) => Some(config),
        _ => None,
    });
    (config.and_then(|c| study::Prompts::read(&c.prompts).ok()), config.map_or(0, |c| c.raters.len()))
}

/// Numbers in the base, and its blocks: from a GGUF file's header, or from the size of float32 weights and config.json.
fn size(cell: &Cell) -> Option<(f64, usize)> {
    let Stage::Import(config) = &cell.stages.first()?.stage else { return None };
    match config {
        crate::stages::ImportConfig::Gguf { gguf } => {
            let (numbers, blocks) = lm::gguf_size(gguf).ok()?;
            Some((numbers as f64, blocks?))
        }
        crate::stages::ImportConfig::Folder { folder, .. } => {
            let config: Value = run::read_json(&folder.join("config.json")).ok()?;
            let blocks = ["num_hidden_layers", "n_layer"].iter().find_map(|key| config[*key].as_u64())?;
            let bytes = fs_err::metadata(folder.join("model.safetensors")).ok()?.len();
            Some((bytes as f64 / 4.0, blocks as usize))
        }
        crate::stages::ImportConfig::Hub { .. } => None,
    }
}

fn run_cell(
    cell: &Cell,
    folder: &Path,
    args: &RunArgs,
    compute: &Compute,
    forced: &mut Vec<String>,
) -> Result<BTreeMap<&'static str, Manifest>> {
    let mut manifests: BTreeMap<&'static str, Manifest> = BTreeMap::new();
    let (mut inputs, mut contents) = (Inputs::new(), BTreeMap::new());
    for plan in &cell.stages {
        let kind = plan.stage.kind();
        let identity = identity(plan, &contents, compute)?.expect("every stage before this one has run");
        let target = folder.join(&plan.folder);
        let standing = run::standing(&target, &identity)?;
        let force = forced.iter().position(|f| f == kind).map(|i| forced.remove(i));
        let manifest = match standing {
            Standing::Finished(manifest) if force.is_none() => {
                tracing::info!("{}: stands", plan.folder);
                *manifest
            }
            standing => {
                let reason = if force.is_some() { "forced".into() } else { why(&standing) };
                tracing::info!("{}: running ({reason})", plan.folder);
                execute(plan, &target, identity, &inputs, compute)?
            }
        };
        for name in plan.stage.provides() {
            inputs.insert(name, target.clone());
            contents.insert(name, manifest.content.clone());
        }
        manifests.insert(kind, manifest);
        if args.until.as_deref() == Some(kind) {
            break;
        }
    }
    Ok(manifests)
}

fn execute(
    plan: &StagePlan,
    target: &Path,
    identity: run::Identity,
    inputs: &Inputs,
    compute: &Compute,
) -> Result<Manifest> {
    let started = Instant::now();
    let kind = plan.stage.kind();
    let _span = tracing::info_span!("stage", stage = kind).entered();
    let resolved = json!({"kind": kind, "seed": plan.seed, "config": plan.stage.config()});
    let mut run = Run::begin(target, identity)?;
    let _phase = run::phase(&plan.folder);
    let config = toml::to_string(&without_nulls(resolved))
        .map_err(|e| bug(run.path("config.toml").display(), "a config that can be written as TOML", e.to_string()))?;
    run::write_atomic(&run.path("config.toml"), config.as_bytes())?;
    let (summary, text) = plan.stage.execute(inputs, compute, &mut run)?;
    let manifest = run.finish(summary)?;
    let memory = run::memory_mib("VmHWM").map_or(String::new(), |most| format!(", at most {most:.0} MiB so far"));
    tracing::info!("{}: done in {:.0} s{memory}", plan.folder, started.elapsed().as_secs_f64());
    run::close_stage_log();
    table::print(&text)?;
    Ok(manifest)
}

/// TOML has no null: an option that is off is left out.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            Value::Object(map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect())
        }
        other => other,
    }
}

/// Users whose figures are in a line of the table.
const LISTED: usize = 8;

/// One table over all cells of a matrix: the reward model's test accuracy, and the policies' win rates and divergences, which
/// `frontier.svg` shows as a line for each user.
fn compare(folder: &Path, results: &[(String, BTreeMap<&'static str, Manifest>)]) -> Result<()> {
    let mut rows = Vec::new();
    let mut entries = Vec::new();
    let mut frontier: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (label, manifests) in results {
        let reward = manifests.get("reward").map(|m| &m.summary["test"]);
        let evaluation = manifests.get("evaluate").map(|m| &m.summary["users"]);
        let accuracy = reward.map_or(Value::Null, |r| r["mean_accuracy"].clone());
        // A table of many people is in each cell's own report.
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
