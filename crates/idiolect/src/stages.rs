//! The stages: what each reads, and what decides its result. What each does is in `execute`.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use data::{OneOrMore, Selection};
use device::Compute;
use problem::{Result, mistake};
use run::hash_file;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use study::SamplingConfig;

/// Where the base model comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(crate) enum ImportConfig {
    /// A GGUF file of the Llama family.
    Gguf { gguf: PathBuf },
    /// A Hugging Face folder, copied; `chat_template` is a Jinja file for a base that has none.
    Folder { folder: PathBuf, chat_template: Option<PathBuf> },
    /// A model on the Hugging Face Hub, by name.
    Hub { hub: String, revision: Option<String>, chat_template: Option<PathBuf> },
}

/// What is ingested, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DataConfig {
    /// The data set's card.
    pub(crate) card: PathBuf,
    /// Files, folders, globs or addresses; without them, the votes of the stage `simulate`.
    pub(crate) path: Option<OneOrMore>,
    /// A table of users, read as the card's `[users]` says.
    pub(crate) users: Option<OneOrMore>,
    /// Tokenise all texts with the base's tokenizer, once, for the stages behind.
    #[serde(default)]
    pub(crate) tokens: bool,
    pub(crate) selection: Selection,
}

/// Where a user's pairs come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub(crate) enum PairsConfig {
    /// The user's decided training votes.
    Votes(NoMore),
    /// Fresh samples of the base, ranked by the user's reward model.
    Reward(RankedPairs),
    /// Both.
    Both(RankedPairs),
}

/// Nothing to set.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoMore {}

/// How samples become pairs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RankedPairs {
    pub(crate) pairs_per_prompt: usize,
    pub(crate) max_row_tokens: usize,
    /// What pairs count.
    #[serde(default)]
    pub(crate) weighting: policy::Weighting,
    /// So many standard errors are taken off every reward: pessimism.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) caution: f64,
    pub(crate) sampling: SamplingConfig,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

impl PairsConfig {
    /// How samples become pairs, if they do.
    pub(crate) fn ranked(&self) -> Option<&RankedPairs> {
        match self {
            Self::Votes(_) => None,
            Self::Reward(ranked) | Self::Both(ranked) => Some(ranked),
        }
    }
}

/// One stage with its settings.
#[derive(Clone, Debug)]
pub(crate) enum Stage {
    Import(ImportConfig),
    Simulate(study::SimulateConfig),
    Data(DataConfig),
    Reward(reward::RewardConfig),
    Sft(policy::SftConfig),
    Pairs(PairsConfig),
    Dpo(policy::DpoConfig),
    Ppo(Box<policy::PpoConfig>),
    Evaluate(study::EvaluateConfig),
    Export(export::ExportConfig),
}

const KINDS: [&str; 10] = ["import", "simulate", "data", "sft", "reward", "pairs", "dpo", "ppo", "evaluate", "export"];

/// Raised whenever the code changes what a stage writes.
const FORMAT: u32 = 6;

/// The most tokens that a stage may take.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Budget {
    pub(crate) sampled: usize,
    pub(crate) trained: usize,
    /// `trained` times the share of the model's blocks that are adapted.
    pub(crate) weighted: f64,
}

/// Folders of the stages before this one, by kind.
pub(crate) type Inputs = BTreeMap<&'static str, PathBuf>;

thread_local! {
    /// Hashes of files by path, size and time of change: a matrix asks for the same ones in every cell.
    static HASHES: RefCell<HashMap<(PathBuf, u64, SystemTime), String>> = RefCell::default();
}

fn known_hash(file: &Path) -> Result<String> {
    let metadata = fs_err::metadata(file)?;
    let key = (file.to_owned(), metadata.len(), metadata.modified()?);
    if let Some(known) = HASHES.with_borrow(|hashes| hashes.get(&key).cloned()) {
        return Ok(known);
    }
    let hash = hash_file(file)?;
    HASHES.with_borrow_mut(|hashes| hashes.insert(key, hash.clone()));
    Ok(hash)
}

fn parse<T: DeserializeOwned>(table: toml::Table, path: &Path) -> Result<T> {
    T::deserialize(toml::Value::Table(table)).map_err(|e| {
        mistake(
            format!("{}: {}", path.display(), e.to_string().trim()),
            "check the spelling against the files in configs/",
        )
    })
}

