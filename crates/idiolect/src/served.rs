//! A folder of a reward model with reward features, and the people whom it serves: those of its training, and those adapted since.

use std::path::{Path, PathBuf};

use clap::Args;
use estimate::Taste;
use nalgebra::{DMatrix, DVector};
use problem::{Result, mistake};
use reward::{People, Reader, RewardModel};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base;
use crate::compute::ComputeArgs;

/// Which model, on what.
#[derive(Args)]
pub(crate) struct ServedArgs {
    /// The folder of a reward stage with `variant = "rfm"`
    #[arg(long)]
    pub(crate) model: PathBuf,
    /// The base that it was fitted on, a Hugging Face folder
    #[arg(long)]
    pub(crate) base: PathBuf,
    /// Tokens of prompt and answer; longer rows are left out and counted
    #[arg(long, default_value_t = 2048)]
    pub(crate) max_row_tokens: usize,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
}

impl ServedArgs {
    pub(crate) fn new(model: &Path, base: &Path, compute: &ComputeArgs) -> Self {
        Self { model: model.to_owned(), base: base.to_owned(), max_row_tokens: 2048, compute: compute.clone() }
    }
}

/// The model with its base and people.
pub(crate) struct Served {
    pub(crate) lm: lm::Lm,
    pub(crate) tokenizer: text::Tokenizer,
    pub(crate) model: RewardModel,
    pub(crate) people: People,
    folder: PathBuf,
    hash: String,
    max_row_tokens: usize,
}

/// `adapted/<user>.json`: a user who came after training.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Adapted {
    pub(crate) user: String,
    /// SHA-256 of the `reward.safetensors` whose features the taste weighs.
    pub(crate) model: String,
    /// Votes behind it, ties among them.
    pub(crate) votes: usize,
    pub(crate) ties: usize,
    /// `[d]`
    pub(crate) mean: Vec<f64>,
    /// `[d, d]`, row by row.
    pub(crate) covariance: Vec<f64>,
    /// Share of decided votes that are predicted from the others, five folds; with its 95% interval.
    pub(crate) held_out_accuracy: Option<stats::Interval>,
}

/// The people of a reward stage in `folder`, if its model has reward features.
pub(crate) fn people_of(folder: &Path) -> Result<Option<People>> {
    let people = folder.join("people.safetensors");
    people.exists().then(|| People::read(&people)).transpose()
}

/// Decided training votes of a user of `model`, on average, by the report of the reward stage in `folder` that fitted it: what the size of
/// the ball around a user's factors goes by.
pub(crate) fn decided_votes(folder: &Path, model: &RewardModel) -> Result<f64> {
    let file = folder.join("report.json");
    let hint = "name the folder of a reward stage, or give --zeta";
    let report: Value = if file.exists() { run::read_json(&file)? } else { Value::Null };
    let count = |key: &str| report["fit"][key].as_f64();
    let votes = count("votes").zip(count("ties")).map(|(votes, ties)| votes - ties);
    let votes = votes.ok_or_else(|| mistake(format!("{}: expected fit.votes and fit.ties", file.display()), hint))?;
    Ok(votes / model.users.len() as f64)
}

impl Served {
    pub(crate) fn open(args: &ServedArgs) -> Result<Self> {
        let (lm, tokenizer) = base::load(&args.base, &args.compute.resolve()?)?;
        let file = args.model.join("reward.safetensors");
        let model = RewardModel::read(&file, &lm)?;
        let people = args.model.join("people.safetensors");
        if !people.exists() {
            let message = format!("{}: expected people.safetensors, found none", args.model.display());
            return Err(mistake(
                message,
                "name the folder of a reward stage with `variant = \"rfm\"` and at least two features",
            ));
        }
        Ok(Self {
            lm,
            tokenizer,
            model,
            people: People::read(&people)?,
            folder: args.model.clone(),
            hash: run::hash_file(&file)?,
            max_row_tokens: args.max_row_tokens,
        })
    }

    /// Reads texts; what it read lies in `features.safetensors` in the model's folder.
    pub(crate) fn reader(&self) -> Result<Reader<'_>> {
        let kept = (self.folder.join("features.safetensors"), self.hash.clone());
        Reader::open(&self.model, &self.lm, &self.tokenizer, self.max_row_tokens, Some(kept))
    }

    /// Where a user who came after training is kept.
    pub(crate) fn file_of(&self, user: &str) -> PathBuf {
        self.folder.join(run::ADDED).join(format!("{}.json", export::folder_name(user)))
    }

    /// A user's taste: fitted or adapted. None for a stranger.
    pub(crate) fn taste(&self, user: &str) -> Result<Option<Taste>> {
        let file = self.file_of(user);
        if file.exists() {
            return self.adapted(&file).map(Some);
        }
        Ok(self.people.tastes.get(user).cloned())
    }

    fn adapted(&self, file: &Path) -> Result<Taste> {
        let own: Adapted = run::read_json(file)?;
        let d = own.mean.len();
        if own.model != self.hash || own.covariance.len() != d * d {
            let message =
                format!("{}: expected a taste over this model's features, found another model's", file.display());
            return Err(mistake(message, "adapt the user again, with --replace"));
        }
        Ok(Taste {
            mean: DVector::from_vec(own.mean),
            covariance: DMatrix::from_row_slice(d, d, &own.covariance),
            votes: own.votes,
        })
    }

    /// Writes a user who came after training; nobody else's file is touched.
    pub(crate) fn keep(
        &self,
        user: &str,
        taste: &Taste,
        ties: usize,
        accuracy: Option<stats::Interval>,
    ) -> Result<PathBuf> {
        let file = self.file_of(user);
        fs_err::create_dir_all(self.folder.join(run::ADDED))?;
        let own = Adapted {
            user: user.to_owned(),
            model: self.hash.clone(),
            votes: taste.votes,
            ties,
            mean: taste.mean.iter().copied().collect(),
            covariance: taste.covariance.transpose().iter().copied().collect(),
            held_out_accuracy: accuracy,
        };
        run::write_json(&file, &own)?;
        Ok(file)
    }
}
