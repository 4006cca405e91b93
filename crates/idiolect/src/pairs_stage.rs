//! The stage `pairs`: every user's preference pairs, from votes, from samples that the user's reward model ranks, or both.

use data::{Split, Vote};
use device::Compute;
use lm::{Lm, TokenRow};
use policy::{Pair, PairCounts};
use problem::{Result, mistake};
use reward::{Errors, RewardModel};
use run::{Progress, Run};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use text::{Answer, Ending, Message, Tokenizer};

use crate::base;
use crate::served::{decided_votes, people_of};
use crate::stages::{Inputs, PairsConfig, RankedPairs};

/// `report.json`
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Made {
    /// Everybody for whom pairs were to be made, also who has none.
    pub(crate) users: Vec<String>,
    #[serde(flatten)]
    counts: PairCounts,
    /// Pairs from votes among them.
    votes: usize,
    /// Of the ball around each user's factors, where caution asked for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    radius: Option<f64>,
}

/// Distinct prompts of the training votes, in an order of their own.
pub(crate) fn training_prompts(votes: &[Vote]) -> Vec<Vec<Message>> {
    let mut prompts: Vec<Vec<Message>> =
        votes.iter().filter(|v| v.split == Split::Train).map(|v| v.prompt.clone()).collect();
    prompts.sort_by_key(|p| serde_json::to_string(p).expect("plain data"));
    prompts.dedup();
    prompts
}

pub(crate) fn execute(
    config: &PairsConfig,
    inputs: &Inputs,
    compute: &Compute,
    run: &mut Run,
) -> Result<(Value, String)> {
    let votes = data::read_votes(&inputs["data"].join("votes.parquet"))?;
    let mut made = Made { users: data::user_ids(&votes), counts: PairCounts::default(), votes: 0, radius: None };
    let mut pairs = Vec::new();
    if let Some(how) = config.ranked() {
        if !(how.caution >= 0.0 && how.caution.is_finite()) {
            let message = format!("pairs, `caution`: expected a finite number of at least 0, found {}", how.caution);
            return Err(mistake(message, "0 takes nothing off the rewards"));
        }
        let (lm, tokenizer) = base::load(&inputs["import"], compute)?;
        let model = RewardModel::read(&inputs["reward"].join("reward.safetensors"), &lm)?;
        let prompts = training_prompts(&votes);
        let copies = how.sampling.samples_per_prompt.get();
        let samples = study::sample(&lm, &tokenizer, None, &prompts, copies, &how.sampling, "samples to rank", run)?;
        let people = people_of(&inputs["reward"])?;
        // How sure a taste is of two rewards is known without caution too.
        let wanted = how.caution != 0.0 || (people.is_some() && how.weighting == policy::Weighting::Certainty);
        let errors = Errors::of(wanted, &model, people.as_ref(), decided_votes(&inputs["reward"], &model)?)?;
        if let Errors::Ball(zeta) = errors {
            made.radius = Some(zeta.sqrt());
        }
        made.users.clone_from(&model.users);
        pairs = rank(&model, &lm, &tokenizer, &prompts, &samples, how, &errors, &mut made.counts)?;
    }
    if !matches!(config, PairsConfig::Reward(_)) {
        let of_votes = policy::vote_pairs(&votes);
        made.votes = of_votes.len();
        made.counts.pairs += of_votes.len();
        pairs.extend(of_votes);
    }
    policy::write_pairs(&run.path("pairs.parquet"), &pairs)?;
    run::write_json(&run.path("report.json"), &made)?;
    let Made { users, counts, votes, radius } = &made;
    let mut text = format!(
        "{} pairs, {votes} of them votes; left out: {} empty samples, {} pairs of equals",
        counts.pairs, counts.empty, counts.equal
    );
    if let Some(caution) = config.ranked().map(|how| how.caution).filter(|c| *c != 0.0) {
        text += &format!("; ranked by rewards less {caution} standard errors");
    }
    if let Some(radius) = radius {
        text += &format!(", the half-width of a ball of radius {radius:.3e} around each user's factors");
    }
    let without: Vec<&str> =
        users.iter().filter(|u| !pairs.iter().any(|p| p.user == **u)).map(String::as_str).collect();
    if !without.is_empty() {
        text += &format!("; users without any: {}", without.join(", "));
    }
    Ok((json!(made), text))
}

/// Which row is an answer's, prompt by prompt; none for an empty answer.
pub(crate) type RowOf = Vec<Vec<Option<usize>>>;

/// Rows of the answers to each prompt, as reward models read votes: with the end-of-turn token.
pub(crate) fn answer_rows(
    tokenizer: &Tokenizer,
    prompts: &[Vec<Message>],
    answers: &[Vec<Answer>],
) -> problem::Result<(Vec<TokenRow>, RowOf)> {
    let (mut rows, mut row_of) = (Vec::new(), RowOf::new());
    for (prompt, answers) in prompts.iter().zip(answers) {
        let mut own = Vec::new();
        for answer in answers {
            if answer.text.trim().is_empty() {
                own.push(None);
                continue;
            }
            own.push(Some(rows.len()));
            rows.push(tokenizer.row(prompt, &answer.text, Ending::Finished)?.into());
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
        let rated = errors.rated(lm, model, &prefix, &all, u)?;
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
