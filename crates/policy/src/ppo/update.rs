//! A round's updates: a few clipped steps of the policies and critics of all users who are in it.

use std::collections::{BTreeMap, BTreeSet};

use lm::{Bank, Fault, Quarantine, Tensor};
use problem::Result;
use run::Run;

use crate::learners::shared_rate;
use crate::ppo::ask::minibatches;
use crate::ppo::begin::Kept;
use crate::ppo::models::Models;
use crate::ppo::passes::{Ahead, Critic, Round, Seen, present_of};
use crate::ppo::setup::{Setup, Turn};

/// What is seen of each user over a round's updates.
pub(crate) type Updates = BTreeMap<usize, Updated>;

/// What is seen of a user over a round's updates.
#[derive(Debug, Default)]
pub(crate) struct Updated {
    pub(crate) policy: Vec<Seen>,
    pub(crate) critic: Vec<Seen>,
    /// Norms of the policy's gradients before clipping.
    pub(crate) norms: Vec<f64>,
}

/// A user who has to leave the round, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Leaves {
    user: usize,
    why: String,
}

impl From<Fault> for Leaves {
    fn from(Fault { user, what }: Fault) -> Self {
        Self { user, why: format!("{what} is not finite") }
    }
}

/// The passes over the round's responses. A user whose numbers are not finite is put in quarantine, and the others take that update without the
/// user. A user whose policy has moved far enough takes no more of them (`kl_stop`).
///
/// # Errors
/// A gradient of what users share that is not finite.
pub(crate) fn update(
    setup: &Setup,
    models: &mut Models,
    turn: &Turn,
    round: &Round,
    first: &[Vec<usize>],
    kept: Kept,
    quarantine: &mut Quarantine,
    run: &Run,
) -> Result<Updates> {
    let (config, rollouts) = (setup.config, round.rows.rollouts);
    let (mut through, mut updates) = (BTreeSet::new(), Updates::new());
    let mut kept = Some(kept);
    for epoch in 0..config.epochs.get() {
        let batches = match epoch {
            0 => first.to_vec(),
            _ => minibatches(config, run, setup.users, &turn.steps, rollouts, epoch),
        };
        for (number, rows) in batches.iter().enumerate() {
            let is_first = epoch == 0 && number == 0;
            loop {
                let here = |row: &usize| {
                    let user = rollouts[*row].user;
                    !quarantine.holds(user) && !through.contains(&user)
                };
                let rows: Vec<usize> = rows.iter().copied().filter(here).collect();
                let kept = kept.take().unwrap_or_default();
                match step(setup, models, turn, round, &rows, is_first, kept, &mut updates)? {
                    None => break,
                    Some(Leaves { user, why }) => quarantine.put(user, format!("{}: {why}", turn.place)),
                }
            }
            let far = |seen: &Updated| seen.policy.last().copied().unwrap_or_default().approx_kl;
            let is_through = |seen: &Updated| config.kl_stop.is_some_and(|limit| far(seen) > limit);
            through.extend(updates.iter().filter(|(_, seen)| is_through(seen)).map(|(user, _)| *user));
        }
    }
    Ok(updates)
}

