//! One step of all users: gradients of a batch that mixes them, and the optimiser.

use lm::{AdamW, Bank, Fault, Lm, Place, Prefix, Tensor, Trace, UserIndex, answer_token_logp};
use problem::Result;
use run::Run;
use tch::Kind;

use crate::dpo::config::DpoConfig;
use crate::dpo::rows::Planned;
use crate::learners::{OrFault, Turn, shared_rate};
use crate::maths::pair_losses::PairLogps;

/// What every step reads.
pub(crate) struct Inputs<'a> {
    pub(crate) config: &'a DpoConfig,
    pub(crate) lm: &'a Lm,
    pub(crate) bank: &'a Bank,
    pub(crate) prefix: &'a Prefix,
    pub(crate) planned: &'a Planned,
    /// Of each pair: log-probabilities of (chosen, rejected) under what the policies start as.
    pub(crate) reference: &'a [[f32; 2]],
    pub(crate) users: &'a [String],
}

/// A step that was taken.
pub(crate) struct Taken {
    /// What was seen of each item of the turn.
    pub(crate) pairs: Vec<PairMetrics>,
    /// Norms of the users' gradients before clipping, in their order in the turn.
    pub(crate) norms: Vec<f64>,
    /// (user, learning rate), in the same order.
    pub(crate) rates: Vec<(UserIndex, f64)>,
}

/// What is seen of a pair in a step.
#[derive(Clone, Debug, Default)]
pub(crate) struct PairMetrics {
    pub(crate) loss: f64,
    pub(crate) accuracy: f64,
    pub(crate) chosen: f64,
    pub(crate) rejected: f64,
    pub(crate) logp_chosen: f64,
    pub(crate) logp_rejected: f64,
}

/// Takes one step of every user in `turn`; or nothing changes, and the fault says whose numbers are not finite.
///
/// # Errors
/// A gradient of what users share that is not finite.
pub(crate) fn update(inputs: &Inputs, turn: &Turn, adam: &mut AdamW, place: &str, run: &Run) -> Result<OrFault<Taken>> {
    let (gradients, pairs) = match gradients(inputs, turn, place, run)? {
        Ok(found) => found,
        Err(fault) => return Ok(Err(fault)),
    };
    let norms = adam.norms(&gradients, turn.present.len())?;
    if let Some(fault) = Fault::find(turn.present.users(), &norms.users, "the gradient") {
        return Ok(Err(fault));
    }
    let rate = |(user, step): (&UserIndex, &usize)| {
        let steps = inputs.planned.plans[user.0].batches.len();
        (*user, inputs.config.optimizer_of(&inputs.users[user.0]).rate(*step, steps))
    };
    let rates: Vec<(UserIndex, f64)> = turn.present.users().iter().zip(&turn.steps).map(rate).collect();
    let norms = adam.step(&gradients, shared_rate(&rates), &rates, place)?;
    Ok(Ok(Taken { pairs, norms: norms.users, rates }))
}

