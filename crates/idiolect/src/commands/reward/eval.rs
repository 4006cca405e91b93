//! `idiolect reward eval`: a saved reward model, on any split of any table, alone.

use std::path::PathBuf;

use clap::Args;
use data::Split;
use problem::{Result, mistake};

use crate::compute::ComputeArgs;
use crate::new_folder::refuse_file;
use crate::{base, table};

#[derive(Args)]
pub(crate) struct EvalArgs {
    /// A file that the stage `reward` wrote
    #[arg(long)]
    model: PathBuf,
    /// The base that it was fitted on, a Hugging Face folder
    #[arg(long)]
    base: PathBuf,
    /// A table that the stage `data`, or `idiolect data ingest`, wrote
    #[arg(long)]
    votes: PathBuf,
    /// `train`, `dev`, `adapt` or `test`
    #[arg(long, default_value = "test")]
    split: String,
    /// Judge every user's votes by every other user's factors as well
    #[arg(long)]
    swap: bool,
    /// Tokens of prompt and answer; a longer row is an error
    #[arg(long, default_value_t = 2048)]
    max_row_tokens: usize,
    /// Leave longer rows out, and count them
    #[arg(long)]
    drop_over_long: bool,
    /// Seed of the bootstraps
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Write everything as JSON; must not exist
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write what the model says of each vote as Parquet; must not exist
    #[arg(long)]
    predictions: Option<PathBuf>,
    /// Draw how often predictions of a confidence were right, as SVG; must not exist
    #[arg(long)]
    reliability: Option<PathBuf>,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl EvalArgs {
    pub(crate) fn execute(&self) -> Result<()> {
        eval(self)
    }
}

fn eval(args: &EvalArgs) -> Result<()> {
    for out in args.json.iter().chain(&args.predictions).chain(&args.reliability) {
        refuse_file(out)?;
    }
    let Some(split) = Split::parse(&args.split) else {
        let message = format!("--split: expected train, dev, adapt or test, found `{}`", args.split);
        return Err(mistake(message, "leave it out for test"));
    };
    let votes = data::read_votes(&args.votes)?;
    let (lm, tokenizer) = base::load(&args.base, &args.compute.resolve()?)?;
    let model = reward::RewardModel::read(&args.model, &lm)?;
    let strangers = votes.iter().filter(|v| v.split == split && model.users.binary_search(&v.user_id).is_err()).count();
    let over_long = if args.drop_over_long { text::OverLong::Drop } else { text::OverLong::Error };
    let scored = reward::Scored { split, max_row_tokens: args.max_row_tokens, over_long, swap: args.swap };
    let mut bar = run::Progress::new("scoring", 0, 0);
    let said = reward::predict(&model, &lm, &tokenizer, &votes, &scored, |done, all| bar.reach(done, all))?;
    drop(bar);
    if said.votes.is_empty() {
        let message = format!(
            "{}: expected votes of the model's users in `{}`, found none ({strangers} of other users)",
            args.votes.display(),
            split.name()
        );
        return Err(mistake(message, "name another split or table"));
    }
    let evaluation = eval::evaluate(&said, split.name(), &model.users, args.seed);
    if let Some(path) = &args.json {
        run::write_json(path, &evaluation)?;
    }
    if let Some(path) = &args.reliability {
        run::write_atomic(path, eval::reliability(&[&evaluation])?.as_bytes())?;
    }
    if let Some(path) = &args.predictions {
        eval::write_predictions(path, &said.votes)?;
    }
    tracing::info!("votes of users whom the model does not know, left out: {strangers}; {}", evaluation.rows);
    table::print(&evaluation.markdown(usize::MAX))?;
    Ok(())
}
