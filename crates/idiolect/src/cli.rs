//! What is typed, and which function it means.

use clap::{Parser, Subcommand};
use problem::Result;

use crate::commands::adapt::AdaptArgs;
use crate::commands::ask::AskArgs;
use crate::commands::chat::ChatArgs;
use crate::commands::config::ConfigArgs;
use crate::commands::data::DataCommand;
use crate::commands::doctor::DoctorArgs;
use crate::commands::import::ImportArgs;
use crate::commands::lab::LabCommand;
use crate::commands::policy::PolicyCommand;
use crate::commands::reward::RewardCommand;
use crate::commands::run::RunArgs;
use crate::commands::score::ScoreArgs;
use crate::exit::Outcome;

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
    /// Print a stage's settings with their documentation and defaults
    Config(ConfigArgs),
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
    Adapt(AdaptArgs),
    /// Ask somebody for the votes that would tell most about them
    Ask(AskArgs),
    /// Talk to a user's model, or to two models side by side
    Chat(ChatArgs),
    /// Check theories on synthetic users
    #[command(subcommand)]
    Lab(LabCommand),
    /// Print devices, libtorch, fast dtypes, memory, and what is missing
    Doctor(DoctorArgs),
    /// Print a model's logits and greedy text, with or without an adapter
    Score(ScoreArgs),
}

impl Cli {
    pub(crate) fn execute(self) -> Result<Outcome> {
        match self.command {
            Command::Run(args) => return args.execute(),
            Command::Config(args) => args.execute(),
            Command::Import(args) => args.execute(),
            Command::Data(command) => command.execute(),
            Command::Reward(command) => command.execute(),
            Command::Policy(command) => command.execute(),
            Command::Adapt(args) => args.execute(),
            Command::Ask(args) => args.execute(),
            Command::Chat(args) => args.execute(),
            Command::Lab(command) => command.execute(),
            Command::Doctor(args) => args.execute(),
            Command::Score(args) => args.execute(),
        }?;
        Ok(Outcome::Done)
    }
}
