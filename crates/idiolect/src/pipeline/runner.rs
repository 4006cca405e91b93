//! Running a pipeline: every node of its graph in order, except those that are up to date.

use std::path::Path;
use std::time::Instant;

use device::Compute;
use problem::{Result, bug, invalid, mistake};
use run::{Environment, Identity, Lock, Manifest, Run};
use serde_json::json;

use super::announce::{announce, other_environment};
use super::comparison;
use super::file::PipelineFile;
use super::graph::{Graph, Node, NodeId};
use super::project::{Project, from_here};
use super::results;
use super::walk::{Look, State, Walker};
use crate::exit::Outcome;
use crate::stages::quarantined;
use crate::table;

/// What `idiolect run` is asked for.
pub(crate) struct Request<'a> {
    pub(crate) pipeline: &'a Path,
    pub(crate) checkpoints: Option<&'a Path>,
    pub(crate) until: Option<&'a str>,
    pub(crate) force: &'a [String],
    pub(crate) set: &'a [String],
    pub(crate) seed: Option<u64>,
    pub(crate) dry_run: bool,
    pub(crate) accept_environment: bool,
}

/// Runs a pipeline, or says what a run would do.
pub(crate) fn run(request: &Request, compute: &Compute) -> Result<Outcome> {
    if !request.pipeline.is_file() {
        let hint = "pipelines/quickstart.toml is an example";
        return Err(invalid(request.pipeline.display(), "a pipeline file", "none", hint));
    }
    let project = Project::of(request.pipeline)?;
    let file = PipelineFile::read(request.pipeline, &project, request.set, request.seed)?;
    check_names(request, &file)?;
    let graph = Graph::new(&file, request.until)?;
    let checkpoints = request.checkpoints.map_or_else(|| project.checkpoints(), from_here);
    let folder = checkpoints.join(&graph.name);
    let _span = tracing::info_span!("pipeline", pipeline = graph.name).entered();
    let walker = Walker {
        graph: &graph,
        folder: &folder,
        compute,
        forced: request.force,
        accept_environment: request.accept_environment,
        hashes: super::hashes::Hashes::default(),
    };
    if request.dry_run {
        announce(&walker, true)?;
        return Ok(Outcome::Done);
    }
    fs_err::create_dir_all(&folder)?;
    let _lock = Lock::take(&folder.join(".lock"))?;
    for node in &graph.nodes {
        run::recover(&walker.target(node))?;
    }
    // Before hours of work, not after them.
    if let Some(refusal) = announce(&walker, false)?.into_iter().next() {
        return Err(refusal);
    }
    let states = walker.walk(|id, look, states| step(&walker, id, look, states))?;
    finish(&walker, &states)
}

/// `--until` and `--force` name stages of the pipeline.
fn check_names(request: &Request, file: &PipelineFile) -> Result<()> {
    let kinds: Vec<&str> = file.stages.iter().map(|s| s.kind.as_str()).collect();
    for name in request.until.into_iter().chain(request.force.iter().map(String::as_str)) {
        if !kinds.contains(&name) {
            let message = format!("expected a stage of {}, found `{name}`", request.pipeline.display());
            return Err(mistake(message, format!("the stages are: {}", kinds.join(", "))));
        }
    }
    Ok(())
}

