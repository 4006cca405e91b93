//! `idiolect run`: a pipeline, or what it would do.

use std::path::PathBuf;

use clap::Args;
use problem::Result;

use crate::compute::ComputeArgs;
use crate::exit::Outcome;
use crate::pipeline;

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
    /// Run this stage even if it is up to date, in every cell of a matrix; an interrupted run of the same settings goes on
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
    pub(crate) fn execute(&self) -> Result<Outcome> {
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