impl Stage {
    pub(crate) fn parse(kind: &str, table: toml::Table, path: &Path) -> Result<Self> {
        Ok(match kind {
            "import" => Self::Import(parse(table, path).map_err(|_| {
                mistake(
                    format!(
                        "{}: expected one key, `gguf`, `folder` or `hub` (with a `revision`), found others (with `chat_template` for a base that has none)",
                        path.display()
                    ),
                    "configs/import/smollm2-135m.toml is an example",
                )
            })?),
            "simulate" => Self::Simulate(parse(table, path)?),
            "data" => Self::Data(parse(table, path)?),
            "sft" => Self::Sft(parse(table, path)?),
            "reward" => Self::Reward(parse(table, path)?),
            "pairs" => Self::Pairs(parse(table, path)?),
            "dpo" => Self::Dpo(parse(table, path)?),
            "ppo" => Self::Ppo(parse(table, path)?),
            "evaluate" => Self::Evaluate(parse(table, path)?),
            "export" => Self::Export(parse(table, path)?),
            other => {
                let message = format!("`kind`: expected one of {}, found `{other}`", KINDS.join(", "));
                return Err(mistake(message, "pipelines/quickstart.toml has them all"));
            }
        })
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Import(_) => "import",
            Self::Simulate(_) => "simulate",
            Self::Data(_) => "data",
            Self::Sft(_) => "sft",
            Self::Reward(_) => "reward",
            Self::Pairs(_) => "pairs",
            Self::Dpo(_) => "dpo",
            Self::Ppo(_) => "ppo",
            Self::Evaluate(_) => "evaluate",
            Self::Export(_) => "export",
        }
    }

    /// Stages whose folders it reads.
    pub(crate) fn reads(&self) -> &'static [&'static str] {
        match self {
            Self::Import(_) => &[],
            Self::Simulate(_) => &["import"],
            Self::Data(DataConfig { path: None, tokens: false, .. }) => &["simulate"],
            Self::Data(DataConfig { path: None, tokens: true, .. }) => &["import", "simulate"],
            Self::Data(DataConfig { tokens: true, .. }) => &["import"],
            Self::Data(_) => &[],
            Self::Sft(_) | Self::Reward(_) | Self::Pairs(PairsConfig::Votes(_)) => &["import", "data"],
            Self::Pairs(_) => &["import", "data", "reward"],
            Self::Dpo(policy::DpoConfig { start: policy::Start::Sft, .. }) => &["import", "pairs", "sft"],
            Self::Dpo(_) => &["import", "pairs"],
            Self::Ppo(c) if c.start == policy::Start::Sft => &["import", "data", "reward", "sft"],
            Self::Ppo(_) => &["import", "data", "reward"],
            Self::Evaluate(_) => &["import", "simulate", "policies"],
            Self::Export(_) => &["import", "policies"],
        }
    }

    /// What its folder is to the stages behind it. A base that was fine-tuned for everyone takes the imported one's place.
    pub(crate) fn provides(&self) -> Vec<&'static str> {
        match self {
            Self::Sft(policy::SftConfig { scope: policy::Scope::Global, .. }) => vec!["sft", "import"],
            Self::Dpo(_) | Self::Ppo(_) => vec![self.kind(), "policies"],
            other => vec![other.kind()],
        }
    }

    /// The resolved settings, for the fingerprint and the run's folder.
    pub(crate) fn config(&self) -> Value {
        match self {
            Self::Import(c) => json!(c),
            Self::Simulate(c) => json!(c),
            Self::Data(c) => json!(c),
            Self::Sft(c) => json!(c),
            Self::Reward(c) => json!(c),
            Self::Pairs(c) => json!(c),
            Self::Dpo(c) => json!(c),
            Self::Ppo(c) => json!(c),
            Self::Evaluate(c) => json!(c),
            Self::Export(c) => json!(c),
        }
    }

    /// Hashes of the files that it reads beside other stages' folders.
    pub(crate) fn file_inputs(&self) -> Result<BTreeMap<String, String>> {
        let files: Vec<PathBuf> = match self {
            Self::Import(ImportConfig::Gguf { gguf }) => {
                if !gguf.exists() {
                    return Err(mistake(
                        format!("{}: expected a GGUF file, found nothing", gguf.display()),
                        "run ./setup, which fetches the default base",
                    ));
                }
                vec![gguf.clone()]
            }
            Self::Import(ImportConfig::Folder { folder, chat_template }) => {
                let mut files: Vec<PathBuf> =
                    fs_err::read_dir(folder)?.map(|e| Ok(e?.path())).collect::<std::io::Result<Vec<_>>>()?;
                files.retain(|f| f.is_file() && crate::execute::is_of_a_model(f));
                files.extend(chat_template.clone());
                files.sort();
                files
            }
            // A name with its revision; what was fetched is in the stage's own manifest.
            Self::Import(ImportConfig::Hub { chat_template, .. }) => chat_template.iter().cloned().collect(),
            Self::Simulate(c) => vec![c.prompts.clone()],
            // Of files behind an address, the address is in the config.
            Self::Data(c) => {
                let sources = c.path.iter().chain(&c.users).flat_map(OneOrMore::all).cloned().collect::<Vec<String>>();
                std::iter::once(c.card.clone()).chain(data::local_files(&sources)?).collect()
            }
            Self::Sft(_) | Self::Reward(_) | Self::Pairs(_) | Self::Dpo(_) | Self::Ppo(_) | Self::Export(_) => vec![],
            Self::Evaluate(c) => c.neutral.iter().cloned().collect(),
        };
        files.iter().map(|f| Ok((f.display().to_string(), known_hash(f)?))).collect()
    }

    /// Do the bits of its result depend on device, dtype and threads?
    fn computes(&self) -> bool {
        !matches!(self, Self::Import(_) | Self::Data(_))
    }

    /// Everything that decides its result.
    pub(crate) fn identity(
        &self,
        seed: u64,
        contents: BTreeMap<String, String>,
        compute: &Compute,
    ) -> Result<run::Identity> {
        let mut identity = run::Identity::new(self.kind(), FORMAT, self.config(), seed);
        identity.inputs = contents;
        identity.inputs.extend(self.file_inputs()?);
        if self.computes() {
            identity.environment = compute.environment();
        }
        Ok(identity)
    }

    /// The most tokens that it may take, given the number of prompts in the lists of the simulation, and of blocks in the base.
    pub(crate) fn budget(&self, prompts: Option<&study::Prompts>, users: usize, blocks: usize) -> Budget {
        let training = |trained: usize, adapted: &lm::Blocks| {
            let share = adapted.count(blocks) as f64 / blocks.max(1) as f64;
            Budget { sampled: 0, trained, weighted: trained as f64 * share }
        };
        let count = |f: fn(&study::Prompts) -> usize| prompts.map_or(0, f);
        match self {
            Self::Simulate(c) => {
                let extra = count(|p| p.held_out.len()) * c.sampling.max_new_tokens.get();
                let all = count(|p| p.train.len() + p.dev.len() + p.held_out.len());
                Budget { sampled: c.sampling.budget(all) + extra, ..Budget::default() }
            }
            Self::Sft(c) => {
                let models = if c.scope == policy::Scope::Global { 1 } else { users };
                training(c.token_budget * models, &c.lora.blocks)
            }
            Self::Reward(c) => training(c.token_budget, &c.lora.blocks),
            Self::Pairs(c) => {
                let sampled = c.ranked().map_or(0, |r| r.sampling.budget(count(|p| p.train.len())));
                Budget { sampled, ..Budget::default() }
            }
            Self::Dpo(c) => training(c.token_budget_per_user * users, &c.lora.blocks),
            Self::Ppo(c) => {
                let rows = c.steps.get() * c.prompts_per_step.get() * c.samples_per_prompt.get() * users;
                let scale = count(|p| p.train.len()) * c.reward.calibration_samples_per_prompt.get();
                // Policy and critic.
                let networks = if matches!(c.method, policy::Method::Ppo(_)) { 2 } else { 1 };
                let trained = training(rows * c.max_row_tokens * c.epochs.get() * networks, &c.lora.blocks);
                Budget { sampled: (rows + scale) * c.max_new_tokens.get(), ..trained }
            }
            Self::Evaluate(c) => {
                let list = match c.split {
                    study::EvaluationSplit::Dev => count(|p| p.dev.len()),
                    study::EvaluationSplit::HeldOut => count(|p| p.held_out.len()),
                };
                Budget { sampled: c.sampling.budget(list) * (users + 1), ..Budget::default() }
            }
            Self::Import(_) | Self::Data(_) | Self::Export(_) => Budget::default(),
        }
    }
}