/// Runs one node, unless it is up to date or cannot run.
fn step(walker: &Walker, id: NodeId, look: Look, states: &[State]) -> Result<State> {
    let (graph, node) = (walker.graph, &walker.graph.nodes[id]);
    let (identity, environment, why) = match look {
        Look::UpToDate(manifest) => {
            tracing::info!("{}: up to date", node.folder);
            return Ok(State::Done(manifest));
        }
        Look::Unreachable => return Ok(State::Unreachable),
        Look::Waits(provider) => {
            let found = format!("no result of {}", graph.nodes[provider].folder);
            return Err(bug(&node.folder, "every stage before it to have run", found));
        }
        Look::OtherEnvironment { finished, differences } => {
            return Err(other_environment(node, finished.is_some(), &differences));
        }
        Look::Run { identity, environment, why } => (identity, environment, why),
    };
    let labels: Vec<&str> = graph.cells_of(id).map(|cell| cell.label.as_str()).collect();
    let _span = (graph.cells.len() > 1).then(|| tracing::info_span!("cell", cell = labels[0]).entered());
    let number =
        if graph.cells.len() > 1 { format!("[{} of {}] ", states.len() + 1, graph.nodes.len()) } else { String::new() };
    tracing::info!("{number}{}: running ({why})", node.folder);
    match execute(walker, node, identity, environment) {
        Ok(manifest) => Ok(State::Done(Box::new(manifest))),
        // A step size too large for one cell says nothing about the others.
        Err(problem) if labels.len() < graph.cells.len() && problem.is_not_finite() => {
            tracing::warn!("{}: ends here, the other cells go on: {problem}", node.folder);
            run::close_stage_log();
            Ok(State::Failed(problem))
        }
        Err(problem) => Err(problem),
    }
}

fn execute(walker: &Walker, node: &Node, identity: Identity, environment: Environment) -> Result<Manifest> {
    let started = Instant::now();
    let kind = node.stage.kind();
    let _span = tracing::info_span!("stage", stage = kind).entered();
    let begin = if walker.accept_environment { Run::begin_in_any_environment } else { Run::begin };
    let mut run = begin(&walker.target(node), identity, environment)?;
    let _phase = run::phase(&node.folder);
    let resolved = json!({"kind": kind, "seed": node.seed, "config": node.stage.settings()});
    let config = toml::to_string(&resolved)
        .map_err(|e| bug(run.path("config.toml").display(), "settings that can be written as TOML", e.to_string()))?;
    run::write_atomic(&run.path("config.toml"), config.as_bytes())?;
    let (summary, mut text) = node.stage.execute(&walker.inputs(node), walker.compute, &mut run)?;
    for (user, why) in quarantined(&summary) {
        text += &format!("\nquarantined: {user}: {why}");
    }
    let artifacts: Vec<_> = node.stage.provides().into_iter().map(|a| (a.name(), a.files())).collect();
    let manifest = run.finish(summary, &artifacts)?;
    let memory = run::memory_mib("VmHWM").map_or(String::new(), |most| format!(", at most {most:.0} MiB so far"));
    tracing::info!("{}: done in {:.0} s{memory}", node.folder, started.elapsed().as_secs_f64());
    run::close_stage_log();
    table::print(&text)?;
    Ok(manifest)
}

/// The tables over all cells, and how the run ends.
fn finish(walker: &Walker, states: &[State]) -> Result<Outcome> {
    let graph = walker.graph;
    let mut missing = Vec::new();
    let mut hint = None;
    let mut whole = 0;
    for cell in &graph.cells {
        let failed = cell.nodes.iter().find_map(|id| match &states[*id] {
            State::Failed(problem) => Some(problem),
            _ => None,
        });
        match failed {
            Some(problem) => {
                missing.push(format!("[{}]: {problem}", cell.label));
                hint = hint.or(problem.hint().map(str::to_owned));
            }
            None => whole += 1,
        }
    }
    if whole == 0 {
        let message = format!(
            "none of {} cells has a result, the last: {}",
            graph.cells.len(),
            missing.pop().unwrap_or_default()
        );
        return Err(problem::diverged(message, hint.unwrap_or_default()));
    }
    if graph.cells.len() > 1 {
        results::write(walker, states)?;
        comparison::compare(walker, states)?;
    }
    let stopped: Vec<String> =
        graph.nodes.iter().zip(states).flat_map(|(node, state)| in_quarantine(node, state)).collect();
    let missing = [stopped, missing].concat();
    Ok(if missing.is_empty() { Outcome::Done } else { Outcome::Partly(missing, hint) })
}

/// Users whose training a node stopped, a sentence each.
fn in_quarantine(node: &Node, state: &State) -> Vec<String> {
    let users = state.manifest().map(|manifest| quarantined(&manifest.summary)).unwrap_or_default();
    users.into_iter().map(|(user, why)| format!("{}, `{user}` in quarantine: {why}", node.folder)).collect()
}
