//! One walk over a pipeline's graph, for the dry run and for the run: each node's inputs are compared with what is there, and the caller
//! decides what becomes of a node that is not up to date.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use device::Compute;
use problem::{Problem, Result, bug};
use run::{Environment, Identity, Manifest, Status};

use super::graph::{Graph, Node, NodeId};
use super::hashes::Hashes;
use crate::stages::{Inputs, Source};

/// What a walk knows of a node when it comes to it.
pub(crate) enum Look {
    /// Its folder holds what is wanted.
    UpToDate(Box<Manifest>),
    /// It is to run, for this reason.
    Run { identity: Identity, environment: Environment, why: String },
    /// What is there has the wanted fingerprint and was computed in another environment; a finished folder, or an interrupted run.
    OtherEnvironment { finished: Option<Box<Manifest>>, differences: Vec<String> },
    /// A node that it reads from has no result yet.
    Waits(NodeId),
    /// A node that it reads from has failed.
    Unreachable,
}

/// What became of a node.
pub(crate) enum State {
    /// Its result is there.
    Done(Box<Manifest>),
    /// It would run.
    Pending,
    /// Its training left the finite numbers.
    Failed(Problem),
    /// It needs the result of a node that failed.
    Unreachable,
}

impl State {
    pub(crate) fn manifest(&self) -> Option<&Manifest> {
        match self {
            Self::Done(manifest) => Some(manifest),
            _ => None,
        }
    }
}

/// Everything that a walk compares with.
pub(crate) struct Walker<'a> {
    pub(crate) graph: &'a Graph,
    /// The pipeline's folder.
    pub(crate) folder: &'a Path,
    pub(crate) compute: &'a Compute,
    /// Kinds of stages that run even if they are up to date, in every cell.
    pub(crate) forced: &'a [String],
    pub(crate) accept_environment: bool,
    pub(crate) hashes: Hashes,
}

impl Walker<'_> {
    /// Where a node's result is.
    pub(crate) fn target(&self, node: &Node) -> PathBuf {
        self.folder.join(&node.folder)
    }

    /// Walks through all nodes; `act` says what becomes of each, and is told what those before it became.
    pub(crate) fn walk(&self, mut act: impl FnMut(NodeId, Look, &[State]) -> Result<State>) -> Result<Vec<State>> {
        let mut states = Vec::new();
        for id in 0..self.graph.nodes.len() {
            let look = self.look(id, &states)?;
            let state = act(id, look, &states)?;
            states.push(state);
        }
        Ok(states)
    }

    /// The folders that a node reads, whose stages are all done.
    pub(crate) fn inputs(&self, node: &Node) -> Inputs {
        let mut inputs = Inputs::default();
        for (artifact, provider) in &node.reads {
            inputs.insert(*artifact, self.target(&self.graph.nodes[*provider]));
        }
        inputs
    }

    fn look(&self, id: NodeId, states: &[State]) -> Result<Look> {
        let node = &self.graph.nodes[id];
        let mut contents = BTreeMap::new();
        for (artifact, provider) in &node.reads {
            match &states[*provider] {
                State::Done(manifest) => {
                    let content = manifest.artifacts.get(artifact.name()).ok_or_else(|| {
                        let place = &self.graph.nodes[*provider].folder;
                        bug(place, format!("the artifact `{}` in its manifest", artifact.name()), "none of that name")
                    })?;
                    contents.insert(artifact.name().to_owned(), content.clone());
                }
                State::Pending => return Ok(Look::Waits(*provider)),
                State::Failed(_) | State::Unreachable => return Ok(Look::Unreachable),
            }
        }
        let (identity, environment) = (self.identity(node, contents)?, node.stage.environment(self.compute));
        let status = run::status(&self.target(node), &identity, &environment)?;
        let forced = self.forced.iter().any(|kind| kind == node.stage.kind());
        let why = match status {
            Status::Resumable => "an interrupted run goes on".into(),
            Status::OtherEnvironment { finished: None, differences } if !self.accept_environment => {
                return Ok(Look::OtherEnvironment { finished: None, differences });
            }
            Status::OtherEnvironment { finished: None, .. } => {
                "an interrupted run goes on in another environment".into()
            }
            _ if forced => "forced".into(),
            Status::UpToDate(manifest) => return Ok(Look::UpToDate(manifest)),
            Status::OtherEnvironment { finished: Some(manifest), .. } if self.accept_environment => {
                return Ok(Look::UpToDate(manifest));
            }
            Status::OtherEnvironment { finished, differences } => {
                return Ok(Look::OtherEnvironment { finished, differences });
            }
            Status::Changed(parts) => format!("changed: {}", parts.join(", ")),
            Status::Damaged(path) => format!("damaged: {path}"),
            Status::Absent => "not there yet".into(),
        };
        Ok(Look::Run { identity, environment, why })
    }

    /// Everything that decides a node's result.
    fn identity(&self, node: &Node, contents: BTreeMap<String, String>) -> Result<Identity> {
        let stage = &node.stage;
        let mut identity = Identity::new(stage.kind(), stage.format(), stage.deciding_settings(), node.seed);
        identity.inputs = contents;
        for source in stage.files()? {
            let (name, hash) = match source {
                Source::File { name, path } => (name, self.hashes.of(&path)?),
                Source::Pinned { name, identity } => (name, identity),
            };
            identity.inputs.insert(name, hash);
        }
        Ok(identity)
    }
}
