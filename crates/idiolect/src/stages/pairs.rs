//! The stage `pairs`: every user's preference pairs, from votes, from samples that the user's reward model ranks, or both.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;

use data::{Split, Vote};
use device::Compute;
use lm::{Lm, TokenRow, UserIndex};
use policy::{Pair, PairCounts, Weighting};
use problem::{Result, invalid, mistake};
use reward::{Errors, RewardModel};
use run::{Progress, Run};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use study::SamplingConfig;
use text::{Answer, Message, Tokenizer};

use super::budget::{Budget, Sizes};
use super::stage::{as_table, stopped_before};
use super::{Artifact, Inputs, Stage};
use crate::served::{decided_votes, people_of};

/// Where a user's pairs come from.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub(crate) enum PairsConfig {
    /// The user's decided training votes.
    Votes(NoMore),
    /// Fresh samples of the base, ranked by the user's reward model.
    Reward(RankedPairs),
    /// Both.
    Both(RankedPairs),
}

/// Nothing to set.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoMore {}

/// How samples become pairs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RankedPairs {
    /// Pairs of each prompt and user, at most.
    pub(crate) pairs_per_prompt: usize,
    /// Tokens of prompt and response; a longer row is an error.
    pub(crate) max_row_tokens: usize,
    /// How much a pair counts.
    #[serde(default)]
    pub(crate) weighting: Weighting,
    /// Pessimism: so many standard errors are taken off every reward.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) caution: f64,
    /// How the base's responses are sampled.
    pub(crate) sampling: SamplingConfig,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

impl PairsConfig {
    /// How samples become pairs, if they do.
    fn ranked(&self) -> Option<&RankedPairs> {
        match self {
            Self::Votes(_) => None,
            Self::Reward(ranked) | Self::Both(ranked) => Some(ranked),
        }
    }
}

/// `report.json`
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Made {
    /// Every user for whom pairs were to be made, also those who have none.
    pub(crate) users: Vec<String>,
    #[serde(flatten)]
    counts: PairCounts,
    /// Pairs from votes among them.
    votes: usize,
    /// Of the ball around each user's factors, where pessimism asked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    radius: Option<f64>,
    /// Standard errors taken off every reward.
    #[serde(default, skip_serializing_if = "is_zero")]
    caution: f64,
    /// Users whose training an earlier stage stopped, and why: there is no reward to rank samples by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) quarantined_before: BTreeMap<String, String>,
    /// Users without any pair.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    without_pairs: Vec<String>,
}

impl Stage for PairsConfig {
    const KIND: &'static str = "pairs";
    const FORMAT: u32 = 8;
    const LAST_BITS: &'static [&'static str] = &["sampling.batch_rows"];
    type Report = Made;

    /// Pairs of votes have nothing to set.
    fn defaults(given: &toml::Table) -> toml::Table {
        if given.get("from").and_then(toml::Value::as_str) == Some("votes") {
            return toml::Table::new();
        }
        let sampling = SamplingConfig { samples_per_prompt: NonZero::new(16).expect("16"), ..SamplingConfig::default() };
        let weighting = Weighting::default();
        let mut table = as_table(&Self::Reward(RankedPairs { pairs_per_prompt: 3, max_row_tokens: 1024, weighting, caution: 0.0, sampling }));
        table.extend(given.get("from").map(|word| ("from".to_owned(), word.clone())));
        table
    }

    fn reads(&self) -> Vec<Artifact> {
        match self {
            Self::Votes(_) => vec![Artifact::Votes],
            Self::Reward(_) | Self::Both(_) => vec![Artifact::Base, Artifact::Votes, Artifact::RewardModel],
        }
    }

    fn provides(&self) -> Vec<Artifact> {
        vec![Artifact::Pairs]
    }

    fn check(&self) -> Result<()> {
        let Some(RankedPairs { caution, .. }) = self.ranked() else { return Ok(()) };
        if !(*caution >= 0.0 && caution.is_finite()) {
            let expected = "a finite number of at least 0";
            return Err(invalid("pairs, `caution`", expected, caution.to_string(), "0 takes nothing off the rewards"));
        }
        Ok(())
    }

    fn computes(&self) -> bool {
        self.ranked().is_some()
    }

    fn budget(&self, sizes: &Sizes) -> Budget {
        let prompts = match &sizes.prompts {
            Some(prompts) => prompts.train.len(),
            None => sizes.training_prompts,
        };
        Budget::sampling(self.ranked().map_or(0, |how| how.sampling.budget(prompts)))
    }

    fn execute(&self, inputs: &Inputs, compute: &Compute, run: &mut Run) -> Result<Made> {
        let votes = inputs.votes()?;
        let mut made = Made {
            users: data::user_ids(&votes),
            counts: PairCounts::default(),
            votes: 0,
            radius: None,
            caution: self.ranked().map_or(0.0, |how| how.caution),
            quarantined_before: BTreeMap::new(),
            without_pairs: vec![],
        };
        let mut pairs = match self.ranked() {
            Some(how) => ranked_samples(how, &votes, inputs, compute, &mut made, run)?,
            None => vec![],
        };
        if !matches!(self, Self::Reward(_)) {
            let of_votes = policy::vote_pairs(&votes);
            made.votes = of_votes.len();
            made.counts.pairs += of_votes.len();
            pairs.extend(of_votes);
        }
        let with_pairs: BTreeSet<&str> = pairs.iter().map(|p| p.user.as_str()).collect();
        made.without_pairs = made.users.iter().filter(|u| !with_pairs.contains(u.as_str())).cloned().collect();
        policy::write_pairs(&run.path("pairs.parquet"), &pairs)?;
        run::write_json(&run.path("report.json"), &made)?;
        Ok(made)
    }

    fn text(report: &Made) -> String {
        let Made { users: _, counts, votes, radius, caution, quarantined_before: _, without_pairs } = report;
        let mut text = format!(
            "{} pairs, {votes} of them votes; left out: {} empty samples, {} pairs of equals",
            counts.pairs, counts.empty, counts.equal
        );
        if *caution != 0.0 {
            text += &format!("; ranked by rewards less {caution} standard errors");
        }
        if let Some(radius) = radius {
            text += &format!(", the half-width of a ball of radius {radius:.3e} around each user's factors");
        }
        if !without_pairs.is_empty() {
            text += &format!("; users without any: {}", without_pairs.join(", "));
        }
        text
    }
}

