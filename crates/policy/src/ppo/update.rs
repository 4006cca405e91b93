//! A round's updates: a few clipped steps of the policies and critics of all users who are in it.

use std::collections::{BTreeMap, BTreeSet};

use lm::{Bank, Fault, GradientNorms, Present, Quarantine, Tensor, UserIndex};
use problem::{Result, not_finite};
use run::Run;

use crate::learners::shared_rate;
use crate::ppo::ask::minibatches;
use crate::ppo::begin::Kept;
use crate::ppo::models::Models;
use crate::ppo::passes::{Ahead, Critic, Round, Seen, present_of};
use crate::ppo::setup::{Setup, Turn};

/// What is seen of each user over a round's updates.
pub(crate) type Updates = BTreeMap<UserIndex, Updated>;

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
    user: UserIndex,
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

/// One update of the policies and critics of all users who have rows in it; or nothing changes, and who must leave it first. All gradients are looked at
/// before anything moves.
///
/// # Errors
/// A gradient of what users share that is not finite: neither policies nor critics have changed.
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
    let trains = |row: &usize| turn.steps[round.rows.rollouts[*row].user.0] >= setup.warmup();
    let of_policy: Vec<usize> = rows.iter().copied().filter(trains).collect();
    let policy = match policy_gradients(setup, models, turn, round, &of_policy, is_first, kept.policy)? {
        Ok(found) => found,
        Err(leaves) => return Ok(Some(leaves)),
    };
    let critic = match critic_gradients(setup, models, turn, round, rows, kept.critic)? {
        Ok(found) => found,
        Err(leaves) => return Ok(Some(leaves)),
    };
    if let (Some((_, adam)), Some(Gradients { present, values, seen })) = (&mut models.critic, critic) {
        let rates = setup.critic_rates(&present, turn);
        adam.step(&values, 0.0, &rates, &turn.place)?;
        present.iter().zip(seen).for_each(|((_, user), seen)| updates.entry(user).or_default().critic.push(seen));
    }
    if let Some(Gradients { present, values, seen }) = policy {
        let rate = |user: UserIndex| setup.own[user.0].rate(turn.steps[user.0], setup.warmup());
        let rates: Vec<(UserIndex, f64)> = present.iter().map(|(_, user)| (user, rate(user))).collect();
        let norms = models.adam.step(&values, shared_rate(&rates), &rates, &turn.place)?;
        for (((_, user), seen), norm) in present.iter().zip(seen).zip(norms.users) {
            let of_user = updates.entry(user).or_default();
            of_user.policy.push(seen);
            of_user.norms.push(norm);
        }
    }
    Ok(None)
}

/// Gradients of some users that are finite.
struct Gradients {
    present: Present,
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
    let present = present_of(round.rows.rollouts, rows);
    match setup.passes.policy(&models.bank, round, rows, setup.config.clip, ahead, &turn.place)? {
        Err(fault) => Ok(Err(fault.into())),
        Ok((values, seen)) => {
            let norms = models.adam.norms(&values, present.len())?;
            if let Some(fault) = Fault::find(present.users(), &norms.users, "the policy's gradient") {
                return Ok(Err(fault.into()));
            }
            refuse_shared(&norms, &turn.place)?;
            let first_time = |user: UserIndex| is_first && turn.steps[user.0] == setup.warmup();
            Ok(differs(&present, &seen, first_time).map_or(Ok(Some(Gradients { present, values, seen })), Err))
        }
    }
}

/// Refuses a gradient of what users share that is not finite: no user is to blame.
fn refuse_shared(norms: &GradientNorms, place: &str) -> Result<()> {
    if norms.shared.is_finite() { Ok(()) } else { Err(not_finite(place, "the gradient of the shared parameters")) }
}

/// Before a policy's first update nothing has moved: its log-probabilities must be those of the round's beginning. The first user, among those of
/// whom that can be said, for whom they are not.
fn differs(present: &Present, seen: &[Seen], first_time: impl Fn(UserIndex) -> bool) -> Option<Leaves> {
    const MOST: f64 = 0.1;
    let far = |user: UserIndex, seen: &Seen| first_time(user) && seen.moved.max(0.0) > MOST;
    let ((_, user), seen) = present.iter().zip(seen).find(|((_, user), seen)| far(*user, seen))?;
    let why = format!(
        "log-probabilities in the policy's first update differ by up to {:.3} nats from those of the round's beginning, more than {MOST}; \
         train in float32 (`--dtype float32`), and please report this",
        seen.moved
    );
    Some(Leaves { user, why })
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
    let present = present_of(round.rows.rollouts, rows);
    match setup.passes.critic(critic, round, rows, settings.value_clip, ahead, &turn.place)? {
        Err(fault) => Ok(Err(fault.into())),
        Ok((values, seen)) => {
            let norms = adam.norms(&values, present.len())?;
            if let Some(fault) = Fault::find(present.users(), &norms.users, "the critic's gradient") {
                return Ok(Err(fault.into()));
            }
            refuse_shared(&norms, &turn.place)?;
            Ok(Ok(Some(Gradients { present, values, seen })))
        }
    }
}

