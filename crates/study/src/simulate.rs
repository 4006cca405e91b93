//! Raters with a known truth, voting on the base's own answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data::{Column, write_table};
use lm::Lm;
use problem::{Problem, Result, invalid};
use rand::Rng;
use rand::seq::SliceRandom;
use run::Run;
use serde::{Deserialize, Serialize};
use text::{Answer, Message, Tokenizer};

use crate::rater::{Choice, agreement_scale, truth, vote};
use crate::style::{Feature, Scaler};
use crate::{SamplingConfig, sample};

/// Votes of each user on the prompts of each part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VotesPerUser {
    /// On training prompts.
    pub train: usize,
    /// On development prompts.
    pub dev: usize,
    /// On held-out prompts.
    pub test: usize,
}

/// A simulation, as written in `configs/simulate/*.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulateConfig {
    /// A TOML file with the lists `train`, `dev`, `held_out`.
    pub prompts: PathBuf,
    /// System instruction in front of every prompt.
    pub system: Option<String>,
    /// How the base answers.
    pub sampling: SamplingConfig,
    /// What raters see in an answer.
    pub features: Vec<Feature>,
    /// Each rater's weights on the features: entries 1 and -1, orthogonal to the other raters'.
    pub raters: BTreeMap<String, Vec<f64>>,
    /// Share of votes in which a rater agrees with its own truth.
    pub agreement: f64,
    /// A pair whose truths differ by less is a tie.
    pub tie_width: f64,
    /// How many votes.
    pub votes_per_user: VotesPerUser,
    /// The share of held-out prompts in which the best sample by truth must beat one more sample, for every rater: else
    /// the task is too hard for its features.
    pub gate: f64,
}

/// Each feature must be in at least this share of training samples ...
const PRESENT_LOW: f64 = 0.2;
/// ... and in at most this one: else nobody can be told apart by it.
const PRESENT_HIGH: f64 = 0.8;

/// The prompts file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompts {
    /// To learn from.
    pub train: Vec<String>,
    /// To mend by.
    pub dev: Vec<String>,
    /// To report, looked at last.
    pub held_out: Vec<String>,
}

impl Prompts {
    /// Reads the file; a prompt that stands twice is an error.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |expected: &str, found: String| {
            invalid(path.display().to_string(), expected, found, "datasets/everyday/prompts.toml is an example")
        };
        let text = fs_err::read_to_string(path)?;
        let prompts: Self =
            toml::from_str(&text).map_err(|e| wrong("the lists `train`, `dev` and `held_out`", e.to_string()))?;
        let mut seen = std::collections::HashSet::new();
        for prompt in prompts.train.iter().chain(&prompts.dev).chain(&prompts.held_out) {
            if !seen.insert(prompt.to_lowercase()) {
                return Err(wrong("every prompt once", format!("`{prompt}` twice")));
            }
        }
        if [&prompts.train, &prompts.dev, &prompts.held_out].iter().any(|list| list.is_empty()) {
            return Err(wrong("prompts in every list", "an empty list".into()));
        }
        Ok(prompts)
    }

    /// A prompt as a conversation.
    pub fn conversation(system: Option<&str>, prompt: &str) -> Vec<Message> {
        system.map(Message::system).into_iter().chain([Message::user(prompt)]).collect()
    }
}

/// `truth.json`: all that decides what a rater thinks of a text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Truth {
    /// Features, standardised on the base's training samples.
    pub scaler: Scaler,
    /// Weights by rater.
    pub raters: BTreeMap<String, Vec<f64>>,
    /// Bradley-Terry scale of the votes.
    pub scale: f64,
    /// System instruction in front of every prompt.
    pub system: Option<String>,
    /// All prompts.
    pub prompts: Prompts,
}

impl Truth {
    /// What `rater` truly thinks of a text.
    pub fn of(&self, rater: &str, text: &str) -> Option<f64> {
        Some(truth(self.raters.get(rater)?, &self.scaler.scores(text)))
    }
}

/// What every user thinks of the answers to each prompt: `[user][prompt][answer]`.
pub type Rates = Vec<Vec<Vec<f64>>>;

impl Truth {
    /// What each of `users`, raters, truly thinks of answers `[prompt][answer]`.
    pub fn rates(&self, users: &[String], answers: &[Vec<Answer>]) -> Rates {
        let think = |user: &String, a: &Answer| self.of(user, &a.text).unwrap_or_default();
        let of_user = |u: &String| answers.iter().map(|list| list.iter().map(|a| think(u, a)).collect()).collect();
        users.iter().map(of_user).collect()
    }
}

/// What the simulation measured about itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SimulationReport {
    /// Answers sampled, and those that ended by themselves.
    pub samples: usize,
    /// Share that ended by itself.
    pub finished: f64,
    /// Share of training samples that have each feature.
    pub present: BTreeMap<String, f64>,
    /// Votes written, ties included.
    pub votes: usize,
    /// Ties among them.
    pub ties: usize,
    /// Share of decided votes that agree with the rater's truth, by rater.
    pub agreement: BTreeMap<String, f64>,
    /// Share of held-out prompts in which the best sample by truth beats another sample, by rater.
    pub best_of_n: BTreeMap<String, f64>,
}

