//! `idiolect policy eval`: what trained policies are worth, by a known truth or by reward models.

use std::path::PathBuf;

use clap::Args;
use lm::{Lm, UserIndex};
use policy::Policies;
use problem::{Result, mistake};
use reward::RewardModel;
use run::Run;
use study::{Asked, EvaluateConfig, EvaluationSplit, Own, Rates, SamplingConfig, Truth};
use text::{Answer, Message, Tokenizer};

use crate::compute::ComputeArgs;
use crate::new_folder::refuse_folder;
use crate::stages::import::files_of_a_base;
use crate::stages::pairs::answer_rows;
use crate::{base, table};

#[derive(Args)]
pub(crate) struct EvalArgs {
    /// The folder of a stage `dpo`, `ppo` or `sft`, with its policies.safetensors
    #[arg(long)]
    policies: PathBuf,
    /// The base, a Hugging Face folder
    #[arg(long)]
    model: PathBuf,
    /// Judge by simulated raters: the stage `simulate`'s truth.json
    #[arg(long, conflicts_with = "reward", required_unless_present = "reward")]
    truth: Option<PathBuf>,
    /// Judge by each user's own reward model: a reward.safetensors
    #[arg(long)]
    reward: Option<PathBuf>,
    /// A TOML file with a list `prompts`
    #[arg(long)]
    prompts: PathBuf,
    /// The same for prompts on which no taste is asked for: drift
    #[arg(long)]
    neutral: Option<PathBuf>,
    /// A policies.safetensors whose first model is everybody's: compared with beside the base
    #[arg(long)]
    against: Option<PathBuf>,
    /// A system instruction in front of every prompt
    #[arg(long)]
    system: Option<String>,
    /// A new folder for report.json, report.md, matrix.svg, answers.parquet; a run that was stopped goes on
    #[arg(long)]
    out: PathBuf,
    #[arg(long, default_value_t = 8.try_into().expect("not zero"))]
    samples_per_prompt: std::num::NonZero<usize>,
    /// Of a model's answers to each prompt, so many are scored for its divergence
    #[arg(long, default_value_t = 2)]
    kl_samples_per_prompt: usize,
    #[arg(long, default_value_t = 128.try_into().expect("not zero"))]
    max_new_tokens: std::num::NonZero<usize>,
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// Answers that are decoded together
    #[arg(long, default_value_t = 64.try_into().expect("not zero"))]
    batch_rows: std::num::NonZero<usize>,
    #[arg(long, default_value_t = 7)]
    seed: u64,
    #[command(flatten)]
    compute: ComputeArgs,
}

impl EvalArgs {
    pub(crate) fn execute(&self) -> Result<()> {
        eval(self)
    }
}