/// One update of the policies and critics of all users who have rows in it; or nothing changes, and who must leave it first.
fn step(
    setup: &Setup,
    models: &mut Models,
    turn: &Turn,
    round: &Round,
    rows: &[usize],
    is_first: bool,
    kept: Kept,
    updates: &mut Updates,
) -> Result<Option<Leaves>> {
    let trains = |row: &usize| turn.steps[round.rows.rollouts[*row].user] >= setup.warmup();
    let of_policy: Vec<usize> = rows.iter().copied().filter(trains).collect();
    let policy = match policy_gradients(setup, models, turn, round, &of_policy, is_first, kept.policy)? {
        Ok(found) => found,
        Err(leaves) => return Ok(Some(leaves)),
    };
    let critic = match critic_gradients(setup, models, turn, round, rows, kept.critic)? {
        Ok(found) => found,
        Err(leaves) => return Ok(Some(leaves)),
    };
    if let (Some((_, adam)), Some(Gradients { users, values, seen })) = (&mut models.critic, critic) {
        let rates = setup.critic_rates(&users, turn);
        adam.step(&values, 0.0, &rates, &turn.place)?;
        users.iter().zip(seen).for_each(|(user, seen)| updates.entry(*user).or_default().critic.push(seen));
    }
    if let Some(Gradients { users, values, seen }) = policy {
        let rate = |user: &usize| setup.own[*user].optimizer.rate(turn.steps[*user], setup.own[*user].steps);
        let rates: Vec<(usize, f64)> = users.iter().map(|user| (*user, rate(user))).collect();
        let norms = models.adam.step(&values, shared_rate(&rates), &rates, &turn.place)?;
        for ((user, seen), norm) in users.iter().zip(seen).zip(norms.users) {
            let of_user = updates.entry(*user).or_default();
            of_user.policy.push(seen);
            of_user.norms.push(norm);
        }
    }
    Ok(None)
}

/// Gradients of some users that are finite.
struct Gradients {
    /// In order.
    users: Vec<usize>,
    /// In the order of the parameters.
    values: Vec<Tensor>,
    /// Of each user.
    seen: Vec<Seen>,
}

/// None if nobody has rows.
type Found = std::result::Result<Option<Gradients>, Leaves>;

fn policy_gradients<'a>(
    setup: &Setup<'a>,
    models: &Models,
    turn: &Turn,
    round: &Round,
    rows: &[usize],
    is_first: bool,
    ahead: Option<Ahead<'a, Bank>>,
) -> Result<Found> {
    if rows.is_empty() {
        return Ok(Ok(None));
    }
    let users = present_of(round.rows.rollouts, rows);
    match setup.passes.policy(&models.bank, round, rows, setup.config.clip, ahead, &turn.place)? {
        Err(fault) => Ok(Err(fault.into())),
        Ok((values, seen)) => {
            let norms = models.adam.norms(&values, users.len())?;
            if let Some(fault) = Fault::find(&users, &norms.users, "the policy's gradient") {
                return Ok(Err(fault.into()));
            }
            let first_time = |user: usize| is_first && turn.steps[user] == setup.warmup();
            Ok(differs(&users, &seen, first_time).map_or(Ok(Some(Gradients { users, values, seen })), Err))
        }
    }
}

/// Before a policy's first update nothing has moved: its log-probabilities must be those of the round's beginning. The first user, among those of
/// whom that can be said, for whom they are not.
fn differs(users: &[usize], seen: &[Seen], first_time: impl Fn(usize) -> bool) -> Option<Leaves> {
    const MOST: f64 = 0.1;
    let (user, seen) = users.iter().zip(seen).find(|(user, seen)| first_time(**user) && seen.moved.max(0.0) > MOST)?;
    let why = format!(
        "log-probabilities in the policy's first update differ by up to {:.3} nats from those of the round's beginning, more than {MOST}; \
         train in float32 (`--dtype float32`), and please report this",
        seen.moved
    );
    Some(Leaves { user: *user, why })
}

fn critic_gradients<'a>(
    setup: &Setup<'a>,
    models: &Models,
    turn: &Turn,
    round: &Round,
    rows: &[usize],
    ahead: Option<Ahead<'a, Critic>>,
) -> Result<Found> {
    let (Some((critic, adam)), Some(settings), false) = (&models.critic, setup.config.critic(), rows.is_empty()) else {
        return Ok(Ok(None));
    };
    let users = present_of(round.rows.rollouts, rows);
    match setup.passes.critic(critic, round, rows, settings.value_clip, ahead, &turn.place)? {
        Err(fault) => Ok(Err(fault.into())),
        Ok((values, seen)) => {
            let norms = adam.norms(&values, users.len())?;
            let fault = Fault::find(&users, &norms.users, "the critic's gradient");
            Ok(fault.map_or(Ok(Some(Gradients { users, values, seen })), |fault| Err(fault.into())))
        }
    }
}
