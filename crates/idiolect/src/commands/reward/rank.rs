//! `idiolect reward rank`: the best of a prompt's answers for one user, by any reward model of ours.

use std::path::{Path, PathBuf};

use clap::Args;
use estimate::Scorer;
use problem::{Result, mistake};
use reward::{ByFactors, ByTaste, Errors, RewardModel};
use serde::{Deserialize, Serialize};

use crate::new_folder::refuse_file;
use crate::served::{Served, ServedArgs, decided_votes};
use crate::{base, table};

#[derive(Args)]
pub(crate) struct RankArgs {
    /// For whom
    #[arg(long)]
    user: String,
    /// JSON lines: `{"prompt": "...", "answers": ["...", ...]}`
    #[arg(long)]
    answers: PathBuf,
    /// The JSON lines to write: `prompt`, `best` (from 0), `rewards`, `errors`, and `beside` (its pick) with --beside; must not exist
    #[arg(long)]
    out: PathBuf,
    /// Rank by reward minus so many standard errors: Laplace's of a taste, or the half-width of the ball around a user's factors
    #[arg(long, default_value_t = 0.0)]
    caution: f64,
    /// Squared radius of that ball [default: with --caution by its formula, from the votes of training]
    #[arg(long)]
    zeta: Option<f64>,
    /// A reward.safetensors that picks as well, such as one reward for all; judged by the first model
    #[arg(long)]
    beside: Option<PathBuf>,
    #[command(flatten)]
    served: ServedArgs,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    prompt: String,
    answers: Vec<String>,
}

#[derive(Serialize)]
struct Ranked {
    prompt: String,
    best: usize,
    rewards: Vec<f64>,
    errors: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    beside: Option<usize>,
}

impl RankArgs {
    pub(crate) fn execute(&self) -> Result<()> {
        run(self)
    }
}

fn run(args: &RankArgs) -> Result<()> {
    refuse_file(&args.out)?;
    for (flag, value) in [("--caution", args.caution), ("--zeta", args.zeta.unwrap_or(0.0))] {
        if !(value.is_finite() && value >= 0.0) {
            let message = format!("{flag}: expected a finite number of at least 0, found {value}");
            return Err(mistake(message, "leave it out for the plain reward"));
        }
    }
    let asked = read(&args.answers)?;
    let ranked = if args.served.model.join("people.safetensors").exists() {
        if args.zeta.is_some() {
            let message =
                format!("--zeta: expected a model without reward features, found {}", args.served.model.display());
            return Err(mistake(message, "leave it out: the standard errors are those of tastes"));
        }
        let served = Served::open(&args.served)?;
        let own = served.taste(&args.user)?;
        let mut scorer = ByTaste { reader: served.reader()?, taste: |_: &str| own.clone() };
        rank(args, &asked, &mut scorer, &served.lm, &served.tokenizer)?
    } else {
        let (lm, tokenizer) = base::load(&args.served.base, &args.served.compute.resolve()?)?;
        let model = RewardModel::read(&args.served.model.join("reward.safetensors"), &lm)?;
        let zeta = match args.zeta {
            Some(zeta) => zeta,
            None if args.caution == 0.0 => 0.0,
            None => Errors::ball(&model, decided_votes(&args.served.model, &model)?)?,
        };
        let mut scorer = ByFactors { model: &model, lm: &lm, tokenizer: &tokenizer, zeta };
        rank(args, &asked, &mut scorer, &lm, &tokenizer)?
    };
    let lines: Vec<String> = ranked.iter().map(|r| serde_json::to_string(r).expect("plain data") + "\n").collect();
    run::write_atomic(&args.out, lines.concat().as_bytes())?;
    let n = ranked.len() as f64;
    let mean = |f: &dyn Fn(&Ranked) -> f64| ranked.iter().map(f).sum::<f64>() / n;
    let of_answers = mean(&|r| r.rewards.iter().sum::<f64>() / r.rewards.len() as f64);
    let mut said = format!(
        "{} prompts for {}: reward of the pick {:.4}, of all answers {of_answers:.4}",
        ranked.len(),
        args.user,
        mean(&|r| r.rewards[r.best])
    );
    if args.beside.is_some() {
        let other = |r: &Ranked| r.rewards[r.beside.unwrap_or(r.best)];
        let wins = mean(&|r| match r.rewards[r.best].total_cmp(&other(r)) {
            std::cmp::Ordering::Greater => 1.0,
            std::cmp::Ordering::Equal => 0.5,
            std::cmp::Ordering::Less => 0.0,
        });
        said += &format!(
            "\nreward of the other model's pick {:.4}; this pick wins {:.1}% of prompts by the first model, equal picks half",
            mean(&other),
            100.0 * wins
        );
    }
    table::print(&said)?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<Asked>> {
    let text = fs_err::read_to_string(path)?;
    let mut out = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let place = || format!("{}, line {}", path.display(), number + 1);
        let hint = "a line is {\"prompt\": \"...\", \"answers\": [\"...\", \"...\"]}";
        let asked: Asked = serde_json::from_str(line)
            .map_err(|e| mistake(format!("{}: expected a prompt with answers, found {e}", place()), hint))?;
        if asked.answers.is_empty() {
            return Err(mistake(format!("{}: expected at least one answer, found none", place()), hint));
        }
        out.push(asked);
    }
    if out.is_empty() {
        return Err(mistake(
            format!("{}: expected at least one line, found none", path.display()),
            "write some prompts",
        ));
    }
    Ok(out)
}

/// What both models say, prompt by prompt.
fn rank(
    args: &RankArgs,
    asked: &[Asked],
    scorer: &mut dyn Scorer<Error = problem::Problem>,
    lm: &lm::Lm,
    tokenizer: &text::Tokenizer,
) -> Result<Vec<Ranked>> {
    let other = args.beside.as_ref().map(|path| RewardModel::read(path, lm)).transpose()?;
    let mut other = other.as_ref().map(|model| ByFactors { model, lm, tokenizer, zeta: 0.0 });
    let mut bar = run::Progress::new("ranking", asked.len(), 0);
    let mut out = Vec::new();
    for Asked { prompt, answers } in asked {
        let texts: Vec<(&str, &str)> = answers.iter().map(|a| (prompt.as_str(), a.as_str())).collect();
        let (rewards, errors): (Vec<f64>, Vec<f64>) = scorer.scores(&args.user, &texts)?.into_iter().unzip();
        let best = estimate::most_careful(&rewards, &errors, args.caution).expect("answers");
        let beside = match &mut other {
            None => None,
            Some(other) => {
                let (rewards, errors): (Vec<f64>, Vec<f64>) = other.scores(&args.user, &texts)?.into_iter().unzip();
                estimate::most_careful(&rewards, &errors, 0.0)
            }
        };
        out.push(Ranked { prompt: prompt.clone(), best, rewards, errors, beside });
        bar.advance(1, "");
    }
    Ok(out)
}
