//! Raters with a known truth, voting on the base's own answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data::{Column, write_table};
use lm::Lm;
use problem::{Problem, Result, invalid};
use rand::Rng;
use rand::seq::SliceRandom;
use run::Run;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use text::{Answer, Message, Tokenizer};

use crate::limits::{at_least, not_negative, share};
use crate::rater::{Choice, agreement_scale, truth, vote};
use crate::style::{Feature, Scaler};
use crate::truth::{Prompts, Truth};
use crate::{SamplingConfig, refuse_long, sample};

/// Votes of each user on the prompts of each part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VotesPerUser {
    /// On training prompts.
    pub train: usize,
    /// On development prompts.
    pub dev: usize,
    /// On held-out prompts.
    pub test: usize,
}

/// The settings of a simulation: `idiolect config simulate` shows them with their defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
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

impl SimulateConfig {
    /// Refuses settings that mean nothing.
    ///
    /// # Errors
    /// Such as no features or annotators, fewer than two responses to compare, or a share that is none.
    pub fn check(&self) -> Result<()> {
        let Self { prompts: _, system: _, sampling, features, raters, agreement, tie_width, votes_per_user, gate } =
            self;
        sampling.check(STAGE)?;
        // A vote compares two of a prompt's responses.
        at_least(STAGE, "sampling.samples_per_prompt", 2, sampling.samples_per_prompt.get())?;
        at_least(STAGE, "features", 1, features.len())?;
        if let Some(twice) = (1..features.len()).find(|i| features[..*i].contains(&features[*i])) {
            let expected = "every feature of `features` once".into();
            return Err(wrong_config(expected, format!("`{}` twice", feature_name(features[twice])), "leave one out"));
        }
        at_least(STAGE, "raters", 1, raters.len())?;
        if !(*agreement > 0.5 && *agreement < 1.0) {
            let expected = "a share `agreement` above one half and below 1".into();
            return Err(wrong_config(expected, agreement.to_string(), "one half is chance, and 1 needs no scale"));
        }
        not_negative(STAGE, "tie_width", *tie_width)?;
        at_least(STAGE, "votes_per_user.train", 1, votes_per_user.train)?;
        share(STAGE, "gate", *gate)?;
        check_raters(raters, features.len())
    }
}

const STAGE: &str = "simulate";

/// Each feature must be in at least this share of training samples ...
const PRESENT_LOW: f64 = 0.2;
/// ... and in at most this one: else nobody can be told apart by it.
const PRESENT_HIGH: f64 = 0.8;

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

/// Responses of the base to the prompts of a part, and the votes of each annotator on them.
struct Part<'a> {
    name: &'a str,
    prompts: &'a [String],
    answers: Vec<Vec<Answer>>,
    votes: usize,
}

/// Writes `votes.parquet` (a source file), `samples.parquet` and `truth.json` into the run's folder.
///
/// # Errors
/// Settings that mean nothing; features that say too little or annotators who cannot be pleased on this base.
pub fn simulate(config: &SimulateConfig, lm: &Lm, tokenizer: &Tokenizer, run: &mut Run) -> Result<SimulationReport> {
    config.check()?;
    let SimulateConfig { prompts, system, sampling, features, raters, agreement, tie_width, votes_per_user, gate } =
        config;
    let prompts = Prompts::read(prompts)?;
    let copies = sampling.samples_per_prompt.get();
    for list in [&prompts.train, &prompts.dev, &prompts.held_out] {
        refuse_long(lm, tokenizer, &list_of(list, system.as_deref()), sampling)?;
    }
    let mut part = |name: &'static str, of: &'static str, list, copies, votes| -> Result<Part> {
        let conversations: Vec<_> = list_of(list, system.as_deref());
        let answers = sample(lm, tokenizer, None, &conversations, copies, sampling, of, run)?;
        Ok(Part { name, prompts: list, answers, votes })
    };
    let parts = [
        part("train", "train", &prompts.train, copies, votes_per_user.train)?,
        part("dev", "dev", &prompts.dev, copies, votes_per_user.dev)?,
        // The last is the opponent of the best.
        part("test", "held_out", &prompts.held_out, copies + 1, votes_per_user.test)?,
    ];

    let texts: Vec<&str> = parts[0].answers.iter().flatten().map(|a| a.text.as_str()).collect();
    let scaler = Scaler::fit(features, &texts);
    let samples = || parts.iter().flat_map(|part| part.answers.iter().flatten());
    let mut report = SimulationReport {
        samples: samples().count(),
        finished: samples().filter(|a| a.finished).count() as f64 / samples().count() as f64,
        present: presence(&scaler)?,
        votes: 0,
        ties: 0,
        agreement: BTreeMap::new(),
        best_of_n: BTreeMap::new(),
    };
    let scale = scale_of(&parts[0].answers, raters, &scaler, *agreement, *tie_width)?;
    let truth = Truth { scaler, raters: raters.clone(), scale, system: system.clone(), prompts: prompts.clone() };

    let mut table = VoteTable::default();
    for rater in raters.keys() {
        let best = best_of_n(rater, &truth, &parts[2].answers, *gate)?;
        report.best_of_n.insert(rater.clone(), best);
        let agreement = let_vote(rater, &truth, &parts, (copies, *tie_width), run, &mut table);
        report.agreement.insert(rater.clone(), agreement);
    }
    report.votes = table.rater.len();
    report.ties = table.choice.iter().filter(|c| *c == "equal").count();
    table.write(&run.path("votes.parquet"))?;
    write_samples(&run.path("samples.parquet"), &parts)?;
    run::write_json(&run.path("truth.json"), &truth)?;
    Ok(report)
}

