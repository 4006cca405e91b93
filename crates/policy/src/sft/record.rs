//! What is kept and reported of SFT's steps.

use std::collections::BTreeMap;

use lm::{Plan, RowCounts, UserIndex};
use problem::Result;
use run::Run;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::learners::{Learners, Turn};
use crate::settings::is_default;
use crate::sft::update::Taken;

/// One model's training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SftModelReport {
    /// Distinct responses to learn from.
    pub answers: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Tokens of all rows in all batches.
    pub tokens: usize,
    /// Mean negative log-probability of a response token, nats, over the first tenth of the steps.
    pub first_loss: f64,
    /// The same over the last tenth.
    pub final_loss: f64,
}

/// What training was made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SftReport {
    /// By user id; `everyone` for a global model. Without those in quarantine.
    pub models: BTreeMap<String, SftModelReport>,
    /// Users whose training was stopped or could not begin, and why. Their models are not written.
    #[serde(default)]
    pub quarantined: BTreeMap<String, String>,
    /// Rows left out or changed.
    pub rows: RowCounts,
    /// Votes of weight 0, which count nothing.
    #[serde(default, skip_serializing_if = "is_default")]
    pub without_weight: usize,
}

/// Keeps a step, logs it, and gives its mean loss.
pub(crate) fn record(
    turn: &Turn,
    taken: &Taken,
    models: &[String],
    learners: &mut Learners<f64>,
    run: &mut Run,
) -> Result<f64> {
    let mut line = json!({"step": learners.tick});
    for (place, user) in turn.present.iter() {
        let (loss, grad_norm, learning_rate) = (taken.losses[place.0], taken.norms[place.0], taken.rates[place.0].1);
        learners.keep(user, loss);
        line[format!("user/{}", models[user.0])] =
            json!({"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate});
    }
    run.log(&line)?;
    Ok(taken.losses.iter().sum::<f64>() / turn.present.len() as f64)
}

/// The report of a training that is through; `answers` are each model's distinct responses.
pub(crate) fn report(
    models: &[String],
    plans: &[Plan],
    answers: &[usize],
    learners: &Learners<f64>,
    (rows, without_weight): (RowCounts, usize),
) -> SftReport {
    let of = |UserIndex(model): UserIndex| {
        let losses = &learners.past[model];
        let tenth = losses.len().div_ceil(10);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        SftModelReport {
            answers: answers[model],
            steps: losses.len(),
            tokens: plans[model].tokens,
            first_loss: mean(&losses[..tenth]),
            final_loss: mean(&losses[losses.len() - tenth..]),
        }
    };
    let healthy = learners.quarantine.healthy(models.len());
    SftReport {
        models: healthy.into_iter().map(|model| (models[model.0].clone(), of(model))).collect(),
        quarantined: learners.quarantine.by_id(models),
        rows,
        without_weight,
    }
}