fn eval(args: &EvalArgs) -> Result<()> {
    run::recover(&args.out)?; // of an evaluation that was killed at its very end
    refuse_folder(&args.out)?;
    if !(args.temperature > 0.0 && args.temperature.is_finite()) {
        let message = format!("--temperature: expected a positive number, found {}", args.temperature);
        return Err(mistake(message, "leave it out for 1"));
    }
    let compute = args.compute.resolve()?;
    let system = args.system.as_deref();
    let prompts = study::prompt_list(&args.prompts, system)?;
    let neutral = args.neutral.as_ref().map(|path| study::prompt_list(path, system)).transpose()?;
    let (lm, tokenizer) = base::load(&args.model, &compute)?;
    let file = args.policies.join("policies.safetensors");
    let policies = Policies::read(&file, &lm)?;
    let against = args.against.as_ref().map(|path| Policies::read(path, &lm)).transpose()?;
    let truth: Option<Truth> = args.truth.as_ref().map(|path| run::read_json(path)).transpose()?;
    let model = args.reward.as_ref().map(|path| RewardModel::read(path, &lm)).transpose()?;
    let users = &policies.users;
    let judges: Vec<UserIndex> =
        users.iter().map(|user| known(user, truth.as_ref(), model.as_ref())).collect::<Result<_>>()?;

    // Files decide the result: a folder of another run does not go on.
    let config = serde_json::json!({"samples": args.samples_per_prompt, "kl": args.kl_samples_per_prompt,
        "tokens": args.max_new_tokens, "temperature": args.temperature, "rows": args.batch_rows, "system": args.system});
    let mut identity = run::Identity::new("policy-eval", 1, config, args.seed);
    let by_role = [
        ("policies", Some(&file)),
        ("prompts", Some(&args.prompts)),
        ("neutral", args.neutral.as_ref()),
        ("against", args.against.as_ref()),
        ("truth", args.truth.as_ref()),
        ("reward", args.reward.as_ref()),
    ];
    for (role, path) in by_role.into_iter().filter_map(|(role, path)| Some((role, path?))) {
        identity.inputs.insert(role.to_owned(), run::hash_file(path)?);
    }
    for path in files_of_a_base(&args.model)?.0.iter().map(|file| args.model.join(file)) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        identity.inputs.insert(format!("base {name}"), run::hash_file(&path)?);
    }
    let mut run = Run::begin(&args.out, identity, compute.environment())?;

    let how = EvaluateConfig {
        split: EvaluationSplit::HeldOut, // the prompts are given
        sampling: SamplingConfig {
            samples_per_prompt: args.samples_per_prompt,
            max_new_tokens: args.max_new_tokens,
            temperature: args.temperature,
            batch_rows: args.batch_rows,
        },
        kl_samples_per_prompt: args.kl_samples_per_prompt,
        neutral: None,
    };
    let name = args.prompts.display().to_string();
    let judged = if truth.is_some() { "truth" } else { "reward" };
    let asked = Asked { split: &name, prompts: &prompts, neutral: neutral.as_deref(), judged };
    let mut judge = |prompts: &[Vec<Message>], answers: &[Vec<Answer>]| match (&truth, &model) {
        (Some(truth), _) => Ok(truth.rates(users, answers)),
        (None, Some(model)) => by_reward(&lm, &tokenizer, model, &judges, prompts, answers),
        (None, None) => Ok(vec![]), // clap asks for one of them
    };
    let own = Own { bank: &policies.bank, users };
    let bank = against.as_ref().map(|p| &p.bank);
    let (report, _) = study::evaluate_by(&how, &lm, &tokenizer, own, &asked, bank, &mut judge, &mut run)?;
    let text = report.markdown();
    refuse_folder(&args.out)?; // it may have appeared meanwhile
    run.finish(serde_json::json!(report), &[])?;
    table::print(&text)?;
    Ok(())
}

/// A user among those of the reward model; the first with a truth, which must know them.
fn known(user: &String, truth: Option<&Truth>, model: Option<&RewardModel>) -> Result<UserIndex> {
    let stranger = |users: Vec<String>| {
        let message = format!("user `{user}` of the policies: expected one whom the judge knows");
        mistake(message, format!("it knows {}", users.join(", ")))
    };
    match (truth, model) {
        (Some(truth), _) if truth.raters.contains_key(user) => Ok(UserIndex(0)),
        (Some(truth), _) => Err(stranger(truth.raters.keys().cloned().collect())),
        (None, Some(model)) => match model.users.binary_search(user) {
            Ok(index) => Ok(UserIndex(index)),
            Err(_) if model.is_shared() => Ok(UserIndex(0)),
            Err(_) => Err(stranger(model.users.clone())),
        },
        (None, None) => Ok(UserIndex(0)),
    }
}

/// Rewards of all answers for every judge; an empty answer is worse than all.
fn by_reward(
    lm: &Lm,
    tokenizer: &Tokenizer,
    model: &RewardModel,
    judges: &[UserIndex],
    prompts: &[Vec<Message>],
    answers: &[Vec<Answer>],
) -> problem::Result<Rates> {
    let (rows, places) = answer_rows(tokenizer, prompts, answers)?;
    let all: Vec<usize> = (0..rows.len()).collect();
    let prefix = model.prefix(lm, rows, |_| ())?;
    let rates = |user: &UserIndex| {
        let scores = model.score(lm, &prefix, &all, *user);
        let rate = |place: &Option<usize>| place.map_or(f64::NEG_INFINITY, |row| f64::from(scores[row]));
        places.iter().map(|own| own.iter().map(rate).collect()).collect()
    };
    Ok(judges.iter().map(rates).collect())
}
