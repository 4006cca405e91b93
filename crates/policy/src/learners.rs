//! Where the training of many users is: what SFT, DPO and PPO keep of each user's steps, who takes the next one, and who is in quarantine.

use std::num::NonZero;

use lm::{AdamW, Checkpoints, Fault, Place, Plan, Present, Quarantine, UserIndex};
use problem::Result;
use run::Run;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a loop keeps of its users. `Step` is what is kept of one step of one user: it is written once, with the next checkpoint.
#[derive(Debug)]
pub(crate) struct Learners<Step> {
    /// Steps of the loop. A user takes part in as many of them as the user has steps.
    pub(crate) tick: usize,
    /// Of each user: what was kept of the user's own steps, in order.
    pub(crate) past: Vec<Vec<Step>>,
    /// Users who are no longer trained.
    pub(crate) quarantine: Quarantine,
    unwritten: Vec<(UserIndex, usize)>, // (user, the user's step) since the last checkpoint
    checkpoints: Checkpoints<Quarantine, (UserIndex, Step)>,
}

/// One step of the loop: who takes it, and on what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turn {
    /// The users who take it.
    pub(crate) present: Present,
    /// The number of each one's own step, by place, which decides all that is drawn.
    pub(crate) steps: Vec<usize>,
    /// (place of the user among the `present`, item of a plan): the next batches of all of them.
    pub(crate) items: Vec<(Place, usize)>,
}

/// What a step gives; or whose numbers are not finite, and then nothing was changed.
pub(crate) type OrFault<T> = std::result::Result<T, Fault>;

impl Turn {
    /// Where and when, for messages.
    pub(crate) fn place(&self, stage: &str, tick: usize, names: &[String]) -> String {
        match self.present.users() {
            [] => format!("{stage}, step {tick}"),
            [one] => format!("{stage}, step {tick}, user `{}`", names[one.0]),
            [first, ..] => format!("{stage}, step {tick}, {} users such as `{}`", self.present.len(), names[first.0]),
        }
    }

    /// A number for each user of the step: the sum over the user's items, added in order.
    pub(crate) fn sums<N: Copy + Default + std::ops::AddAssign>(&self, number: impl Fn(usize) -> N) -> Vec<N> {
        let mut sums = vec![N::default(); self.present.len()];
        self.items.iter().for_each(|(place, item)| sums[place.0] += number(*item));
        sums
    }
}

impl<Step: Clone + Serialize + DeserializeOwned> Learners<Step> {
    /// Begins at the first step, or goes on from the run's last checkpoint, which must hold a part for every one of the `optimizers`.
    ///
    /// # Errors
    /// A checkpoint that cannot be read.
    pub(crate) fn open(run: &mut Run, users: usize, optimizers: &mut [(&str, &mut AdamW)]) -> Result<Self> {
        let (checkpoints, saved) = Checkpoints::open(run)?;
        let mut learners = Self {
            tick: 0,
            past: (0..users).map(|_| Vec::new()).collect(),
            quarantine: Quarantine::default(),
            unwritten: Vec::new(),
            checkpoints,
        };
        if let Some(mut saved) = saved {
            for (part, adam) in optimizers {
                adam.load_state(&mut saved.take(part)?)?;
            }
            learners.tick = saved.step;
            learners.quarantine = saved.note;
            saved.history.into_iter().for_each(|(user, step)| learners.past[user.0].push(step));
        }
        Ok(learners)
    }

    /// Keeps a step that a user has taken.
    pub(crate) fn keep(&mut self, user: UserIndex, step: Step) {
        self.unwritten.push((user, self.past[user.0].len()));
        self.past[user.0].push(step);
    }

    /// Steps that users have taken, all together.
    pub(crate) fn taken(&self) -> usize {
        self.past.iter().map(Vec::len).sum()
    }

    /// Puts users whose plan holds no batch in quarantine.
    pub(crate) fn refuse_empty(&mut self, plans: &[Plan], why: &str) {
        let empty = UserIndex::all(plans.len()).filter(|user| plans[user.0].batches.is_empty());
        empty.for_each(|user| self.quarantine.put(user, why));
    }

    /// Puts the user of a fault in quarantine: nothing was changed, and the others take this step without that user.
    pub(crate) fn stop(&mut self, turn: &Turn, fault: Fault) {
        let Fault { user, what } = fault;
        let step = turn.present.find(user).map_or(0, |place| turn.steps[place.0]);
        self.quarantine.put(user, format!("step {step} of the user's: {what} is not finite"));
    }

    /// Is a checkpoint due after this step? None is where nothing is left to do.
    pub(crate) fn is_due(&self, every: NonZero<usize>, plans: &[Plan]) -> bool {
        self.tick.is_multiple_of(every.get())
            && !self.next_users(|user| plans[user.0].batches.len(), NonZero::new(1)).is_empty()
    }

    /// Who takes the next step: the first users, at most `at_once`, who are not in quarantine and have some of their `steps` left. None if
    /// training is through.
    pub(crate) fn next_users(&self, steps: impl Fn(UserIndex) -> usize, at_once: Option<NonZero<usize>>) -> Present {
        let busy = |user: &UserIndex| !self.quarantine.holds(*user) && self.past[user.0].len() < steps(*user);
        Present::new(UserIndex::all(self.past.len()).filter(busy).take(at_once.map_or(usize::MAX, NonZero::get)))
    }

    /// The next step of all users who walk through `plans`; none if training is through.
    pub(crate) fn ask(&self, plans: &[Plan], at_once: Option<NonZero<usize>>) -> Option<Turn> {
        let present = self.next_users(|user| plans[user.0].batches.len(), at_once);
        let steps: Vec<usize> = present.users().iter().map(|user| self.past[user.0].len()).collect();
        let batch = |((place, user), step): ((Place, UserIndex), &usize)| {
            plans[user.0].batches[*step].iter().map(move |item| (place, *item))
        };
        let items = present.iter().zip(&steps).flat_map(batch).collect();
        (!present.is_empty()).then_some(Turn { present, steps, items })
    }

