//! One step of a fit: the votes of its healthy users, their gradients, and the update.

use std::collections::BTreeMap;
use std::result::Result as Either;

use device::Checked;
use lm::{Fault, GradientNorms, Lm, Place, Prefix, Present, Quarantine, Storage, Tensor, Trace, UserIndex};
use problem::Result;
use run::Run;
use tch::Kind;

use crate::config::RewardConfig;
use crate::learner::{Learner, trained};
use crate::model::RewardModel;
use crate::objective::{Judged, Weighting};
use crate::plan::Plan;

/// What every step of a fit reads and none changes.
pub(crate) struct Inputs<'a> {
    pub(crate) config: &'a RewardConfig,
    pub(crate) lm: &'a Lm,
    pub(crate) plan: &'a Plan<'a>,
    pub(crate) prefix: &'a Prefix,
    pub(crate) storage: &'a Storage,
}

/// The votes of one step.
pub(crate) struct Batch {
    /// Indices of the plan's votes.
    pub(crate) votes: Vec<usize>,
    /// Each vote's user.
    voters: Vec<UserIndex>,
    /// The users among them.
    pub(crate) present: Present,
    /// How much each vote counts.
    weights: Vec<f32>,
    /// Each vote's stream of dropout.
    seeds: Vec<[u8; 32]>,
    /// The step in an error's words.
    place: String,
}

/// Gradients of a batch with respect to what its phase trains.
pub(crate) struct Gradients {
    sum: Vec<Tensor>,
    /// Each vote's r(chosen) - r(rejected).
    pub(crate) margins: Vec<f64>,
    /// Each vote's loss, unweighted.
    pub(crate) losses: Vec<f64>,
}

/// What a step did.
pub(crate) struct Taken {
    pub(crate) batch: Batch,
    pub(crate) gradients: Gradients,
    pub(crate) norms: GradientNorms,
    pub(crate) rate: f64,
}

impl Taken {
    /// Over its votes, unweighted.
    pub(crate) fn mean_loss(&self) -> f64 {
        self.gradients.losses.iter().sum::<f64>() / self.gradients.losses.len() as f64
    }
}

/// Takes step `step` with the healthy users of its batch. Whoever's numbers are not finite goes into quarantine, and the others take the step
/// without them; none if nobody is left.
///
/// # Errors
/// Numbers that are not finite and that no user is to blame for.
pub(crate) fn take(
    inputs: &Inputs,
    learner: &mut Learner,
    quarantine: &mut Quarantine,
    step: usize,
    run: &Run,
) -> Result<Option<Taken>> {
    loop {
        let batch = batch(inputs, quarantine, step, run);
        if batch.votes.is_empty() {
            return Ok(None);
        }
        // Only those who are here: memory and time do not depend on how many others there are.
        let here = learner.model.present(batch.present.users());
        let fault = match gradients(inputs, learner.phase, &here, &batch)? {
            Err(fault) => fault,
            Ok(gradients) => {
                let rate = inputs.config.optimizer.rate(step, inputs.plan.steps.batches.len());
                match update(inputs, learner, &here, &batch, &gradients, rate)? {
                    Err(fault) => fault,
                    Ok(norms) => return Ok(Some(Taken { batch, gradients, norms, rate })),
                }
            }
        };
        quarantine.put(fault.user, format!("step {step}: {} is not finite", fault.what));
    }
}

/// The step's votes but for those of users in quarantine.
fn batch(inputs: &Inputs, quarantine: &Quarantine, step: usize, run: &Run) -> Batch {
    let Inputs { config, plan, .. } = *inputs;
    let healthy = |v: &&usize| !quarantine.holds(plan.owner[**v]);
    let votes: Vec<usize> = plan.steps.batches[step].iter().filter(healthy).copied().collect();
    let voters: Vec<UserIndex> = votes.iter().map(|v| plan.owner[*v]).collect();
    let own: Vec<f32> = votes.iter().map(|v| plan.weights[*v]).collect();
    let weights = if config.independent() {
        weights_of_user_means(&voters, &own)
    } else {
        weights_of(config.objective.weighting, &voters, &own, &plan.votes_of)
    };
    let rows: Vec<&str> = votes.iter().map(|v| plan.texts.votes[*v].source_row.as_str()).collect();
    Batch {
        place: format!("reward, step {step}, rows {}", rows.join(" ")),
        seeds: dropout_seeds(run, step, &voters, plan.users),
        votes,
        present: Present::new(voters.iter().copied()),
        voters,
        weights,
    }
}

