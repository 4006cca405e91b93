//! What is typed, and which function it means.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use problem::{Result, invalid, mistake};

use crate::data_command::DataCommand;
use crate::exit::Outcome;
use crate::lab_command::LabCommand;
use crate::policy_command::PolicyCommand;
use crate::reward_command::RewardCommand;
use crate::stages::import::copy_hub_model;
use crate::{adapt, ask, chat, doctor, pipeline, score, table};

#[derive(Parser)]
#[command(name = "idiolect", version, about = "From preferences to one aligned language model per person")]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Lines on stderr: `text`, or `json` with time, level, fields and spans; `RUST_LOG` filters both
    #[arg(long, global = true, default_value = "text", value_parser = log_format, help_heading = "Global options")]
    pub(crate) log_format: run::LogFormat,
}

fn log_format(text: &str) -> Result<run::LogFormat, String> {
    match text {
        "text" => Ok(run::LogFormat::Text),
        "json" => Ok(run::LogFormat::Json),
        _ => Err("expected `text` or `json`".into()),
    }
}

#[derive(Subcommand)]
enum Command {
    /// Run a pipeline file: every stage that is not up to date
    Run(RunArgs),
    /// Turn a GGUF file of the Llama family, or a model's name on the Hugging Face Hub, into a Hugging Face folder
    Import(ImportArgs),
    /// Check, show, count or ingest preference data
    #[command(subcommand)]
    Data(DataCommand),
    /// Judge a saved reward model
    #[command(subcommand)]
    Reward(RewardCommand),
    /// Judge trained policies
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Serve a new user from a few votes, by a model with reward features
    Adapt(adapt::AdaptArgs),
    /// Ask somebody for the votes that would tell most about them
    Ask(ask::AskArgs),
    /// Talk to a user's model, or to two models side by side
    Chat(chat::ChatArgs),
    /// Check theories on synthetic users
    #[command(subcommand)]
    Lab(LabCommand),
    /// Print devices, libtorch, fast dtypes, memory, and what is missing
    Doctor,
    /// Print a model's logits and greedy text, with or without an adapter
    Score(score::ScoreArgs),
}

/// Where and how to compute.
#[derive(Args, Clone)]
pub(crate) struct ComputeArgs {
    /// `cpu`, `cuda` or `cuda:N`
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Type of the frozen base: `auto`, `float32` or `bfloat16`; adapters are float32 everywhere
    #[arg(long, default_value = "auto")]
    dtype: String,
    /// libtorch's threads [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
}

impl ComputeArgs {
    pub(crate) fn resolve(&self) -> Result<device::Compute> {
        if self.threads == Some(0) {
            return Err(mistake("--threads: expected at least 1, found 0", "leave the flag out for all cores"));
        }
        device::Compute::new(&self.device, &self.dtype, self.threads)
    }
}

/// Arguments of `idiolect run`.
#[derive(Args)]
pub(crate) struct RunArgs {
    /// A pipeline file; paths in it are relative to it
    pipeline: PathBuf,
    /// Where results are written [default: `checkpoints` in the project, the parent of `pipelines/`]
    #[arg(long, value_name = "DIR")]
    checkpoints: Option<PathBuf>,
    /// Stop after this stage
    #[arg(long, value_name = "STAGE")]
    until: Option<String>,
    /// Run this stage even if it is up to date, in every cell of a matrix
    #[arg(long, value_name = "STAGE")]
    force: Vec<String>,
    /// Change a value: `stage.key=value`, or `seed=value`; paths are relative to the current folder
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The run's seed, in place of the pipeline's
    #[arg(long)]
    seed: Option<u64>,
    /// Only print what would run, why, and how many tokens it may take
    #[arg(long)]
    dry_run: bool,
    /// Go on from results that were computed on another device, with other threads or micro-batches
    #[arg(long)]
    accept_environment: bool,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl RunArgs {
    fn execute(&self) -> Result<Outcome> {
        let Self { pipeline, checkpoints, until, force, set, seed, dry_run, accept_environment, compute } = self;
        let request = pipeline::Request {
            pipeline,
            checkpoints: checkpoints.as_deref(),
            until: until.as_deref(),
            force,
            set,
            seed: *seed,
            dry_run: *dry_run,
            accept_environment: *accept_environment,
        };
        pipeline::run(&request, &compute.resolve()?)
    }
}

#[derive(Args)]
struct ImportArgs {
    /// A GGUF file, or a name such as HuggingFaceTB/SmolLM2-135M-Instruct
    model: PathBuf,
    /// Branch, tag or commit of a named model
    #[arg(long)]
    revision: Option<String>,
    /// The folder to write; must not exist
    folder: PathBuf,
}

impl Cli {
    pub(crate) fn execute(self) -> Result<Outcome> {
        match self.command {
            Command::Run(args) => return args.execute(),
            Command::Data(command) => command.execute(),
            Command::Reward(command) => command.execute(),
            Command::Policy(command) => command.execute(),
            Command::Adapt(args) => adapt::run(&args),
            Command::Ask(args) => ask::run(&args),
            Command::Chat(args) => chat::run(&args),
            Command::Lab(command) => command.execute(),
            Command::Score(args) => score::score(&args),
            Command::Doctor => doctor::print(),
            Command::Import(ImportArgs { model, revision, folder }) => {
                refuse_folder(&folder)?;
                let aside = folder.with_extension("part");
                if aside.exists() {
                    fs_err::remove_dir_all(&aside)?;
                }
                let said = if model.extension().is_some_and(|e| e == "gguf") {
                    let report = lm::import_gguf(&model, &aside)?;
                    format!("{} tensors, {} parameters, types {:?}", report.tensors, report.parameters, report.types)
                } else {
                    fs_err::create_dir_all(&aside)?;
                    copy_hub_model(&model.to_string_lossy(), revision.as_deref(), &aside)?
                };
                fs_err::rename(&aside, &folder)?;
                table::say(&said);
                Ok(())
            }
        }?;
        Ok(Outcome::Done)
    }
}

/// Refuses a folder to write that exists already.
pub(crate) fn refuse_folder(out: &Path) -> Result<()> {
    if out.exists() {
        return Err(invalid(out.display(), "a new folder", "one that exists", "name another folder"));
    }
    Ok(())
}
