//! Did each user's model move towards that user? Asked of the known truth, on prompts that no stage has seen.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use data::{Column, write_table};
use lm::{Bank, Lm, Place, Prefix, TokenRow, UserIndex, answer_logp, forward};
use problem::{Result, invalid};
use run::{Progress, Run};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stats::{Contest, clustered, clustered_mean, distinct_n, half_for_equal, length_controlled, win_rate};
use tch::no_grad;
use text::{Answer, Message, Tokenizer};

use crate::limits::at_least;
use crate::results::{Drift, ModelReport, Report, UserReport};
use crate::truth::{Prompts, Rates, Truth};
use crate::{SamplingConfig, curve, refuse_long, sample};

/// The settings of an evaluation: `idiolect config evaluate` shows them with their defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvaluateConfig {
    /// `dev` while mending, `held_out` to report.
    pub split: EvaluationSplit,
    /// How every model answers.
    pub sampling: SamplingConfig,
    /// Of a model's answers to each prompt, so many are scored for its KL divergence.
    pub kl_samples_per_prompt: usize,
    /// A TOML file with a list `prompts` that have nothing to do with anybody's taste: how far every model drifts on them is reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neutral: Option<PathBuf>,
}

impl EvaluateConfig {
    /// Refuses settings that mean nothing.
    ///
    /// # Errors
    /// Such as no sample to score, or a temperature of 0.
    pub fn check(&self) -> Result<()> {
        let Self { split: _, sampling, kl_samples_per_prompt, neutral: _ } = self;
        sampling.check("evaluate")?;
        at_least("evaluate", "kl_samples_per_prompt", 1, *kl_samples_per_prompt)
    }
}

impl Default for EvaluateConfig {
    fn default() -> Self {
        Self {
            split: EvaluationSplit::HeldOut,
            sampling: SamplingConfig::default(),
            kl_samples_per_prompt: 2,
            neutral: None,
        }
    }
}

/// Which prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EvaluationSplit {
    /// For mending.
    Dev,
    /// Looked at last.
    HeldOut,
}

/// Rates answers, `[prompt][answer]`, for every user: a truth, or a reward model.
pub type Judge<'a> = dyn FnMut(&[Vec<Message>], &[Vec<Answer>]) -> Result<Rates> + 'a;

/// What is asked.
#[derive(Debug)]
pub struct Asked<'a> {
    /// What the prompts are called.
    pub split: &'a str,
    /// Conversations up to where the model is to speak.
    pub prompts: &'a [Vec<Message>],
    /// Prompts on which no taste is asked for.
    pub neutral: Option<&'a [Vec<Message>]>,
    /// What the judge's numbers are called: `truth`, `reward`.
    pub judged: &'a str,
}

/// Policies, one a user.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    /// Their factors.
    pub bank: &'a Bank,
    /// Their users.
    pub users: &'a [String],
}

/// Judges policies by the known truth of simulated raters. Writes what [`evaluate_by`] writes; with the answers that training sampled
/// (`rollouts`), also [`curve()`].
pub fn evaluate(
    config: &EvaluateConfig,
    lm: &Lm,
    tokenizer: &Tokenizer,
    own: Own,
    truth: &Truth,
    rollouts: Option<&Path>,
    run: &mut Run,
) -> Result<Report> {
    let (split, list) = match config.split {
        EvaluationSplit::Dev => ("dev", &truth.prompts.dev),
        EvaluationSplit::HeldOut => ("held_out", &truth.prompts.held_out),
    };
    if let Some(user) = own.users.iter().find(|u| !truth.raters.contains_key(*u)) {
        return Err(invalid(
            "evaluate",
            "users whose truth is known",
            format!("`{user}`, who is not among the simulated raters"),
            "this stage is for simulated raters",
        ));
    }
    let system = truth.system.as_deref();
    let prompts: Vec<Vec<Message>> = list.iter().map(|p| Prompts::conversation(system, p)).collect();
    let neutral = config.neutral.as_deref().map(|file| prompt_list(file, system)).transpose()?;
    let asked = Asked { split, prompts: &prompts, neutral: neutral.as_deref(), judged: "truth" };
    let mut judge = |_: &[Vec<Message>], answers: &[Vec<Answer>]| Ok(truth.rates(own.users, answers));
    let (report, base) = evaluate_by(config, lm, tokenizer, own, &asked, None, &mut judge, run)?;
    if let Some(rollouts) = rollouts {
        // Of everybody, also of who was quarantined since.
        let raters: Vec<String> = truth.raters.keys().cloned().collect();
        let rates = truth.rates(&raters, &base);
        let scale: BTreeMap<String, Vec<f64>> = raters.into_iter().zip(rates.iter().map(|r| r.concat())).collect();
        curve(rollouts, truth, &scale, run)?;
    }
    Ok(report)
}

