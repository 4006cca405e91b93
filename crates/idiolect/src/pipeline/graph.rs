//! A pipeline as a graph: a node is a stage with its settings, an edge an artifact that it reads of another. The order of execution, the
//! dry run, and what a matrix's cells share all follow from it.

use problem::{Result, mistake};
use toml::Table;

use super::file::{Entry, PipelineFile};
use super::matrix::{Step, combinations, folder_name};
use crate::stages::{AnyStage, Artifact, read_stage};

/// The number of a node.
pub(crate) type NodeId = usize;

/// A stage with its settings, and where its inputs come from.
pub(crate) struct Node {
    pub(crate) stage: Box<dyn AnyStage>,
    pub(crate) seed: u64,
    /// The folder's name below the pipeline's: the kind, and the axes of the matrix that reach it.
    pub(crate) folder: String,
    /// Of everything that it reads: the node that provides it, which has a smaller number.
    pub(crate) reads: Vec<(Artifact, NodeId)>,
}

/// One combination of a matrix.
pub(crate) struct Cell {
    /// `key=value` of every axis.
    pub(crate) label: String,
    /// The values of all axes but those of seeds and of data (folds): what is compared.
    pub(crate) method: String,
    /// The axes of seeds: fits of one method.
    pub(crate) fit: String,
    /// Its stages, in the order of the file.
    pub(crate) nodes: Vec<NodeId>,
}

/// A pipeline, resolved. Nodes that several cells have in common are there once.
pub(crate) struct Graph {
    pub(crate) name: String,
    pub(crate) seed: u64,
    /// In an order in which every node comes after those that it reads from.
    pub(crate) nodes: Vec<Node>,
    /// One without a matrix.
    pub(crate) cells: Vec<Cell>,
}

impl Graph {
    /// All stages of all cells, up to and including the stage `until`.
    pub(crate) fn new(file: &PipelineFile, until: Option<&str>) -> Result<Self> {
        let mut graph = Self { name: file.name.clone(), seed: file.seed, nodes: vec![], cells: vec![] };
        for axes in combinations(&file.axes) {
            let cell = graph.cell(file, &axes, until)?;
            graph.cells.push(cell);
        }
        Ok(graph)
    }

    /// The cells that a node is part of.
    pub(crate) fn cells_of(&self, node: NodeId) -> impl Iterator<Item = &Cell> {
        self.cells.iter().filter(move |cell| cell.nodes.contains(&node))
    }

    fn cell(&mut self, file: &PipelineFile, axes: &[Step], until: Option<&str>) -> Result<Cell> {
        let mut nodes: Vec<NodeId> = Vec::new();
        let mut reached: Vec<Vec<String>> = Vec::new(); // of each stage: the axes that its result depends on
        for entry in &file.stages {
            let (stage, seed, mut own) = resolved(entry, file, axes)?;
            if nodes.iter().any(|id| self.nodes[*id].stage.kind() == stage.kind()) {
                let message = format!("stage `{}`: expected once, found twice", stage.kind());
                return Err(mistake(message, "make a second pipeline"));
            }
            let mut reads = Vec::new();
            for artifact in stage.reads() {
                // The last stage that provides it: a base that was fine-tuned takes the imported one's place.
                let provider = nodes.iter().rposition(|id| self.nodes[*id].stage.provides().contains(&artifact));
                let provider = provider.ok_or_else(|| missing(stage.kind(), artifact))?;
                own.extend(reached[provider].iter().cloned());
                reads.push((artifact, nodes[provider]));
            }
            own.sort();
            own.dedup();
            let folder = folder_name(stage.kind(), &own);
            reached.push(own);
            nodes.push(self.node(Node { stage, seed, folder, reads }));
            if until == Some(entry.kind.as_str()) {
                break;
            }
        }
        let words = |some: Vec<&Step>| some.into_iter().map(|s| s.word.clone()).collect::<Vec<_>>().join(" ");
        let compared = axes.iter().filter(|s| !s.is_of_seeds() && !s.is_of_data());
        Ok(Cell {
            label: words(axes.iter().collect()),
            method: compared.map(|s| s.name().to_owned()).collect::<Vec<_>>().join(", "),
            fit: words(axes.iter().filter(|s| s.is_of_seeds()).collect()),
            nodes,
        })
    }

    /// The node's number: cells that agree in all that reaches a stage share its node.
    fn node(&mut self, node: Node) -> NodeId {
        let known = self.nodes.iter().position(|other| other.folder == node.folder);
        known.unwrap_or_else(|| {
            self.nodes.push(node);
            self.nodes.len() - 1
        })
    }
}

/// A stage with the settings of its file, of the command line and of a cell; its seed; and the axes that speak of it.
fn resolved(entry: &Entry, file: &PipelineFile, axes: &[Step]) -> Result<(Box<dyn AnyStage>, u64, Vec<String>)> {
    let mut table: Table = entry.settings.clone();
    let (mut seed, mut own) = (file.seed, Vec::new());
    let along = axes.iter().flat_map(|step| step.settings.iter().map(move |s| (s, Some(&step.word))));
    let mut all: Vec<_> = file.given.iter().map(|s| (s, None)).chain(along).collect();
    // A seed for all stages comes before a stage's own.
    all.sort_by_key(|(setting, _)| setting.key != "seed");
    for (setting, axis) in all {
        let key = if setting.key == "seed" { Some("seed") } else { setting.key_in(&entry.kind) };
        match key {
            None => continue,
            Some("seed") => seed = setting.seed()?,
            Some(key) => setting.assign(&mut table, key)?,
        }
        own.extend(axis.cloned());
    }
    Ok((read_stage(&entry.kind, table, &entry.place)?, seed, own))
}

fn missing(kind: &str, artifact: Artifact) -> problem::Problem {
    let (wanted, example) = match artifact {
        Artifact::Base => ("import", "import"),
        Artifact::SimulatedVotes | Artifact::Truth => ("simulate", "simulate"),
        Artifact::Votes => ("data", "data"),
        Artifact::SftPolicies => ("sft", "sft"),
        Artifact::RewardModel => ("reward", "reward"),
        Artifact::Pairs => ("pairs", "pairs"),
        Artifact::Policies => ("dpo` or `ppo", "dpo"),
        Artifact::Exports => ("export", "export"),
    };
    mistake(
        format!("stage `{kind}`: expected a stage `{wanted}` before it, found none"),
        format!("add a [[stage]] with kind = \"{example}\""),
    )
}
