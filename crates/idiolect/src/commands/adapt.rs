//! `idiolect adapt`: a user who came after training, from a few votes, without a step of the language model.

use std::path::PathBuf;

use clap::Args;
use data::Vote;
use estimate::{Judgements, Taste};
use problem::{Result, mistake};
use stats::{Prior, clustered_mean};

use crate::judged::judge;
use crate::served::{Served, ServedArgs};
use crate::table;

#[derive(Args)]
pub(crate) struct AdaptArgs {
    /// Whose taste
    #[arg(long)]
    user: String,
    /// A table that `idiolect data ingest` or `idiolect ask` wrote; every vote of this user counts, whatever its split
    #[arg(long)]
    votes: PathBuf,
    /// Put a new taste in the place of an older one of the same user
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    served: ServedArgs,
}

/// Decided votes from which on accuracy is shown.
const ENOUGH: usize = 20;
const FOLDS: usize = 5;

impl AdaptArgs {
    pub(crate) fn execute(&self) -> Result<()> {
        run(self)
    }
}

fn run(args: &AdaptArgs) -> Result<()> {
    let all = data::read_votes(&args.votes)?;
    let votes: Vec<&Vote> = all.iter().filter(|v| v.user_id == args.user).collect();
    if votes.is_empty() {
        let message =
            format!("{}: expected votes of `{}`, found {} votes of others", args.votes.display(), args.user, all.len());
        return Err(mistake(message, "see who is there: `idiolect data stats`"));
    }
    let served = Served::open(&args.served)?;
    let file = served.file_of(&args.user);
    if !args.replace && (file.exists() || served.people.tastes.contains_key(&args.user)) {
        let message = format!("--user: expected somebody new, found `{}` among those whom the model serves", args.user);
        return Err(mistake(message, "--replace puts the new preference weights in place of the old ones"));
    }
    let mut reader = served.reader()?;
    let before = reader.known();
    let (judged, dropped) = judge(&mut reader, &votes, served.people.population.map.nrows())?;
    let texts = reader.known() - before;
    let without_weight = votes.iter().filter(|v| !v.counts()).count();
    if judged.is_empty() {
        let message = format!(
            "{}: expected a vote of a weight above 0 within --max-row-tokens, found {without_weight} of weight 0 and {dropped} that are too long",
            args.votes.display()
        );
        return Err(mistake(message, "raise --max-row-tokens, or give votes that count"));
    }
    let prior = served.people.population.prior(&[1.0]);
    let taste = Taste::of(&prior, &judged);
    let ties = judged.iter().filter(|(_, y, _)| *y == 0.5).count();
    let accuracy = held_out(&prior, &judged);
    let file = served.keep(&args.user, &taste, ties, accuracy)?;

    tracing::info!(
        "{}: {} votes, {ties} of them ties; {dropped} over --max-row-tokens and {without_weight} of weight 0 left out; {texts} texts read, the others were known",
        args.user,
        judged.len()
    );
    match accuracy {
        Some(a) => tracing::info!(
            "accuracy on votes that were held out, {FOLDS} folds: {:.3} [{:.3}, {:.3}]",
            a.mean,
            a.low,
            a.high
        ),
        None => tracing::info!("accuracy is not shown: it needs {ENOUGH} decided votes, found {}", judged.len() - ties),
    }
    let rows: Vec<Vec<String>> = (0..taste.mean.len())
        .map(|k| {
            let before = served.people.population.covariance[(k, k)].sqrt();
            vec![
                k.to_string(),
                format!("{:.3}", taste.mean[k]),
                format!("{:.3}", taste.covariance[(k, k)].sqrt()),
                format!("{:.3}", prior.mean[k]),
                format!("{before:.3}"),
            ]
        })
        .collect();
    table::print(&report::markdown(
        &["feature", "weight", "standard error", "before any vote", "deviation of people"],
        &rows,
    ))?;
    tracing::info!("written: {}", file.display());
    Ok(())
}

/// Each decided vote predicted from the other folds' votes.
fn held_out(prior: &Prior, judged: &Judgements) -> Option<stats::Interval> {
    let all: Vec<(&[f64], f64, f64)> = judged.iter().collect();
    if all.iter().filter(|(_, y, _)| *y != 0.5).count() < ENOUGH {
        return None;
    }
    let mut right = Vec::new();
    for fold in 0..FOLDS {
        let mut rest = Judgements::new(judged.dimension());
        all.iter().enumerate().filter(|(i, _)| i % FOLDS != fold).for_each(|(_, (x, y, w))| rest.push(x, *y, *w));
        let taste = Taste::of(prior, &rest);
        for (x, y, _) in all.iter().skip(fold).step_by(FOLDS).filter(|(_, y, _)| *y != 0.5) {
            right.push((f64::from(u8::from((taste.score(x).0 > 0.0) == (*y > 0.5))), 1));
        }
    }
    clustered_mean(&right, &mut run::rng(7, &["adapt"]))
}