/// How far a user's model has moved from the base on prompts where no preference matters.
fn drift(
    config: &EvaluateConfig,
    lm: &Lm,
    tokenizer: &Tokenizer,
    (bank, place): (&Bank, Place),
    prompts: &[Vec<Message>],
    user: &str,
    run: &mut Run,
) -> Result<Drift> {
    let (label, copies) = (format!("{user} on neutral prompts"), config.kl_samples_per_prompt);
    let answers = sample(lm, tokenizer, Some((bank, place)), prompts, copies, &config.sampling, &label, run)?;
    let (kl, kl_per_token) = divergence(lm, tokenizer, bank, place, prompts, &answers, copies, &label)?;
    Ok(Drift { prompts: prompts.len(), kl, kl_per_token })
}

/// Samples the base and every user's model, lets `judge` rate all answers for all users, and compares. `against` is a model for everybody (at
/// place 0 of its bank) that every user's own is compared with beside the base. Writes `report.json`, `report.md`, `matrix.svg` and
/// `answers.parquet` into the run's folder; gives the report and the base's answers.
pub fn evaluate_by(
    config: &EvaluateConfig,
    lm: &Lm,
    tokenizer: &Tokenizer,
    Own { bank, users }: Own,
    asked: &Asked,
    against: Option<&Bank>,
    judge: &mut Judge,
    run: &mut Run,
) -> Result<(Report, Vec<Vec<Answer>>)> {
    config.check()?;
    let EvaluateConfig { split: _, sampling, kl_samples_per_prompt, neutral: _ } = config;
    let Asked { prompts, neutral, .. } = *asked;
    let copies = sampling.samples_per_prompt.get();
    refuse_long(lm, tokenizer, neutral.unwrap_or_default(), sampling)?;
    let base = sample(lm, tokenizer, None, prompts, copies, sampling, "base", run)?;
    let mut own = Vec::new();
    let place = |user: usize| UserIndex(user).in_whole_bank();
    for (u, user) in users.iter().enumerate() {
        let adapter = Some((bank, place(u)));
        own.push(sample(lm, tokenizer, adapter, prompts, copies, sampling, &format!("model of {user}"), run)?);
    }
    let for_all = match against {
        Some(bank) => {
            Some(sample(lm, tokenizer, Some((bank, Place(0))), prompts, copies, sampling, "model for all", run)?)
        }
        None => None,
    };
    let by_base = judge(prompts, &base)?;
    let by_own = own.iter().map(|answers| judge(prompts, answers)).collect::<Result<Vec<Rates>>>()?;
    let by_all = for_all.as_ref().map(|answers| judge(prompts, answers)).transpose()?;
    let base_tokens = answer_tokens(tokenizer, &base)?;

    // (wins, comparisons) of each prompt.
    let by_prompt = |ours: &[Vec<f64>], theirs: &[Vec<f64>]| -> Vec<(f64, usize)> {
        ours.iter().zip(theirs).map(|(ours, theirs)| win_rate(ours, theirs)).collect()
    };
    let mut report = Report {
        split: asked.split.into(),
        judged: asked.judged.into(),
        prompts: prompts.len(),
        samples_per_prompt: copies,
        users: BTreeMap::new(),
        base: model_report(tokenizer, &base)?,
        matrix: BTreeMap::new(),
        rows_own_best: 0,
    };
    for (u, user) in users.iter().enumerate() {
        let rate = |model: &Rates| {
            let (wins, all) =
                by_prompt(&model[u], &by_base[u]).into_iter().fold((0.0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
            wins / all as f64
        };
        let row: BTreeMap<String, f64> = users.iter().cloned().zip(by_own.iter().map(rate)).collect();
        let own_is_best = row.values().all(|v| *v <= row[user]);
        report.rows_own_best += usize::from(own_is_best);
        report.matrix.insert(user.clone(), row);
        let won = |theirs: &Rates, path: &[&str]| {
            clustered_mean(&by_prompt(&by_own[u][u], &theirs[u]), &mut run.rng(path))
                .expect("every prompt has comparisons")
        };
        let interval = won(&by_base, &["bootstrap", user]);
        let against = by_all.as_ref().map(|theirs| won(theirs, &["bootstrap", "for all", user]));
        let (kl, kl_per_token) =
            divergence(lm, tokenizer, bank, place(u), prompts, &own[u], *kl_samples_per_prompt, user)?;
        let own_tokens = answer_tokens(tokenizer, &own[u])?;
        let contests = contests((&by_own[u][u], &own_tokens), (&by_base[u], &base_tokens));
        let same_length = |drawn: &[usize]| {
            length_controlled(&drawn.iter().flat_map(|p| contests[*p].iter().copied()).collect::<Vec<_>>())
        };
        let controlled =
            clustered(contests.len(), LENGTH_RESAMPLES, &mut run.rng(&["bootstrap", "length", user]), same_length)
                .expect("every prompt has comparisons");
        let drift =
            neutral.map(|prompts| drift(config, lm, tokenizer, (bank, place(u)), prompts, user, run)).transpose()?;
        report.users.insert(
            user.clone(),
            UserReport {
                win_rate: interval.mean,
                win_rate_low: interval.low,
                win_rate_high: interval.high,
                length_controlled: controlled.mean,
                length_controlled_low: controlled.low,
                length_controlled_high: controlled.high,
                against,
                kl,
                kl_per_token,
                drift,
                own_is_best,
                answers: model_report(tokenizer, &own[u])?,
            },
        );
    }
    write_answers(run, asked, users, (&base, &by_base), own.iter().zip(&by_own))?;
    run::write_json(&run.path("report.json"), &report)?;
    run::write_atomic(&run.path("report.md"), report.markdown().as_bytes())?;
    run::write_atomic(&run.path("matrix.svg"), report.svg().as_bytes())?;
    Ok((report, base))
}

/// Draws for the interval of a length-controlled win rate: each is a regression.
const LENGTH_RESAMPLES: usize = 300;

/// The list `prompts` of a file, as conversations.
pub fn prompt_list(file: &Path, system: Option<&str>) -> Result<Vec<Vec<Message>>> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct List {
        prompts: Vec<String>,
    }
    let wrong = |found: String| {
        invalid(
            file.display().to_string(),
            "a list `prompts` of at least one prompt",
            found,
            "datasets/everyday/neutral.toml is an example",
        )
    };
    let text = fs_err::read_to_string(file)?;
    let List { prompts } = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    if prompts.is_empty() {
        return Err(wrong("none".into()));
    }
    Ok(prompts.iter().map(|p| Prompts::conversation(system, p)).collect())
}

fn answer_tokens(tokenizer: &Tokenizer, answers: &[Vec<Answer>]) -> Result<Vec<Vec<usize>>> {
    let length = |a: &Answer| Ok(tokenizer.encode(&a.text)?.len());
    answers.iter().map(|list| list.iter().map(length).collect()).collect()
}

/// What a user thinks of answers, and their lengths in tokens.
type Measured<'a> = (&'a [Vec<f64>], &'a [Vec<usize>]);

/// Every answer of a model against every one of the base, prompt by prompt.
fn contests(ours: Measured, theirs: Measured) -> Vec<Vec<Contest>> {
    let rated = |(rates, tokens): Measured, p: usize| -> Vec<(f64, f64)> {
        rates[p].iter().zip(&tokens[p]).map(|(rate, n)| (*rate, *n as f64)).collect()
    };
    let pair = |a: (f64, f64), b: (f64, f64)| (half_for_equal(a.0, b.0), a.1 - b.1);
    (0..ours.0.len())
        .map(|p| {
            let (ours, theirs) = (rated(ours, p), rated(theirs, p));
            ours.iter().flat_map(|a| theirs.iter().map(move |b| pair(*a, *b))).collect()
        })
        .collect()
}

fn model_report(tokenizer: &Tokenizer, answers: &[Vec<Answer>]) -> Result<ModelReport> {
    let all: Vec<&Answer> = answers.iter().flatten().collect();
    let texts: Vec<&str> = all.iter().map(|a| a.text.as_str()).collect();
    let mut tokens = 0;
    for text in &texts {
        tokens += tokenizer.encode(text)?.len();
    }
    let n = all.len() as f64;
    Ok(ModelReport {
        mean_tokens: tokens as f64 / n,
        unfinished: all.iter().filter(|a| !a.finished).count() as f64 / n,
        distinct_1: distinct_n(&texts, 1),
        distinct_2: distinct_n(&texts, 2),
    })
}

/// Mean of log p(answer) - log p_base(answer) over a model's own answers: nats an answer, nats a token.
fn divergence(
    lm: &Lm,
    tokenizer: &Tokenizer,
    bank: &Bank,
    place: Place,
    prompts: &[Vec<Message>],
    answers: &[Vec<Answer>],
    per_prompt: usize,
    name: &str,
) -> Result<(f64, f64)> {
    let mut rows: Vec<TokenRow> = Vec::new();
    for (prompt, list) in prompts.iter().zip(answers) {
        for answer in list.iter().take(per_prompt).filter(|a| !a.text.is_empty()) {
            rows.push(tokenizer.row(prompt, &answer.text, answer.ending())?.into());
        }
    }
    let tokens: usize = rows.iter().map(|r| r.ids.len() - r.answer_start).sum();
    let count = rows.len();
    let _phase = run::phase("log-probabilities");
    let mut bar = Progress::new(&format!("evaluate: frozen blocks of {name}"), count, 0);
    let prefix = Prefix::new(lm, rows, bank.first_block()..lm.depth(), |n| bar.advance(n, ""))?;
    drop(bar);
    let mut bar = Progress::new(&format!("evaluate: KL of {name}"), count, 0);
    let mut sum = 0.0;
    for groups in prefix.passes(&(0..count).collect::<Vec<_>>()) {
        let batch = prefix.batch(lm, &groups);
        let factors = bank.rows(&vec![place; groups.len()], batch.lengths());
        let logp = |adapter| no_grad(|| answer_logp(lm, &batch, &forward(lm, &batch, adapter)));
        sum += (logp(Some(&factors)) - logp(None)).sum(tch::Kind::Double).double_value(&[]);
        bar.advance(groups.iter().map(Vec::len).sum(), "");
    }
    Ok((sum / count.max(1) as f64, sum / tokens.max(1) as f64))
}

/// A model's answers with what every user thinks of them.
type Rated<'a> = (&'a Vec<Vec<Answer>>, &'a Rates);

fn write_answers<'a>(
    run: &Run,
    asked: &Asked,
    users: &[String],
    base: Rated<'a>,
    own: impl Iterator<Item = Rated<'a>>,
) -> Result<()> {
    let (mut model, mut prompt, mut text, mut finished) = (vec![], vec![], vec![], vec![]);
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); users.len()];
    let names = std::iter::once("(base)").chain(users.iter().map(String::as_str));
    for (name, (answers, rated)) in names.zip(std::iter::once(base).chain(own)) {
        for (p, list) in asked.prompts.iter().zip(answers) {
            for answer in list {
                model.push(name.to_owned());
                prompt.push(p.last().map_or_else(String::new, |m| m.content.clone()));
                text.push(answer.text.clone());
                finished.push(answer.finished);
            }
        }
        rates.iter_mut().zip(rated).for_each(|(all, own)| all.extend(own.iter().flatten()));
    }
    let names: Vec<String> = users.iter().map(|user| format!("{}/{user}", asked.judged)).collect();
    let mut columns = vec![
        ("model", Column::Text(model)),
        ("prompt", Column::Text(prompt)),
        ("answer", Column::Text(text)),
        ("finished", Column::Boolean(finished)),
    ];
    columns.extend(names.iter().map(String::as_str).zip(rates.into_iter().map(Column::Real)));
    write_table(&run.path("answers.parquet"), &columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_mean_nothing_are_refused_by_their_key() {
        let text = "split = 'dev'\nkl_samples_per_prompt = 2\n[sampling]\nsamples_per_prompt = 4\nmax_new_tokens = 8\n\
                    temperature = 1.0\nbatch_rows = 8\n";
        type Change = fn(&mut EvaluateConfig);
        let check = |change: Change| {
            let mut config: EvaluateConfig = toml::from_str(text).unwrap();
            change(&mut config);
            config.check()
        };
        check(|_| ()).unwrap();
        let cases: [(&str, Change); 3] = [
            ("`kl_samples_per_prompt`", |c| c.kl_samples_per_prompt = 0),
            ("`sampling.temperature`", |c| c.sampling.temperature = 0.0),
            ("`sampling.temperature`", |c| c.sampling.temperature = -1.0),
        ];
        for (key, change) in cases {
            let error = check(change).unwrap_err().to_string();
            assert!(error.contains(&format!("evaluate, {key}: expected")), "{error}");
        }
    }
}
