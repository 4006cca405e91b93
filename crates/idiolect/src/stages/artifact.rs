//! What stages hand to each other, and reading it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data::Vote;
use device::Compute;
use lm::Lm;
use policy::Policies;
use problem::{Result, bug};
use reward::RewardModel;
use run::Files;
use text::Tokenizer;

use crate::base;

/// What one stage provides and others read: some files of its folder. Their bytes, and no others, decide whether a stage that reads them
/// is up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Artifact {
    /// A Hugging Face folder: the frozen base.
    Base,
    /// Votes of simulated annotators, a source file.
    SimulatedVotes,
    /// The ground-truth rewards of simulated annotators.
    Truth,
    /// The preference table, and the users table if there is one.
    Votes,
    /// Policies that other policies may start from.
    SftPolicies,
    /// A personalised reward model.
    RewardModel,
    /// Every user's pairs.
    Pairs,
    /// Every user's policy.
    Policies,
    /// What other software loads.
    Exports,
}

impl Artifact {
    /// As manifests name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::SimulatedVotes => "simulated-votes",
            Self::Truth => "truth",
            Self::Votes => "votes",
            Self::SftPolicies => "sft-policies",
            Self::RewardModel => "reward-model",
            Self::Pairs => "pairs",
            Self::Policies => "policies",
            Self::Exports => "exports",
        }
    }

    /// Its files in the folder of the stage that provides it.
    pub(crate) fn files(self) -> Files<'static> {
        match self {
            Self::Base => &[
                "config.json",
                "*_config.json",
                "tokenizer*",
                "*tokens.json",
                "*_map.json",
                "vocab*",
                "merges.txt",
                "tekken.json",
                "*.tiktoken",
                "*.model",
                "chat_template*", // with its date
                "additional_chat_templates/",
                "LICEN*",
                "NOTICE*",
                "USE_POLICY*",
                "*.md",
                "model.safetensors.index.json",
                "*.safetensors",
            ],
            Self::SimulatedVotes => &["votes.parquet"],
            Self::Truth => &["truth.json"],
            Self::Votes => &["votes.parquet", "users.parquet"],
            Self::SftPolicies => &["policies.safetensors"],
            Self::RewardModel => &["reward.safetensors", "people.safetensors", "fit.json"],
            Self::Pairs => &["pairs.parquet", "report.json"],
            Self::Policies => &["policies.safetensors", "rollouts.parquet"],
            Self::Exports => &["adapters/", "merged/", "users.json"],
        }
    }
}

/// The file of rows that the stage `data` tokenised, in its folder.
pub(crate) const TOKENS: &str = "tokens.arrow";
/// The file of policies in the folder of a stage that trains them.
pub(crate) const POLICIES: &str = "policies.safetensors";

/// The folders of the stages before this one, by what they provide.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inputs {
    folders: BTreeMap<Artifact, PathBuf>,
}

impl Inputs {
    pub(crate) fn insert(&mut self, artifact: Artifact, folder: PathBuf) {
        self.folders.insert(artifact, folder);
    }

    /// The folder that holds an artifact.
    ///
    /// # Errors
    /// The stage that asks did not declare that it reads it: a bug.
    pub(crate) fn folder(&self, artifact: Artifact) -> Result<&Path> {
        let found = self.folders.keys().map(|a| a.name()).collect::<Vec<_>>().join(", ");
        let folder = self.folders.get(&artifact).map(PathBuf::as_path);
        folder.ok_or_else(|| bug("a stage's inputs", format!("`{}` among what it reads", artifact.name()), found))
    }

    /// The base with its tokenizer.
    pub(crate) fn base(&self, compute: &Compute) -> Result<(Lm, Tokenizer)> {
        base::load(self.folder(Artifact::Base)?, compute)
    }

    /// The same, whose tokenizer knows the rows that the stage `data` tokenised where it did.
    pub(crate) fn base_with_rows(&self, compute: &Compute) -> Result<(Lm, Tokenizer)> {
        let (lm, tokenizer) = self.base(compute)?;
        let path = self.folder(Artifact::Votes)?.join(TOKENS);
        if !path.exists() {
            return Ok((lm, tokenizer));
        }
        let cache = data::TokenCache::open(&path)?;
        if !cache.is_of(&tokenizer) {
            tracing::info!("{}: rows of another tokenizer or chat template, not used", path.display());
            return Ok((lm, tokenizer));
        }
        Ok((lm, tokenizer.with_known(cache)))
    }

    pub(crate) fn votes(&self) -> Result<Vec<Vote>> {
        data::read_votes(&self.folder(Artifact::Votes)?.join("votes.parquet"))
    }

    pub(crate) fn truth(&self) -> Result<study::Truth> {
        run::read_json(&self.folder(Artifact::Truth)?.join("truth.json"))
    }

    pub(crate) fn reward_model(&self, lm: &Lm) -> Result<RewardModel> {
        RewardModel::read(&self.folder(Artifact::RewardModel)?.join("reward.safetensors"), lm)
    }

    /// The policies of `artifact`, one of the two kinds.
    pub(crate) fn policies(&self, artifact: Artifact, lm: &Lm) -> Result<Policies> {
        Policies::read(&self.folder(artifact)?.join(POLICIES), lm)
    }

    /// The policies from which training starts; none where it starts as the base.
    pub(crate) fn start(&self, start: policy::Start, lm: &Lm) -> Result<Option<Policies>> {
        match start {
            policy::Start::Base => Ok(None),
            policy::Start::Sft => self.policies(Artifact::SftPolicies, lm).map(Some),
        }
    }
}