/// Gradients over the model of the users who are here. The batch is computed in parts: gradients and margins are those of the whole.
fn gradients(inputs: &Inputs, phase: usize, here: &RewardModel, batch: &Batch) -> Result<Either<Gradients, Fault>> {
    let Inputs { config, lm, plan, prefix, .. } = *inputs;
    let (texts, votes) = (&plan.texts, &batch.votes);
    let places: Vec<Place> = batch.voters.iter().map(|u| batch.present.place(*u)).collect();
    let (of_bank, others) = trained(here, &plan.steps.phases[phase]);
    let [parameters, others] = [of_bank, others].map(|p| p.into_iter().map(|p| p.tensor).collect::<Vec<Tensor>>());
    let lengths: Vec<usize> = votes.iter().map(|v| texts.tokens(*v)).collect();
    let mut out = Gradients { sum: vec![], margins: vec![0.0; votes.len()], losses: vec![0.0; votes.len()] };
    let mut sum = None;
    for part in lm::under_budget(&lengths, config.micro_batch_tokens.get()) {
        let pairs: Vec<Vec<usize>> = part.iter().map(|i| texts.pairs[votes[*i]]).map(|(c, r)| vec![c, r]).collect();
        let own: Vec<Place> = part.iter().map(|i| places[*i]).collect();
        let column = |f: &dyn Fn(usize) -> f32| {
            Tensor::from_slice(&part.iter().map(|i| f(*i)).collect::<Vec<f32>>()).to_device(lm.device)
        };
        let rows = prefix.batch(lm, &pairs);
        let dropout = here.bank.dropout(part.iter().map(|i| batch.seeds[*i]).collect(), rows.lengths());
        let factors = here.bank.rows(&own, rows.lengths()).with_dropout(dropout);

        let trace = Trace::new(lm, rows, factors, config.activations);
        let hidden = lm::pooled_hidden(lm, &trace.batch, &trace.hidden, config.pooling); // [2P, E]
        let twice: Vec<Place> = own.iter().flat_map(|u| [*u, *u]).collect();
        let rewards = here.head.score(&hidden, &twice).view([-1, 2]); // [P, 2]: chosen, rejected
        let (tie, lapse) = here.habits.of(&own, lm.device);
        let judged = Judged {
            rewards: &rewards,
            tied: &column(&|i| f32::from(u8::from(texts.votes[votes[i]].tie))),
            margins: &column(&|i| texts.votes[votes[i]].margin.unwrap_or(0.0)),
            tie: tie.as_ref(),
            lapse: lapse.as_ref(),
        };
        let of_votes = config.objective.losses(&judged); // [P]
        let weighted = &of_votes * column(&|i| batch.weights[i]);
        let margin = rewards.select(1, 0) - rewards.select(1, 1);
        let numbers = |t: &Tensor| Vec::<f64>::try_from(t.detach().to_kind(Kind::Double)).checked();
        let voters: Vec<UserIndex> = part.iter().map(|i| batch.voters[*i]).collect();
        if let Some(fault) = Fault::find(&voters, &numbers(&weighted)?, "the loss") {
            return Ok(Err(fault));
        }
        for ((i, margin), loss) in part.iter().zip(numbers(&margin)?).zip(numbers(&of_votes)?) {
            (out.margins[*i], out.losses[*i]) = (margin, loss);
        }
        let loss = weighted.sum(Kind::Float);
        lm::accumulate(&mut sum, trace.backward(&loss, &parameters, &others, &batch.place)?);
    }
    out.sum = sum.unwrap_or_default();
    Ok(Ok(out))
}