/// Writes `votes.parquet` (a source file), `samples.parquet` and `truth.json` into the run's folder.
pub fn simulate(config: &SimulateConfig, lm: &Lm, tokenizer: &Tokenizer, run: &mut Run) -> Result<SimulationReport> {
    let SimulateConfig { prompts, system, sampling, features, raters, agreement, tie_width, votes_per_user, gate } =
        config;
    check_raters(raters, features.len())?;
    let prompts = Prompts::read(prompts)?;
    let system = system.as_deref();
    let copies = sampling.samples_per_prompt.get();
    let mut answers = |part: &str, list: &[String], copies: usize| {
        let conversations: Vec<_> = list.iter().map(|p| Prompts::conversation(system, p)).collect();
        sample(lm, tokenizer, None, &conversations, copies, sampling, part, run)
    };
    let train = answers("train", &prompts.train, copies)?;
    let dev = answers("dev", &prompts.dev, copies)?;
    let held_out = answers("held_out", &prompts.held_out, copies + 1)?; // the last is the opponent of the best

    let texts: Vec<&str> = train.iter().flatten().map(|a| a.text.as_str()).collect();
    let scaler = Scaler::fit(features, &texts);
    let mut report = SimulationReport {
        samples: train.iter().chain(&dev).chain(&held_out).map(Vec::len).sum(),
        finished: 0.0,
        present: BTreeMap::new(),
        votes: 0,
        ties: 0,
        agreement: BTreeMap::new(),
        best_of_n: BTreeMap::new(),
    };
    let finished = train.iter().chain(&dev).chain(&held_out).flatten().filter(|a| a.finished).count();
    report.finished = finished as f64 / report.samples as f64;
    for (feature, present) in features.iter().zip(&scaler.present) {
        report.present.insert(feature_name(*feature), *present);
        if !(PRESENT_LOW..=PRESENT_HIGH).contains(present) {
            return Err(wrong_config(
                format!(
                    "feature `{}` in {PRESENT_LOW} to {PRESENT_HIGH} of the base's samples",
                    feature_name(*feature)
                ),
                format!("{present:.2}"),
                "replace it in `features`",
            ));
        }
    }

    let parts = [
        ("train", &prompts.train, &train, votes_per_user.train),
        ("dev", &prompts.dev, &dev, votes_per_user.dev),
        ("test", &prompts.held_out, &held_out, votes_per_user.test),
    ];
    let mut differences = Vec::new(); // of all pairs of training samples, all raters, ties left out
    for weights in raters.values() {
        let think = |a: &Answer| truth(weights, &scaler.scores(&a.text));
        for answers in &train {
            let values: Vec<f64> = answers.iter().map(think).collect();
            for (i, a) in values.iter().enumerate() {
                differences.extend(values[..i].iter().map(|b| a - b).filter(|d| d.abs() >= *tie_width));
            }
        }
    }
    let scale = agreement_scale(&differences, *agreement).ok_or_else(|| {
        wrong_config(
            format!("votes that can agree with the truth in a share of {agreement}"),
            "answers that hardly differ".into(),
            "replace features, or sample longer answers",
        )
    })?;
    let truth_file =
        Truth { scaler, raters: raters.clone(), scale, system: system.map(str::to_owned), prompts: prompts.clone() };

    let mut table = VoteTable::default();
    for (rater, weights) in raters {
        let think = |a: &Answer| truth(weights, &truth_file.scaler.scores(&a.text));
        let won = held_out.iter().filter(|answers| {
            let (opponent, candidates) = answers.split_last().expect("at least two samples");
            candidates.iter().map(think).fold(f64::NEG_INFINITY, f64::max) > think(opponent)
        });
        let share = won.count() as f64 / held_out.len() as f64;
        report.best_of_n.insert(rater.clone(), share);
        if share < *gate {
            return Err(wrong_config(
                format!(
                    "the best of {copies} by the truth of `{rater}` to beat another sample in {gate} of held-out prompts"
                ),
                format!("{share:.2}"),
                "the task is too hard for its features: replace some",
            ));
        }
        let (mut agree, mut decided) = (0usize, 0usize);
        for (part, prompts, answers, count) in &parts {
            let mut rng = run.rng(&["votes", rater, part]);
            let mut order: Vec<usize> = Vec::new();
            for _ in 0..*count {
                if order.is_empty() {
                    order = (0..prompts.len()).collect();
                    order.shuffle(&mut rng);
                }
                let p = order.pop().expect("filled above");
                let first = rng.random_range(0..copies);
                let second = (first + rng.random_range(1..copies)) % copies;
                let (a, b) = (&answers[p][first], &answers[p][second]);
                let difference = think(a) - think(b);
                let choice = vote(difference, scale, *tie_width, &mut rng);
                if choice != Choice::Tie {
                    decided += 1;
                    agree += usize::from((choice == Choice::First) == (difference > 0.0));
                }
                table.push(rater, system, &prompts[p], [&a.text, &b.text], choice, part);
            }
        }
        report.agreement.insert(rater.clone(), agree as f64 / decided.max(1) as f64);
    }
    report.votes = table.rater.len();
    report.ties = table.choice.iter().filter(|c| *c == "equal").count();
    table.write(&run.path("votes.parquet"))?;
    write_samples(&run.path("samples.parquet"), &parts.map(|(part, prompts, answers, _)| (part, prompts, answers)))?;
    run::write_json(&run.path("truth.json"), &truth_file)?;
    Ok(report)
}

