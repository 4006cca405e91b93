//! `idiolect lab newcomers`: on real votes, how well each method serves people whom it has not seen, after a few of their votes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use lab::{EmbeddedVote, HeldOutStudy};
use nalgebra::DMatrix;
use problem::{Result, mistake};

use crate::compute::ComputeArgs;
use crate::new_folder::NewFolder;
use crate::{base, table};

#[derive(Args)]
pub(crate) struct NewcomersArgs {
    /// A table that the stage `data`, or `idiolect data ingest`, wrote; its splits are not looked at
    #[arg(long)]
    votes: PathBuf,
    /// The base that embeds the texts, a Hugging Face folder
    #[arg(long)]
    base: PathBuf,
    /// A new folder for `rows.parquet` and `summary.json`
    #[arg(long)]
    out: PathBuf,
    /// Behind which block texts are read
    #[arg(long, default_value_t = 16)]
    depth: usize,
    /// Decided votes that a person must have to be judged [default: 40]
    #[arg(long)]
    least: Option<usize>,
    /// Tokens of prompt and answer; longer rows are left out and counted
    #[arg(long, default_value_t = 640)]
    max_row_tokens: usize,
    /// Times that prompts are drawn anew
    #[arg(long, default_value_t = 6)]
    splits: usize,
    /// Seed
    #[arg(long, default_value_t = 7)]
    seed: u64,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl NewcomersArgs {
    pub(crate) fn execute(&self) -> Result<()> {
        run(self)
    }
}

fn run(args: &NewcomersArgs) -> Result<()> {
    let new = NewFolder::begin(&args.out)?;
    let votes = data::read_votes(&args.votes)?;
    let ties = votes.iter().filter(|v| v.tie).count();
    let (lm, tokenizer) = base::load(&args.base, &args.compute.resolve()?)?;
    if args.depth == 0 || args.depth > lm.depth() {
        let message = format!("--depth: expected 1 to the base's {} blocks, found {}", lm.depth(), args.depth);
        return Err(mistake(message, "leave it out for 16"));
    }
    let mut bar = run::Progress::new("embedding", 0, 0);
    let limit = (args.max_row_tokens, text::OverLong::Drop);
    let embedded =
        reward::embed(&lm, &tokenizer, &votes, args.depth, lm::Pooling::Mean, limit, |d, a| bar.reach(d, a))?;
    drop(bar);

    let mut users: BTreeMap<&str, usize> = BTreeMap::new();
    let mut prompts: BTreeMap<String, usize> = BTreeMap::new();
    let cast: Vec<EmbeddedVote> = embedded
        .votes
        .iter()
        .map(|(index, chosen, rejected)| {
            let vote = &votes[*index];
            let next = users.len();
            let user = *users.entry(&vote.user_id).or_insert(next);
            let prompt: String = vote.prompt.iter().map(|m| format!("{}\n{}\n", m.role, m.content)).collect();
            let next = prompts.len();
            let prompt = *prompts.entry(prompt).or_insert(next);
            EmbeddedVote { user, prompt, chosen: *chosen, rejected: *rejected, tie: vote.tie }
        })
        .collect();
    let (rows, columns) = (embedded.texts.len(), embedded.texts.first().map_or(0, Vec::len));
    let study = HeldOutStudy { splits: args.splits, ..HeldOutStudy::default() };
    let study = HeldOutStudy { least: (args.least.unwrap_or(study.least.0), study.least.1), ..study };
    if users.len() < study.folds || prompts.len() < 2 {
        let message = format!(
            "{}: expected at least {} people and 2 prompts, found {} and {}",
            args.votes.display(),
            study.folds,
            users.len(),
            prompts.len()
        );
        return Err(mistake(message, "gather votes of more people"));
    }
    let texts = DMatrix::from_fn(rows, columns, |t, j| f64::from(embedded.texts[t][j]));
    let mut bar = run::Progress::new("new people", 0, 0);
    let stream = |name: &[&str]| run::rng(args.seed, &[&["lab", "newcomers"], name].concat());
    let found = study.run(&texts, &embedded.lengths, &cast, stream, |d, a| bar.reach(d, a));
    drop(bar);
    tracing::info!(
        "{} votes of {} people on {} prompts, {ties} of them ties; {}; {} people have {} votes, and {} on prompts that were held out",
        cast.len(),
        users.len(),
        prompts.len(),
        embedded.rows,
        found.iter().map(|r| r.user).collect::<std::collections::BTreeSet<_>>().len(),
        study.least.0,
        study.least.1
    );

    let names: Vec<&str> = {
        let mut names = vec![""; users.len()];
        users.iter().for_each(|(name, i)| names[*i] = name);
        names
    };
    let text = lab::write_held_out(&study, &found, &names, args.depth, args.seed, new.path())?;
    new.publish()?;
    table::print(&text)
}
