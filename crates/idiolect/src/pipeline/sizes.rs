//! What the budgets of a pipeline's stages depend on: users, prompts, the size of the base, pairs that are there already.

use std::path::Path;

use data::{Card, OneOrMore, Vote};
use problem::Result;
use serde_json::Value;

use super::graph::{Cell, NodeId};
use super::walk::{State, Walker};
use crate::base;
use crate::stages::data::DataConfig;
use crate::stages::import::{ImportConfig, Origin};
use crate::stages::pairs::training_prompts;
use crate::stages::{Artifact, Sizes};

/// Parameters and blocks that are assumed of a base whose size is not known before it is fetched: SmolLM2-135M's.
const ASSUMED: (f64, usize) = (135e6, 30);

/// A walk's cell, for looking at what is there.
pub(crate) struct Known<'a> {
    pub(crate) walker: &'a Walker<'a>,
    pub(crate) cell: &'a Cell,
    pub(crate) states: &'a [State],
}

impl Known<'_> {
    /// The settings of the cell's stage of this type.
    fn settings<T: 'static>(&self) -> Option<&T> {
        let of = |id: &NodeId| self.walker.graph.nodes[*id].stage.as_any().downcast_ref::<T>();
        self.cell.nodes.iter().find_map(of)
    }

    /// The seed of the cell's stage of this type.
    fn seed_of<T: 'static>(&self) -> u64 {
        let nodes = &self.walker.graph.nodes;
        let own = self.cell.nodes.iter().find(|id| nodes[**id].stage.as_any().is::<T>());
        own.map_or(self.walker.graph.seed, |id| nodes[*id].seed)
    }

    /// The folder of the last stage that provides an artifact, if its result is there.
    fn folder(&self, artifact: Artifact) -> Option<std::path::PathBuf> {
        let nodes = &self.walker.graph.nodes;
        let provider = self.cell.nodes.iter().rfind(|id| nodes[**id].stage.provides().contains(&artifact))?;
        let done = self.states.get(*provider).is_some_and(|state| state.manifest().is_some());
        done.then(|| run::whole(&self.walker.target(&nodes[*provider])))
    }

    /// The base's number of parameters and of blocks.
    pub(crate) fn base(&self) -> (f64, usize) {
        self.settings::<ImportConfig>().and_then(size_of_base).unwrap_or(ASSUMED)
    }

    /// Sizes by what is there. `count` also reads source files that no stage has ingested yet, as a dry run does.
    ///
    /// # Errors
    /// Source files that cannot be ingested.
    pub(crate) fn sizes(&self, count: bool) -> Result<Sizes> {
        let mut sizes = Sizes { blocks: self.base().1, ..Sizes::default() };
        if let Some(simulation) = self.settings::<study::SimulateConfig>() {
            sizes.prompts = Some(study::Prompts::read(&simulation.prompts)?);
            sizes.users = simulation.raters.len();
        }
        if let Some(votes) = self.votes(count)? {
            sizes.users = data::user_ids(&votes).len();
            sizes.training_prompts = training_prompts(&votes).len();
        }
        if count {
            sizes.pair_tokens = self.pair_tokens()?;
        }
        Ok(sizes)
    }

    /// The votes that the stage `data` wrote, or would write.
    fn votes(&self, count: bool) -> Result<Option<Vec<Vote>>> {
        if let Some(folder) = self.folder(Artifact::Votes) {
            return data::read_votes(&folder.join("votes.parquet")).map(Some);
        }
        match self.settings::<DataConfig>() {
            Some(DataConfig { card, path: Some(path), selection, .. }) if count && are_local(path) => {
                let scratch = tempfile::tempdir()?;
                let table = scratch.path().join("votes.parquet");
                data::ingest(&Card::read(card)?, path.all(), selection, self.seed_of::<DataConfig>(), &table)?;
                data::read_votes(&table).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Tokens of all users' pairs, if pairs and base are there.
    fn pair_tokens(&self) -> Result<Option<usize>> {
        let (Some(pairs), Some(folder)) = (self.folder(Artifact::Pairs), self.folder(Artifact::Base)) else {
            return Ok(None);
        };
        let tokenizer = base::tokenizer(&folder)?;
        let mut tokens = 0;
        for pair in policy::read_pairs(&pairs.join("pairs.parquet"))? {
            for answer in [&pair.chosen, &pair.rejected] {
                tokens += tokenizer.row(&pair.prompt, &answer.text, answer.ending())?.ids.len();
            }
        }
        Ok(Some(tokens))
    }
}

fn are_local(sources: &OneOrMore) -> bool {
    sources.all().iter().all(|source| !data::is_remote(source))
}

/// Numbers in the base, and its blocks: from a GGUF file's header, or from the size of float32 weights and config.json.
fn size_of_base(config: &ImportConfig) -> Option<(f64, usize)> {
    match config.origin().ok()? {
        Origin::Gguf(gguf) => {
            let (numbers, blocks) = lm::gguf_size(gguf).ok()?;
            Some((numbers as f64, blocks?))
        }
        Origin::Folder(folder) => {
            let blocks = blocks_of(folder)?;
            let bytes = fs_err::metadata(folder.join("model.safetensors")).ok()?.len();
            Some((bytes as f64 / 4.0, blocks))
        }
        Origin::Hub(_) => None,
    }
}

fn blocks_of(folder: &Path) -> Option<usize> {
    let config: Value = run::read_json(&folder.join("config.json")).ok()?;
    ["num_hidden_layers", "n_layer"].iter().find_map(|key| config[*key].as_u64()).map(|n| n as usize)
}