/// Gradients of the sum over users of their pairs' weighted mean loss, in the order of the parameters, and what was seen of each pair. A
/// user's gradient does not depend on who else is in the batch. The batch is computed in parts; gradients and metrics are those of the whole.
pub(crate) fn gradients(
    inputs: &Inputs,
    turn: &Turn,
    place: &str,
    run: &Run,
) -> Result<OrFault<(Vec<Tensor>, Vec<PairMetrics>)>> {
    let Inputs { config, lm, bank, prefix, planned, reference, users } = *inputs;
    let objective = config.objective();
    let betas: Vec<f32> = turn.present.users().iter().map(|user| config.beta_of(&users[user.0]) as f32).collect();
    let whole = turn.sums(|pair| planned.pairs[pair].weight); // of each user
    let seeds = dropout_seeds(run, turn, users);
    let here = bank.present(turn.present.users());
    let parameters: Vec<Tensor> = here.parameters().into_iter().map(|p| p.tensor).collect();
    let on_device = |values: &[f32]| Tensor::from_slice(values).to_device(lm.device);
    let in_pairs = |values: &[f32]| on_device(values).view([-1, 2]).tr(); // [2, P]: chosen, rejected

    let lengths: Vec<usize> = turn.items.iter().map(|(_, pair)| planned.tokens(*pair)).collect();
    let (mut sum, mut metrics) = (None, vec![PairMetrics::default(); turn.items.len()]);
    for part in lm::under_budget(&lengths, config.micro_batch_tokens.get()) {
        let (owners, pairs): (Vec<Place>, Vec<usize>) = part.iter().map(|i| turn.items[*i]).unzip();
        let groups: Vec<Vec<usize>> = pairs.iter().map(|p| planned.pairs[*p].rows).map(|(c, r)| vec![c, r]).collect();
        let of_rows: Vec<f32> = pairs.iter().flat_map(|p| reference[*p]).collect();
        let share = |(owner, pair): (&Place, &usize)| planned.pairs[*pair].weight / whole[owner.0];
        let shares: Vec<f32> = owners.iter().zip(&pairs).map(share).collect();
        let tokens: Vec<f32> = pairs.iter().flat_map(|p| planned.answer_tokens(*p)).map(|n| n as f32).collect();
        let counts: Vec<f32> = pairs.iter().flat_map(|p| planned.weights(*p)).flatten().collect();

        let batch = prefix.batch(lm, &groups);
        let dropout = here.dropout(part.iter().map(|i| seeds[*i]).collect(), batch.lengths());
        let factors = here.rows(&owners, batch.lengths()).with_dropout(dropout);
        let trace = Trace::new(lm, batch, factors, config.activations);
        let each = answer_token_logp(lm, &trace.batch, &trace.hidden, 1.0); // [M]
        let of_row: Vec<i64> =
            trace.batch.answer_lengths().iter().enumerate().flat_map(|(r, n)| vec![r as i64; *n]).collect();
        let zeros = Tensor::zeros([tokens.len() as i64], (Kind::Float, lm.device));
        let logp = zeros.index_add(0, &Tensor::from_slice(&of_row).to_device(lm.device), &(each * on_device(&counts)));
        let logp = logp.view([-1, 2]).tr(); // [2, P]
        let (logp_ref, tokens) = (in_pairs(&of_rows), in_pairs(&tokens));
        let beta = on_device(&owners.iter().map(|owner| betas[owner.0]).collect::<Vec<f32>>()); // [P]
        let logps = PairLogps { policy: &logp, reference: &logp_ref, tokens: &tokens, beta: &beta };
        let losses = objective.losses(&logps); // [P]

        let values = PairMetrics::of(&losses, &logps.rewards(config.loss), &logp);
        let weighted: Vec<f64> = values.iter().zip(&shares).map(|(m, share)| m.loss * f64::from(*share)).collect();
        let of_pairs: Vec<UserIndex> = owners.iter().map(|owner| turn.present.user(*owner)).collect();
        if let Some(fault) = Fault::find(&of_pairs, &weighted, "the loss") {
            return Ok(Err(fault));
        }
        let loss = (&losses * on_device(&shares)).sum(Kind::Float);
        lm::accumulate(&mut sum, trace.backward(&loss, &parameters, &[], place)?);
        part.iter().zip(values).for_each(|(i, value)| metrics[*i] = value);
    }
    Ok(Ok((sum.unwrap_or_default(), metrics)))
}

/// A dropout stream for every item of a step: decided by user, the user's step and the pair's number among the user's.
fn dropout_seeds(run: &Run, turn: &Turn, users: &[String]) -> Vec<[u8; 32]> {
    let mut counts = vec![0usize; turn.present.len()];
    let seed = |(place, _): &(Place, usize)| {
        counts[place.0] += 1;
        let (user, step) = (&users[turn.present.user(*place).0], turn.steps[place.0].to_string());
        run::derive(run.seed(), &["dpo", "dropout", user, &step, &counts[place.0].to_string()])
    };
    turn.items.iter().map(seed).collect()
}

impl PairMetrics {
    /// Of a part's pairs: `each` `[P]`, `rewards` and `logp` `[2, P]`.
    fn of(each: &Tensor, rewards: &Tensor, logp: &Tensor) -> Vec<Self> {
        let list = |t: &Tensor| Vec::<f64>::try_from(t.detach().to_kind(Kind::Double).reshape(-1)).expect("a list");
        let (loss, margin) = (list(each), list(&(rewards.get(0) - rewards.get(1))));
        let (chosen, rejected) = (list(&rewards.get(0)), list(&rewards.get(1)));
        let (logp_chosen, logp_rejected) = (list(&logp.get(0)), list(&logp.get(1)));
        let pair = |i: usize| Self {
            loss: loss[i],
            accuracy: f64::from(u8::from(margin[i] > 0.0)),
            chosen: chosen[i],
            rejected: rejected[i],
            logp_chosen: logp_chosen[i],
            logp_rejected: logp_rejected[i],
        };
        (0..loss.len()).map(pair).collect()
    }

    /// The mean of some pairs, at least one.
    pub(crate) fn mean(pairs: &[&Self]) -> Self {
        let mean = |f: fn(&Self) -> f64| pairs.iter().map(|m| f(m)).sum::<f64>() / pairs.len() as f64;
        Self {
            loss: mean(|m| m.loss),
            accuracy: mean(|m| m.accuracy),
            chosen: mean(|m| m.chosen),
            rejected: mean(|m| m.rejected),
            logp_chosen: mean(|m| m.logp_chosen),
            logp_rejected: mean(|m| m.logp_rejected),
        }
    }
}