    /// Writes a checkpoint with the optimizers' states.
    ///
    /// # Errors
    /// A disk without room.
    pub(crate) fn save(&mut self, run: &mut Run, optimizers: &[(&str, &AdamW)]) -> Result<()> {
        let records: Vec<(UserIndex, Step)> =
            self.unwritten.iter().map(|(user, step)| (*user, self.past[user.0][*step].clone())).collect();
        let parts: Vec<_> = optimizers.iter().map(|(part, adam)| (*part, adam.state())).collect();
        self.checkpoints.save(run, self.tick, &self.quarantine, &records, &parts)?;
        self.unwritten.clear();
        Ok(())
    }
}

/// The items that some batch of `plans` holds, in their order; the plans then count among these. What no batch touches need not be computed.
pub(crate) fn only_planned(plans: &mut [Plan], items: usize) -> Vec<usize> {
    let mut planned = vec![false; items];
    plans.iter().flat_map(|plan| plan.batches.iter().flatten()).for_each(|item| planned[*item] = true);
    let kept: Vec<usize> = (0..items).filter(|item| planned[*item]).collect();
    let mut place = vec![usize::MAX; items];
    kept.iter().enumerate().for_each(|(new, old)| place[*old] = new);
    for item in plans.iter_mut().flat_map(|plan| plan.batches.iter_mut().flatten()) {
        *item = place[*item];
    }
    kept
}

/// The learning rate of what users share: the mean of those of the users in the step.
pub(crate) fn shared_rate(rates: &[(UserIndex, f64)]) -> f64 {
    rates.iter().map(|(_, rate)| rate).sum::<f64>() / rates.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(batches: &[&[usize]]) -> Plan {
        Plan { batches: batches.iter().map(|b| b.to_vec()).collect(), tokens: 0 }
    }

    fn those(users: &[usize]) -> Present {
        Present::new(users.iter().copied().map(UserIndex))
    }

    fn begin(folder: &std::path::Path) -> Run {
        Run::begin(&folder.join("dpo"), run::Identity::new("dpo", 1, serde_json::json!({}), 7), run::Environment::new())
            .unwrap()
    }

    #[test]
    fn the_first_users_who_are_well_and_not_through_take_the_next_step() {
        let folder = tempfile::tempdir().unwrap();
        let mut learners = Learners::<f64>::open(&mut begin(folder.path()), 4, &mut []).unwrap();
        let plans = [plan(&[&[0], &[1]]), plan(&[]), plan(&[&[2, 3]]), plan(&[&[4], &[5]])];
        learners.refuse_empty(&plans, "no batch");
        learners.keep(UserIndex(0), 0.5);
        let turn = learners.ask(&plans, None).unwrap();
        assert_eq!(turn.present, those(&[0, 2, 3]));
        assert_eq!(turn.steps, [1, 0, 0]);
        assert_eq!(turn.items, [(0, 1), (1, 2), (1, 3), (2, 4)].map(|(place, item)| (Place(place), item)));
        assert_eq!(turn.sums(|item| item), [1, 5, 4]);
        assert_eq!(learners.ask(&plans, NonZero::new(2)).unwrap().present, those(&[0, 2]));
        learners.keep(UserIndex(0), 0.25);
        learners.quarantine.put(UserIndex(2), "the loss is not finite");
        assert_eq!(learners.ask(&plans, NonZero::new(2)).unwrap().present, those(&[3]));
        [0.1, 0.2].iter().for_each(|loss| learners.keep(UserIndex(3), *loss));
        assert_eq!(learners.ask(&plans, None), None);
    }

    #[test]
    fn learners_go_on_from_their_checkpoint_and_write_each_step_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = begin(folder.path());
        let mut learners = Learners::<f64>::open(&mut run, 2, &mut []).unwrap();
        for step in 0..20 {
            learners.tick = step + 1;
            learners.keep(UserIndex(step % 2), step as f64);
            learners.save(&mut run, &[]).unwrap();
        }
        let history = fs_err::read_to_string(run.state("history.jsonl")).unwrap();
        assert_eq!(history.lines().count(), 20, "a line a step, whatever the number of checkpoints");
        learners.quarantine.put(UserIndex(1), "the loss is not finite");
        learners.save(&mut run, &[]).unwrap();
        drop(run);
        let again = Learners::<f64>::open(&mut begin(folder.path()), 2, &mut []).unwrap();
        assert_eq!((again.tick, &again.past, &again.quarantine), (20, &learners.past, &learners.quarantine));
        assert_eq!(again.taken(), 20);
    }

    #[test]
    fn what_no_batch_touches_is_left_out() {
        let mut plans = [plan(&[&[5], &[2, 5]]), plan(&[]), plan(&[&[0]])];
        assert_eq!(only_planned(&mut plans, 7), [0, 2, 5]);
        assert_eq!(plans, [plan(&[&[2], &[1, 2]]), plan(&[]), plan(&[&[0]])]);
    }

    #[test]
    fn a_place_names_one_user_whatever_their_number() {
        let names: Vec<String> = (0..20_000).map(|u| format!("user {u}")).collect();
        let turn = Turn { present: Present::new((3..20_000).map(UserIndex)), ..Turn::default() };
        assert_eq!(turn.place("dpo", 7, &names), "dpo, step 7, 19997 users such as `user 3`");
        assert_eq!(Turn { present: those(&[4]), ..turn }.place("sft", 0, &names), "sft, step 0, user `user 4`");
    }
}