/// Distinct prompts of the training votes, in an order of their own.
pub(crate) fn training_prompts(votes: &[Vote]) -> Vec<Vec<Message>> {
    let mut prompts: Vec<Vec<Message>> =
        votes.iter().filter(|v| v.split == Split::Train).map(|v| v.prompt.clone()).collect();
    prompts.sort_by_key(|p| serde_json::to_string(p).expect("plain data"));
    prompts.dedup();
    prompts
}

/// Pairs of the base's samples on the training prompts, ranked for every user of the reward model.
fn ranked_samples(
    how: &RankedPairs,
    votes: &[Vote],
    inputs: &Inputs,
    compute: &Compute,
    made: &mut Made,
    run: &mut Run,
) -> Result<Vec<Pair>> {
    let (lm, tokenizer) = inputs.base(compute)?;
    let model = inputs.reward_model(&lm)?;
    let prompts = training_prompts(votes);
    let copies = how.sampling.samples_per_prompt.get();
    let samples = study::sample(&lm, &tokenizer, None, &prompts, copies, &how.sampling, "samples to rank", run)?;
    let folder = inputs.folder(Artifact::RewardModel)?;
    let people = people_of(folder)?;
    // How sure preference weights are of two rewards is known without pessimism too.
    let wanted = how.caution != 0.0 || (people.is_some() && how.weighting == Weighting::Certainty);
    let errors = Errors::of(wanted, &model, people.as_ref(), decided_votes(folder, &model)?)?;
    if let Errors::Ball(zeta) = errors {
        made.radius = Some(zeta.sqrt());
    }
    made.users.clone_from(&model.users);
    made.quarantined_before = stopped_before(folder)?;
    rank(&model, &lm, &tokenizer, &prompts, &samples, how, &errors, &mut made.counts)
}

/// Which row is an answer's, prompt by prompt; none for an empty answer.
pub(crate) type RowOf = Vec<Vec<Option<usize>>>;

/// Rows of the answers to each prompt, as reward models read votes: with the token that ends the turn if the answer ended by itself.
pub(crate) fn answer_rows(
    tokenizer: &Tokenizer,
    prompts: &[Vec<Message>],
    answers: &[Vec<Answer>],
) -> Result<(Vec<TokenRow>, RowOf)> {
    let (mut rows, mut row_of) = (Vec::new(), RowOf::new());
    for (prompt, answers) in prompts.iter().zip(answers) {
        let mut own = Vec::new();
        for answer in answers {
            if answer.text.trim().is_empty() {
                own.push(None);
                continue;
            }
            own.push(Some(rows.len()));
            rows.push(tokenizer.row(prompt, &answer.text, answer.ending())?.into());
        }
        row_of.push(own);
    }
    Ok((rows, row_of))
}

/// Every user's pairs from the same samples.
fn rank(
    model: &RewardModel,
    lm: &Lm,
    tokenizer: &Tokenizer,
    prompts: &[Vec<Message>],
    samples: &[Vec<Answer>],
    how: &RankedPairs,
    errors: &Errors,
    counts: &mut PairCounts,
) -> Result<Vec<Pair>> {
    let (rows, row_of) = answer_rows(tokenizer, prompts, samples)?;
    for (prompt, own) in prompts.iter().zip(&row_of) {
        let longest = own.iter().flatten().map(|row| rows[*row].ids.len()).max().unwrap_or(0);
        if longest > how.max_row_tokens {
            let prompt = prompt.last().map_or("", |m| &m.content);
            let message =
                format!("pairs, prompt `{prompt}`: expected at most {} tokens, found {longest}", how.max_row_tokens);
            return Err(mistake(message, "raise `max_row_tokens`"));
        }
    }
    let all: Vec<usize> = (0..rows.len()).collect();
    let mut bar = Progress::new("pairs: frozen blocks", rows.len(), 0);
    let prefix = model.prefix(lm, rows, |n| bar.advance(n, ""))?;
    drop(bar);
    let mut bar = Progress::new("pairs: rewards", model.users.len(), 0);
    let mut pairs = Vec::new();
    for (u, user) in model.users.iter().enumerate() {
        // Each row's reward, or its lower bound, and its standard error.
        let rated = errors.rated(lm, model, &prefix, &all, UserIndex(u))?;
        let rated: Vec<(f32, f32)> = rated.into_iter().map(|(r, e)| (r - how.caution as f32 * e, e)).collect();
        for ((prompt, answers), indices) in prompts.iter().zip(samples).zip(&row_of) {
            let (rewards, errors): (Vec<f32>, Vec<f32>) =
                indices.iter().map(|i| i.map_or((f32::NAN, 0.0), |i| rated[i])).unzip();
            let most = (how.pairs_per_prompt, how.weighting);
            pairs.extend(policy::rank_pairs(user, prompt, answers, &rewards, &errors, most, counts));
        }
        bar.advance(1, user);
    }
    Ok(pairs)
}