fn wrong_config(expected: String, found: String, hint: &str) -> Problem {
    invalid("simulate", expected, found, hint)
}

fn feature_name(feature: Feature) -> String {
    serde_json::to_value(feature).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn check_raters(raters: &BTreeMap<String, Vec<f64>>, features: usize) -> Result<()> {
    let all: Vec<(&String, &Vec<f64>)> = raters.iter().collect();
    for (i, (name, weights)) in all.iter().enumerate() {
        if weights.len() != features || weights.iter().any(|w| w.abs() != 1.0) {
            let hint = "write 1 or -1 for every feature";
            return Err(wrong_config(
                format!("{features} weights of 1 or -1 for `{name}`"),
                format!("{weights:?}"),
                hint,
            ));
        }
        for (other, theirs) in &all[..i] {
            let product: f64 = weights.iter().zip(*theirs).map(|(a, b)| a * b).sum();
            if product != 0.0 {
                let expected = format!("orthogonal weights of `{other}` and `{name}`");
                return Err(wrong_config(
                    expected,
                    format!("a product of {product}"),
                    "take rows of a Hadamard matrix",
                ));
            }
        }
    }
    if all.is_empty() { Err(wrong_config("at least one rater".into(), "none".into(), "name one")) } else { Ok(()) }
}

/// Columns of the source file, under names of their own: ingestion has to map them.
#[derive(Default)]
struct VoteTable {
    rater: Vec<String>,
    instruction: Vec<String>,
    question: Vec<String>,
    first: Vec<String>,
    second: Vec<String>,
    choice: Vec<String>,
    part: Vec<String>,
}

impl VoteTable {
    fn push(
        &mut self,
        rater: &str,
        system: Option<&str>,
        question: &str,
        answers: [&str; 2],
        choice: Choice,
        part: &str,
    ) {
        let word = match choice {
            Choice::First => "first",
            Choice::Second => "second",
            Choice::Tie => "equal",
        };
        self.rater.push(rater.into());
        self.instruction.push(system.unwrap_or_default().into());
        self.question.push(question.into());
        self.first.push(answers[0].into());
        self.second.push(answers[1].into());
        self.choice.push(word.into());
        self.part.push(part.into());
    }

    fn write(self, path: &Path) -> Result<()> {
        let Self { rater, instruction, question, first, second, choice, part } = self;
        let columns = [
            ("rater", rater),
            ("instruction", instruction),
            ("question", question),
            ("first", first),
            ("second", second),
            ("choice", choice),
            ("part", part),
        ];
        write_table(path, &columns.map(|(name, values)| (name, Column::Text(values))))
    }
}

/// Name, prompts and answers of a part.
type Part<'a> = (&'a str, &'a Vec<String>, &'a Vec<Vec<Answer>>);

fn write_samples(path: &Path, parts: &[Part]) -> Result<()> {
    let (mut part, mut prompt, mut answer, mut finished) = (vec![], vec![], vec![], vec![]);
    for (name, prompts, answers) in parts {
        for (p, list) in prompts.iter().zip(*answers) {
            for a in list {
                part.push((*name).to_owned());
                prompt.push(p.clone());
                answer.push(a.text.clone());
                finished.push(a.finished);
            }
        }
    }
    write_table(
        path,
        &[
            ("part", Column::Text(part)),
            ("prompt", Column::Text(prompt)),
            ("answer", Column::Text(answer)),
            ("finished", Column::Boolean(finished)),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raters_must_be_signs_and_orthogonal() {
        let raters =
            |a: &[f64], b: &[f64]| BTreeMap::from([("a".to_owned(), a.to_vec()), ("b".to_owned(), b.to_vec())]);
        check_raters(&raters(&[1.0, 1.0], &[1.0, -1.0]), 2).unwrap();
        let error = check_raters(&raters(&[1.0, 1.0], &[1.0, 1.0]), 2).unwrap_err().to_string();
        assert!(error.contains("orthogonal weights of `a` and `b`"), "{error}");
        assert!(check_raters(&raters(&[1.0, 0.5], &[1.0, -1.0]), 2).is_err());
        assert!(check_raters(&raters(&[1.0, 1.0], &[1.0, -1.0]), 3).is_err());
        assert!(check_raters(&BTreeMap::new(), 2).is_err());
    }

    #[test]
    fn a_prompt_in_two_lists_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), "train = ['a', 'b']\ndev = ['c']\nheld_out = ['B']").unwrap();
        assert!(Prompts::read(file.path()).unwrap_err().to_string().contains("`B` twice"));
    }
}