#[cfg(test)]
mod tests {
    use lm::{Lm, Prefix, Sampling, TokenRow};

    use super::*;
    use crate::ppo::ask::minibatches;
    use crate::ppo::config::PpoConfig;
    use crate::ppo::passes::{Passes, Rows};
    use crate::ppo::rollouts::Rollout;

    #[test]
    fn issue_22_a_first_update_that_begins_elsewhere_stops_that_user_alone() {
        let seen = |moved: f64| Seen { moved, ..Seen::default() };
        let all = [seen(0.05), seen(0.4), seen(0.5)];
        let present = Present::new([3, 5, 7].map(UserIndex));
        let leaves = differs(&present, &all, |_| true).unwrap();
        assert_eq!(leaves.user, UserIndex(5));
        assert!(leaves.why.contains("differ by up to 0.400 nats"), "{}", leaves.why);
        assert_eq!(differs(&present, &all, |user| user == UserIndex(7)).unwrap().user, UserIndex(7));
        assert_eq!(differs(&present, &all, |user| user == UserIndex(3)), None);
    }

    fn rollouts() -> Vec<Rollout> {
        let rollout = |(user, n): (usize, i64)| Rollout {
            user: UserIndex(user),
            prompt: 0,
            turn: 0,
            row: TokenRow { ids: vec![0, 3, 4 + n, 9 + n, 0], answer_start: 2 },
            sampled: 3,
            finished: true,
            text: String::new(),
            logp: vec![0.0; 3],
        };
        [(0, 0), (0, 1), (1, 2), (1, 3)].map(rollout).to_vec()
    }

    /// What a round's updates made of two users.
    struct Outcome {
        quarantined: BTreeMap<String, String>,
        /// What the updates ended with, if that was an error.
        error: Option<String>,
        /// Each user's up-projections.
        factors: Vec<Vec<Tensor>>,
        /// Did a number of the policies, or of the critics, change?
        moved: (bool, bool),
    }

    /// Runs one round's updates of two users; `spoil` changes the log-probabilities and the advantages with which the round began.
    fn updated(lm: &Lm, config: PpoConfig, spoil: impl Fn(&mut [Vec<f32>], &mut [Vec<f32>])) -> Outcome {
        let folder = tempfile::tempdir().unwrap();
        let identity = run::Identity::new("ppo", 1, serde_json::json!({}), 3);
        let run = Run::begin(&folder.path().join("ppo"), identity, run::Environment::new()).unwrap();
        let mut config = config;
        config.lora.blocks = lm::Blocks::Last { last: 1.try_into().unwrap() };
        (config.epochs, config.minibatches) = (1.try_into().unwrap(), 1.try_into().unwrap());
        let users = ["ann", "bob"].map(String::from);
        let passes = Passes { lm, temperature: 1.0, budget: 1000, activations: config.activations };
        let own = users.iter().map(|user| config.own(user).unwrap()).collect();
        let sampling = Sampling::at(1.0, 4, vec![]);
        let setup = Setup { config: &config, lm, users: &users, own, passes, sampling };
        let mut models = Models::new(&config, lm, &users, None, &run).unwrap();
        let active = Present::new(UserIndex::all(2));
        let turn = Turn { place: "ppo, round 0".into(), active, steps: vec![0, 0], betas: vec![0.1; 2] };

        let rollouts = rollouts();
        let rows = rollouts.iter().map(|r| r.row.clone()).collect();
        let prefix = Prefix::new(lm, rows, models.bank.first_block()..lm.depth(), |_| ()).unwrap();
        let of = Rows { rollouts: &rollouts, prefix: &prefix };
        let first = minibatches(&config, &run, &users, &turn.steps, &rollouts, 0);
        let (mut old, values) = (vec![Vec::new(); 4], vec![vec![0.0; 3]; 4]);
        setup.passes.begin(&models.bank, of, &first[0], false, &mut old);
        let mut advantages: Vec<Vec<f32>> = [1.0, -1.0, 1.0, -1.0].map(|a| vec![a; 3]).to_vec();
        spoil(&mut old, &mut advantages);
        let returns = vec![vec![1.0; 3]; 4];
        let round = Round { rows: of, old: &old, values: &values, advantages: &advantages, returns: &returns };
        let copied = |models: &Models| -> [Vec<Tensor>; 2] {
            let copies = |adam: &lm::AdamW| adam.parameters().iter().map(|p| p.detach().copy()).collect();
            [copies(&models.adam), models.critic.as_ref().map_or(vec![], |(_, adam)| copies(adam))]
        };
        let before = copied(&models);
        let mut quarantine = Quarantine::default();
        let kept = Kept::default();
        let updates = update(&setup, &mut models, &turn, &round, &first, kept, &mut quarantine, &run);
        assert!(updates.iter().flat_map(BTreeMap::keys).all(|user| !quarantine.holds(*user)));
        let factors = |user| models.bank.of_user(user).into_iter().map(|f| f.up).collect();
        let after = copied(&models);
        let moved = |i: usize| before[i].iter().zip(&after[i]).any(|(a, b)| !a.equal(b));
        Outcome {
            quarantined: quarantine.by_id(&users),
            error: updates.err().map(|e| e.to_string()),
            factors: UserIndex::all(2).map(factors).collect(),
            moved: (moved(0), moved(1)),
        }
    }

