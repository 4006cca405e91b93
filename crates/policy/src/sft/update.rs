//! One step of all models: gradients of a batch that mixes them, and the optimiser.

use std::collections::HashMap;

use lm::{AdamW, Bank, Fault, Lm, Place, Plan, Prefix, Tensor, Trace, UserIndex, answer_logp};
use problem::Result;
use run::Run;
use tch::Kind;

use crate::learners::{OrFault, Turn};
use crate::sft::config::SftConfig;

/// What every step reads.
pub(crate) struct Inputs<'a> {
    pub(crate) config: &'a SftConfig,
    pub(crate) lm: &'a Lm,
    pub(crate) bank: &'a Bank,
    pub(crate) prefix: &'a Prefix,
    pub(crate) plans: &'a [Plan],
    /// Of each model: what its rows count.
    pub(crate) weights: &'a [HashMap<usize, f32>],
    pub(crate) models: &'a [String],
}

/// A step that was taken: numbers of the users in it, in their order.
pub(crate) struct Taken {
    /// Mean negative log-probability of a response token, nats.
    pub(crate) losses: Vec<f64>,
    /// Norms of the gradients before clipping.
    pub(crate) norms: Vec<f64>,
    /// (user, learning rate).
    pub(crate) rates: Vec<(UserIndex, f64)>,
}

/// Takes one step of every model in `turn`; or nothing changes, and the fault says whose numbers are not finite.
///
/// # Errors
/// Those of the optimiser.
pub(crate) fn update(inputs: &Inputs, turn: &Turn, adam: &mut AdamW, place: &str, run: &Run) -> Result<OrFault<Taken>> {
    let (gradients, losses) = match gradients(inputs, turn, place, run)? {
        Ok(found) => found,
        Err(fault) => return Ok(Err(fault)),
    };
    let norms = adam.norms(&gradients, turn.present.len())?;
    if let Some(fault) = Fault::find(turn.present.users(), &norms.users, "the gradient") {
        return Ok(Err(fault));
    }
    let rate = |(user, step): (&UserIndex, &usize)| {
        (*user, inputs.config.optimizer.rate(*step, inputs.plans[user.0].batches.len()))
    };
    let rates: Vec<(UserIndex, f64)> = turn.present.users().iter().zip(&turn.steps).map(rate).collect();
    let norms = adam.step(&gradients, 0.0, &rates, place)?;
    Ok(Ok(Taken { losses, norms: norms.users, rates }))
}

/// Gradients of the sum over models of the mean negative log-probability of their response tokens, each row's times what the row counts; and these
/// means without what rows count. The sum keeps the models' gradients apart. The batch is computed in parts.
fn gradients(inputs: &Inputs, turn: &Turn, place: &str, run: &Run) -> Result<OrFault<(Vec<Tensor>, Vec<f64>)>> {
    let Inputs { config, lm, bank, prefix, plans: _, weights: counts, models } = *inputs;
    let rows = prefix.rows();
    let answer_tokens: Vec<usize> = turn.sums(|row| rows[row].ids.len() - rows[row].answer_start);
    let here = bank.present(turn.present.users());
    let parameters: Vec<Tensor> = here.parameters().into_iter().map(|p| p.tensor).collect();

    let lengths: Vec<usize> = turn.items.iter().map(|(_, row)| rows[*row].ids.len()).collect();
    let (mut sum, mut means) = (None, vec![0.0; turn.present.len()]);
    for part in lm::under_budget(&lengths, config.micro_batch_tokens.get()) {
        let groups: Vec<Vec<usize>> = part.iter().map(|i| vec![turn.items[*i].1]).collect();
        let owners: Vec<Place> = part.iter().map(|i| turn.items[*i].0).collect();
        let shares: Vec<f32> = owners.iter().map(|place| 1.0 / answer_tokens[place.0] as f32).collect();
        let count = |i: &usize| {
            let (place, row) = turn.items[*i];
            counts[turn.present.user(place).0][&row]
        };
        let counts: Vec<f32> = part.iter().map(count).collect();
        let seeds = part.iter().map(|i| {
            let (place, row) = turn.items[*i];
            let row = run::hash_bytes(format!("{:?}", rows[row].ids).as_bytes());
            let (model, step) = (&models[turn.present.user(place).0], turn.steps[place.0].to_string());
            run::derive(run.seed(), &["sft", "dropout", model, &step, &row])
        });
        let batch = prefix.batch(lm, &groups);
        let dropout = here.dropout(seeds.collect(), batch.lengths());
        let factors = here.rows(&owners, batch.lengths()).with_dropout(dropout);

        let trace = Trace::new(lm, batch, factors, config.activations);
        let on_device = |values: &[f32]| Tensor::from_slice(values).to_device(lm.device);
        let nll = -answer_logp(lm, &trace.batch, &trace.hidden) * on_device(&shares); // [rows]
        let values = Vec::<f64>::try_from(nll.detach().to_kind(Kind::Double)).expect("one number a row");
        let of_users: Vec<UserIndex> = owners.iter().map(|place| turn.present.user(*place)).collect();
        if let Some(fault) = Fault::find(&of_users, &values, "the loss") {
            return Ok(Err(fault));
        }
        owners.iter().zip(&values).for_each(|(place, value)| means[place.0] += value);
        lm::accumulate(
            &mut sum,
            trace.backward(&(nll * on_device(&counts)).sum(Kind::Float), &parameters, &[], place)?,
        );
    }
    Ok(Ok((sum.unwrap_or_default(), means)))
}