/// Moves the users of a batch and what all share, or nothing if a user's gradient is not finite. `before` is what they were.
fn update(
    inputs: &Inputs,
    learner: &mut Learner,
    before: &RewardModel,
    batch: &Batch,
    gradients: &Gradients,
    rate: f64,
) -> Result<Either<GradientNorms, Fault>> {
    let RewardConfig { personal_rate, objective, .. } = *inputs.config;
    let rates: Vec<(UserIndex, f64)> = batch.present.users().iter().map(|u| (*u, rate * personal_rate)).collect();
    match learner.adam.step(&gradients.sum, rate, &rates, &batch.place) {
        Ok(norms) => {
            learner.means.pull(&learner.model, before, &batch.present, rate * objective.shrinkage);
            inputs.storage.release();
            Ok(Ok(norms))
        }
        Err(error) if error.is_not_finite() => {
            let norms = learner.adam.norms(&gradients.sum, batch.present.len())?;
            Fault::find(batch.present.users(), &norms.users, "the gradient").map(Err).ok_or(error)
        }
        Err(error) => Err(error),
    }
}

/// Weights that make a sum over votes the sum of users' means of weighted votes: a user's gradient does not depend on how many votes others have in
/// the batch. `own` are the votes' weights relative to the mean over all of their users' votes, so that a batch of low weights has a small gradient.
fn weights_of_user_means(voters: &[UserIndex], own: &[f32]) -> Vec<f32> {
    let mut counts: BTreeMap<UserIndex, usize> = BTreeMap::new();
    voters.iter().for_each(|user| *counts.entry(*user).or_default() += 1);
    voters.iter().zip(own).map(|(user, w)| w / counts[user] as f32).collect()
}

/// Weights of a batch's votes: their own, relative to the mean over all of their users' votes, times a power of the number of training votes of their
/// users, so scaled that the power's mean over all training votes is 1, over the number of votes in the batch.
fn weights_of(weighting: Weighting, voters: &[UserIndex], own: &[f32], votes_of: &[usize]) -> Vec<f32> {
    let power = match weighting {
        Weighting::ByRow => 1.0,
        Weighting::ByUser => 0.0,
        Weighting::Temperature(power) => power,
    };
    let there = || votes_of.iter().filter(|n| **n > 0).map(|n| *n as f64);
    let scale = there().sum::<f64>() / there().map(|n| n.powf(power)).sum::<f64>();
    let weight = |u: UserIndex| (votes_of[u.0] as f64).powf(power - 1.0) * scale;
    voters.iter().zip(own).map(|(u, w)| (f64::from(*w) * weight(*u) / voters.len() as f64) as f32).collect()
}

/// A dropout stream for every vote of a step: decided by user, step and the vote's number among the user's.
fn dropout_seeds(run: &Run, step: usize, voters: &[UserIndex], users: &[String]) -> Vec<[u8; 32]> {
    let mut counts = BTreeMap::new();
    let seed = |user: &UserIndex| {
        let count = counts.entry(*user).or_insert(0);
        *count += 1;
        let name = ["reward", "dropout", &users[user.0], &step.to_string(), &count.to_string()];
        run::derive(run.seed(), &name)
    };
    voters.iter().map(seed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issue_23_a_batch_of_a_tenth_of_the_mean_weight_has_a_tenth_of_the_gradient() {
        let voters = [0, 1, 0, 1].map(UserIndex);
        let ordinary = weights_of_user_means(&voters, &[1.0; 4]);
        assert_eq!(ordinary, [0.5; 4]);
        assert_eq!(weights_of_user_means(&voters, &[0.1, 1.0, 0.1, 1.0]), [0.05, 0.5, 0.05, 0.5]);
        for weighting in [Weighting::ByRow, Weighting::ByUser, Weighting::Temperature(0.5)] {
            let of = |own: [f32; 4]| weights_of(weighting, &voters, &own, &[30, 10]);
            let (ordinary, low) = (of([1.0; 4]), of([0.1, 1.0, 0.1, 1.0]));
            for i in 0..4 {
                let share = if i % 2 == 0 { 0.1 } else { 1.0 };
                assert!((low[i] - share * ordinary[i]).abs() < 1e-7, "{weighting:?}: {low:?} of {ordinary:?}");
            }
        }
        // By row every vote counts the same, whatever its user's number of votes; by user, 30 votes of one count as 10 of the other.
        assert_eq!(weights_of(Weighting::ByRow, &voters, &[1.0; 4], &[30, 10]), [0.25; 4]);
        let by_user = weights_of(Weighting::ByUser, &voters, &[1.0; 4], &[30, 10]);
        assert!((by_user[0] * 30.0 - by_user[1] * 10.0).abs() < 1e-5, "{by_user:?}");
    }
}
