//! `idiolect reward`: a saved reward model, on any split of any table, alone.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use data::{Column, Split};
use problem::{Result, mistake};
use reward::{Evaluation, OWN_FIGURES, Predictions};

use crate::cli::ComputeArgs;
use crate::data_command::refuse_existing;
use crate::rank::RankArgs;
use crate::{base, rank, table};

#[derive(Subcommand)]
pub(crate) enum RewardCommand {
    /// Accuracy, log-loss, calibration of every user on a split, beside the simplest baselines
    Eval(EvalArgs),
    /// The best of a prompt's answers for one user, by any reward model, beside another model's pick
    Rank(RankArgs),
}

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

impl RewardCommand {
    pub(crate) fn execute(self) -> Result<()> {
        match self {
            Self::Eval(args) => eval(&args),
            Self::Rank(args) => rank::run(&args),
        }
    }
}

fn eval(args: &EvalArgs) -> Result<()> {
    for out in args.json.iter().chain(&args.predictions).chain(&args.reliability) {
        refuse_existing(out)?;
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
    let evaluation = reward::evaluate(&said, split.name(), &model.users, args.seed);
    if let Some(path) = &args.json {
        run::write_json(path, &evaluation)?;
    }
    if let Some(path) = &args.reliability {
        reward::plot_reliability(path, &[&evaluation])?;
    }
    if let Some(path) = &args.predictions {
        reward::write_predictions(path, &said.votes)?;
    }
    tracing::info!("votes of users whom the model does not know, left out: {strangers}; {}", evaluation.rows);
    table::print(&table(&evaluation, usize::MAX))?;
    Ok(())
}

/// The factors' user, the votes' user, votes, accuracy.
pub(crate) fn write_swap(path: &Path, said: &Predictions, users: &[String]) -> Result<()> {
    let name = |f: fn(&(usize, usize, usize, f64)) -> usize| {
        Column::Text(said.swap.iter().map(|row| users[f(row)].clone()).collect())
    };
    let columns = [
        ("factors_of", name(|r| r.0)),
        ("votes_of", name(|r| r.1)),
        ("votes", Column::Integer(said.swap.iter().map(|r| r.2 as i64).collect())),
        ("accuracy", Column::Real(said.swap.iter().map(|r| r.3).collect())),
    ];
    data::write_table(path, &columns)
}

/// An evaluation for a reader: all users together, then those with votes enough, at most `most` of them.
pub(crate) fn table(e: &Evaluation, most: usize) -> String {
    let interval = |i: &Option<estimate::Interval>| {
        i.map_or("none".into(), |i| format!("{:.3} [{:.3}, {:.3}]", i.mean, i.low, i.high))
    };
    let mut rows = vec![
        vec!["decided votes (ties)".into(), format!("{} ({})", e.votes, e.ties)],
        vec!["accuracy, mean over users".into(), interval(&e.accuracy)],
        vec!["accuracy, mean over votes".into(), interval(&e.accuracy_by_vote)],
        vec!["worst decile of users".into(), format!("{:.3}", e.worst_decile)],
        vec!["deviation over users".into(), format!("{:.3}", e.dispersion)],
        vec!["longer answer".into(), format!("{:.3}", e.longer)],
    ];
    if let Some(c) = &e.calibration {
        rows.push(vec!["log-loss, Brier, ECE".into(), format!("{:.3}, {:.3}, {:.3}", c.log_loss, c.brier, c.ece)]);
    }
    if let Some((share, votes)) = e.majority {
        rows.push(vec!["majority of the others".into(), format!("{share:.3} of {votes} votes")]);
    }
    if let Some(swapped) = e.swapped {
        rows.push(vec!["other users' factors".into(), format!("{swapped:.3}")]);
    }
    let mut text = table::markdown(&[&e.split, ""], &rows);
    let mut known: Vec<_> = e.users.iter().collect();
    known.sort_by_key(|u| std::cmp::Reverse(u.votes));
    let shown: Vec<Vec<String>> = known
        .iter()
        .take(most)
        .filter(|u| u.votes >= OWN_FIGURES)
        .map(|u| {
            vec![
                u.user.clone(),
                u.votes.to_string(),
                format!("{:.3}", u.accuracy.mean),
                format!("{:.3} to {:.3}", u.accuracy.low, u.accuracy.high),
                format!("{:.3}", u.log_loss),
                format!("{:.3}", u.longer),
                u.swapped.map_or(String::new(), |s| format!("{s:.3}")),
            ]
        })
        .collect();
    let hidden = e.users.len() - shown.len();
    if !shown.is_empty() {
        let header = ["user", "votes", "accuracy", "95% interval", "log-loss", "longer answer", "other users' factors"];
        text += &format!("\n{}", table::markdown(&header, &shown));
    }
    if hidden > 0 {
        text +=
            &format!("\n{hidden} more users are in the report; own figures are shown from {OWN_FIGURES} votes on\n");
    }
    if let Some(c) = &e.calibration {
        let bins: Vec<Vec<String>> = c
            .bins
            .iter()
            .map(|b| {
                vec![
                    format!("{:.2} to {:.2}", b.from, b.to),
                    b.votes.to_string(),
                    format!("{:.3}", b.confidence),
                    format!("{:.3}", b.accuracy),
                ]
            })
            .collect();
        text += &format!("\n{}", table::markdown(&["confidence", "votes", "mean confidence", "accuracy"], &bins));
    }
    text
}