fn list_of(prompts: &[String], system: Option<&str>) -> Vec<Vec<Message>> {
    prompts.iter().map(|p| Prompts::conversation(system, p)).collect()
}

/// The share of training responses that have each feature; one that nearly all or hardly any have is refused.
fn presence(scaler: &Scaler) -> Result<BTreeMap<String, f64>> {
    let mut out = BTreeMap::new();
    for (feature, present) in scaler.features.iter().zip(&scaler.present) {
        let name = feature_name(*feature);
        if !(PRESENT_LOW..=PRESENT_HIGH).contains(present) {
            return Err(wrong_config(
                format!("feature `{name}` in {PRESENT_LOW} to {PRESENT_HIGH} of the base's samples"),
                format!("{present:.2}"),
                "replace it in `features`",
            ));
        }
        out.insert(name, *present);
    }
    Ok(out)
}

/// The Bradley-Terry scale at which votes agree with the truth in the share `agreement`.
fn scale_of(
    train: &[Vec<Answer>],
    raters: &BTreeMap<String, Vec<f64>>,
    scaler: &Scaler,
    agreement: f64,
    tie_width: f64,
) -> Result<f64> {
    let mut differences = Vec::new(); // of all pairs of training samples, all raters, ties left out
    for weights in raters.values() {
        let think = |a: &Answer| truth(weights, &scaler.scores(&a.text));
        for answers in train {
            let values: Vec<f64> = answers.iter().map(think).collect();
            for (i, a) in values.iter().enumerate() {
                differences.extend(values[..i].iter().map(|b| a - b).filter(|d| d.abs() >= tie_width));
            }
        }
    }
    agreement_scale(&differences, agreement).ok_or_else(|| {
        wrong_config(
            format!("votes that can agree with the truth in a share of {agreement}"),
            "answers that hardly differ".into(),
            "replace features, or sample longer answers",
        )
    })
}

/// The share of held-out prompts in which the best sample by an annotator's truth beats the last one; below `gate` it is refused.
fn best_of_n(rater: &str, truth: &Truth, held_out: &[Vec<Answer>], gate: f64) -> Result<f64> {
    let think = |a: &Answer| truth.of(rater, &a.text).expect("an annotator of this simulation");
    let won = held_out.iter().filter(|answers| {
        let (opponent, candidates) = answers.split_last().expect("at least two samples");
        candidates.iter().map(think).fold(f64::NEG_INFINITY, f64::max) > think(opponent)
    });
    let share = won.count() as f64 / held_out.len() as f64;
    if share < gate {
        let copies = held_out[0].len() - 1;
        return Err(wrong_config(
            format!(
                "the best of {copies} by the truth of `{rater}` to beat another sample in {gate} of held-out prompts"
            ),
            format!("{share:.2}"),
            "the task is too hard for its features: replace some",
        ));
    }
    Ok(share)
}