    fn rloo() -> PpoConfig {
        PpoConfig { method: crate::Method::Rloo, ..PpoConfig::default() }
    }

    #[test]
    fn issue_23_a_shared_gradient_that_is_not_finite_changes_neither_policies_nor_critics() {
        let folder = tempfile::tempdir().unwrap();
        let lm = crate::tiny::model(folder.path()).unwrap();
        let critic = crate::CriticConfig { warmup_steps: 0, ..crate::CriticConfig::default() };
        let method = crate::Method::Ppo(critic);
        // Up-projections, which are zero at first, belong to all: so far users' own gradients are zero whatever happens.
        let config = PpoConfig { method, personal: crate::Personal::Down, ..PpoConfig::default() };
        let fine = updated(&lm, config.clone(), |_, _| ());
        assert_eq!((fine.moved, fine.error), ((true, true), None));
        let spoiled = updated(&lm, config, |_, advantages| advantages[2].fill(1e37));
        let error = spoiled.error.unwrap();
        assert!(error.contains("ppo, round 0") && error.contains("the gradient of the shared parameters"), "{error}");
        assert_eq!(spoiled.moved, (false, false), "the critics did not step alone");
        assert!(spoiled.quarantined.is_empty());
    }

    #[test]
    fn issue_23_a_users_gradient_that_is_not_finite_changes_neither_the_users_policy_nor_the_users_critic() {
        let folder = tempfile::tempdir().unwrap();
        let lm = crate::tiny::model(folder.path()).unwrap();
        let critic = crate::CriticConfig { warmup_steps: 0, ..crate::CriticConfig::default() };
        let config = PpoConfig { method: crate::Method::Ppo(critic), ..PpoConfig::default() };
        let all = |_: &mut [Vec<f32>], advantages: &mut [Vec<f32>]| advantages.iter_mut().for_each(|a| a.fill(1e37));
        let nobody = updated(&lm, config, all);
        assert_eq!((nobody.moved, nobody.quarantined.len(), nobody.error), ((false, false), 2, None));
        assert!(nobody.quarantined["ann"].contains("the policy's gradient is not finite"), "{:?}", nobody.quarantined);
    }

    #[test]
    fn issue_22_the_others_take_the_update_without_whoever_must_leave_it() {
        let folder = tempfile::tempdir().unwrap();
        let lm = crate::tiny::model(folder.path()).unwrap();
        let fine = updated(&lm, rloo(), |_, _| ());
        assert!(fine.quarantined.is_empty(), "{:?}", fine.quarantined);
        let fine = fine.factors;
        let of_bob = |by: f32| move |old: &mut [Vec<f32>], _: &mut [Vec<f32>]| old[2][1] += by;
        for (by, what) in [(0.5, "differ by up to 0.500 nats"), (f32::NAN, "the policy's loss is not finite")] {
            let Outcome { quarantined, factors, error, .. } = updated(&lm, rloo(), of_bob(by));
            assert_eq!(error, None);
            assert_eq!(quarantined.keys().collect::<Vec<_>>(), ["bob"]);
            assert!(quarantined["bob"].starts_with("ppo, round 0: "), "{quarantined:?}");
            assert!(quarantined["bob"].contains(what), "{quarantined:?}");
            for (user, moves) in [(0, true), (1, false)] {
                for (found, fine) in factors[user].iter().zip(&fine[user]) {
                    let far = |t: &Tensor| t.abs().max().double_value(&[]);
                    assert_eq!(far(found) > 1e-6, moves, "user {user}");
                    assert!(!moves || far(&(found - fine)) < 1e-6, "user {user}");
                }
            }
        }
    }
}