/// Adds one annotator's votes on all parts; gives the share of decided ones that agree with their truth.
fn let_vote(
    rater: &str,
    truth: &Truth,
    parts: &[Part],
    (copies, tie_width): (usize, f64),
    run: &Run,
    table: &mut VoteTable,
) -> f64 {
    let think = |a: &Answer| truth.of(rater, &a.text).expect("an annotator of this simulation");
    let (mut agree, mut decided) = (0usize, 0usize);
    for Part { name, prompts, answers, votes } in parts {
        let mut rng = run.rng(&["votes", rater, name]);
        let mut order: Vec<usize> = Vec::new();
        for _ in 0..*votes {
            if order.is_empty() {
                order = (0..prompts.len()).collect();
                order.shuffle(&mut rng);
            }
            let p = order.pop().expect("filled above");
            let first = rng.random_range(0..copies);
            let second = (first + rng.random_range(1..copies)) % copies;
            let (a, b) = (&answers[p][first], &answers[p][second]);
            let difference = think(a) - think(b);
            let choice = vote(difference, truth.scale, tie_width, &mut rng);
            if choice != Choice::Tie {
                decided += 1;
                agree += usize::from((choice == Choice::First) == (difference > 0.0));
            }
            table.push(rater, truth.system.as_deref(), &prompts[p], [a, b], choice, name);
        }
    }
    agree as f64 / decided.max(1) as f64
}

fn wrong_config(expected: String, found: String, hint: &str) -> Problem {
    invalid(STAGE, expected, found, hint)
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
    Ok(())
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
    /// Did the first and the second answer end by themselves?
    finished: [Vec<bool>; 2],
}

impl VoteTable {
    fn push(
        &mut self,
        rater: &str,
        system: Option<&str>,
        question: &str,
        answers: [&Answer; 2],
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
        self.first.push(answers[0].text.clone());
        self.second.push(answers[1].text.clone());
        self.choice.push(word.into());
        self.part.push(part.into());
        self.finished.iter_mut().zip(answers).for_each(|(column, answer)| column.push(answer.finished));
    }

    fn write(self, path: &Path) -> Result<()> {
        let Self { rater, instruction, question, first, second, choice, part, finished } = self;
        let columns = [
            ("rater", rater),
            ("instruction", instruction),
            ("question", question),
            ("first", first),
            ("second", second),
            ("choice", choice),
            ("part", part),
        ];
        let [first_finished, second_finished] = finished.map(Column::Boolean);
        let mut columns = columns.map(|(name, values)| (name, Column::Text(values))).to_vec();
        columns.extend([("first_finished", first_finished), ("second_finished", second_finished)]);
        write_table(path, &columns)
    }
}

fn write_samples(path: &Path, parts: &[Part]) -> Result<()> {
    let (mut part, mut prompt, mut answer, mut finished) = (vec![], vec![], vec![], vec![]);
    for of in parts {
        for (p, list) in of.prompts.iter().zip(&of.answers) {
            for a in list {
                part.push(of.name.to_owned());
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
    }

    #[test]
    fn numbers_that_mean_nothing_are_refused_by_their_key() {
        type Change = fn(&mut SimulateConfig);
        let text = "prompts = 'p.toml'\nfeatures = ['and', 'the']\nagreement = 0.8\ntie_width = 0.05\ngate = 0.8\n[sampling]\n\
                    samples_per_prompt = 4\nmax_new_tokens = 8\ntemperature = 1.0\nbatch_rows = 8\n[votes_per_user]\ntrain = 9\n\
                    dev = 0\ntest = 0\n[raters]\nann = [1, 1]\nbob = [1, -1]\n";
        let config = || toml::from_str::<SimulateConfig>(text).unwrap();
        config().check().unwrap();
        let cases: [(&str, Change); 14] = [
            ("`sampling.temperature`", |c| c.sampling.temperature = 0.0),
            ("`sampling.temperature`", |c| c.sampling.temperature = f64::NAN),
            ("`sampling.samples_per_prompt`", |c| c.sampling.samples_per_prompt = 1.try_into().unwrap()),
            ("`sampling.samples_per_prompt`", |c| {
                c.sampling.max_new_tokens = (usize::MAX / 2).try_into().unwrap();
            }),
            ("`features`", |c| c.features.clear()),
            ("`features`", |c| c.features[1] = c.features[0]),
            ("`raters`", |c| c.raters.clear()),
            ("`ann`", |c| c.raters.values_mut().for_each(Vec::clear)),
            ("`agreement`", |c| c.agreement = 0.5),
            ("`agreement`", |c| c.agreement = 1.0),
            ("`tie_width`", |c| c.tie_width = -0.1),
            ("`votes_per_user.train`", |c| c.votes_per_user.train = 0),
            ("`gate`", |c| c.gate = 1.5),
            ("`gate`", |c| c.gate = f64::NAN),
        ];
        for (key, change) in cases {
            let mut config = config();
            change(&mut config);
            let error = config.check().unwrap_err().to_string();
            assert!(error.starts_with("simulate") && error.contains(key), "{key}: {error}");
        }
        assert_eq!(SimulateConfig { ..config() }.sampling.budget(usize::MAX), usize::MAX, "no overflow");
    }
}
