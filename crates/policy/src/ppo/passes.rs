//! The forward passes and gradients of a PPO update, for all users of a minibatch.

use std::collections::BTreeMap;

use lm::{
    Activations, Bank, Fault, Lm, Place, Prefix, Present, ScalarHead, Tensor, Trace, UserIndex, answer_hidden,
    answer_token_logp,
};
use problem::Result;
use tch::{Kind, no_grad};

use crate::maths::surrogate::{Sampled, value_losses};
use crate::ppo::rollouts::{Rollout, in_parts, scatter};

/// A user's critic: adapters and value heads of all users.
#[derive(Debug)]
pub(crate) struct Critic {
    pub(crate) bank: Bank,
    pub(crate) head: ScalarHead,
}

/// What learns from a round: a number for every response token.
pub(crate) trait Learned: Sized {
    /// That of the present users alone.
    fn of_users(&self, present: &Present) -> Self;
    /// Its adapters.
    fn bank(&self) -> &Bank;
    /// The numbers of a pass; `owners` are the places of the users of its response tokens.
    fn read(&self, passes: &Passes, trace: &Trace, owners: &[Place]) -> Tensor;
}

/// Policies: the log-probability of each token.
impl Learned for Bank {
    fn of_users(&self, present: &Present) -> Self {
        self.present(present.users())
    }

    fn bank(&self) -> &Bank {
        self
    }

    fn read(&self, passes: &Passes, trace: &Trace, _: &[Place]) -> Tensor {
        answer_token_logp(passes.lm, &trace.batch, &trace.hidden, passes.temperature)
    }
}

/// Critics: the value of the state in which each token was chosen.
impl Learned for Critic {
    fn of_users(&self, present: &Present) -> Self {
        Self { bank: self.bank.present(present.users()), head: self.head.present(present.users()) }
    }

    fn bank(&self) -> &Bank {
        &self.bank
    }

    fn read(&self, passes: &Passes, trace: &Trace, owners: &[Place]) -> Tensor {
        self.head.score(&answer_hidden(passes.lm, &trace.batch, &trace.hidden), owners)
    }
}

/// A round's responses, and where their hidden states are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<'a> {
    pub(crate) rollouts: &'a [Rollout],
    pub(crate) prefix: &'a Prefix,
}

/// A round's responses with what their updates need: a number for every response token, 0 where a token was not sampled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round<'a> {
    pub(crate) rows: Rows<'a>,
    /// Log-probabilities under the policy as the round began.
    pub(crate) old: &'a [Vec<f32>],
    /// The critic's expectations as the round began.
    pub(crate) values: &'a [Vec<f32>],
    pub(crate) advantages: &'a [Vec<f32>],
    pub(crate) returns: &'a [Vec<f32>],
}

/// How passes are computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passes<'a> {
    pub(crate) lm: &'a Lm,
    pub(crate) temperature: f64,
    pub(crate) budget: usize,
    pub(crate) activations: Activations,
}

/// What is seen of a user in an update: means over the user's sampled tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) loss: f64,
    pub(crate) approx_kl: f64,
    pub(crate) clipped: f64,
    pub(crate) ratio: f64,
    pub(crate) ratio_square: f64,
    pub(crate) entropy: f64,
    /// The largest difference from the log-probability at the round's beginning.
    pub(crate) moved: f64,
}

/// Gradients in the order of the parameters, and what was seen of each present user.
pub(crate) type Update = std::result::Result<(Vec<Tensor>, Vec<Seen>), Fault>;

/// A number for every response token of `rows`, flattened.
fn flat(values: &[Vec<f32>], rows: &[usize]) -> Vec<f32> {
    rows.iter().flat_map(|r| values[*r].iter().copied()).collect()
}

/// Sampled tokens of each user in `rows`.
fn sampled_tokens(rollouts: &[Rollout], rows: &[usize]) -> BTreeMap<UserIndex, usize> {
    let mut counts = BTreeMap::new();
    rows.iter().for_each(|r| *counts.entry(rollouts[*r].user).or_default() += rollouts[*r].sampled);
    counts
}

/// The weight of every response token of a part: one over the user's sampled tokens in the whole minibatch; 0 for one that was not
/// sampled.
fn weights(rollouts: &[Rollout], part: &[usize], counts: &BTreeMap<UserIndex, usize>) -> Vec<f32> {
    let mut out = Vec::new();
    for rollout in part.iter().map(|row| &rollouts[*row]) {
        let weight = |t: usize| if t < rollout.sampled { 1.0 / counts[&rollout.user] as f32 } else { 0.0 };
        out.extend((0..rollout.row.answer_tokens()).map(weight));
    }
    out
}

/// The place of its user, for every response token of `rows`.
fn owners(rollouts: &[Rollout], rows: &[usize], present: &Present) -> Vec<Place> {
    let owner = |r: &usize| vec![present.place(rollouts[*r].user); rollouts[*r].row.answer_tokens()];
    rows.iter().flat_map(owner).collect()
}

/// A forward pass with what its backward pass needs.
#[derive(Debug)]
struct Forward<'a> {
    /// Rows in the order in which they were run.
    rows: Vec<usize>,
    trace: Trace<'a>,
    /// A number for every response token of every row.
    numbers: Tensor,
}

impl Forward<'_> {
    /// The numbers, back to their rows.
    fn scatter(&self, out: &mut [Vec<f32>]) {
        scatter(&list(&self.numbers), self.rows.iter().copied(), &self.trace.batch.answer_lengths(), out);
    }
}

/// The first part of the round's first update, run when the round began: nothing has moved since, so the update takes it over.
#[derive(Debug)]
pub(crate) struct Ahead<'a, M> {
    minibatch: Vec<usize>,
    here: M,
    first: Forward<'a>,
}

impl<'a, M> Ahead<'a, M> {
    /// The model and the pass that were kept, if they are of just these rows; else the model that `anew` gives.
    fn taken(ahead: Option<Self>, rows: &[usize], anew: impl FnOnce() -> M) -> (M, Option<Forward<'a>>) {
        match ahead.filter(|a| a.minibatch == rows) {
            Some(Self { here, first, .. }) => (here, Some(first)),
            None => (anew(), None),
        }
    }
}

/// The users of these rows.
pub(crate) fn present_of(rollouts: &[Rollout], rows: &[usize]) -> Present {
    Present::new(rows.iter().map(|r| rollouts[*r].user))
}

impl<'a> Passes<'a> {
    fn tensor(&self, values: &[f32]) -> Tensor {
        Tensor::from_slice(values).to_device(self.lm.device)
    }

    /// For passes that no gradient follows.
    fn quiet(&self) -> Self {
        Self { activations: Activations::Keep, ..*self }
    }

    /// Runs `here`, of the `present` users, over `groups`.
    fn forward<M: Learned>(&self, here: &M, of: Rows, present: &Present, groups: &[Vec<usize>]) -> Forward<'a> {
        let batch = of.prefix.batch(self.lm, groups);
        let of_group: Vec<Place> = groups.iter().map(|g| present.place(of.rollouts[g[0]].user)).collect();
        let factors = here.bank().rows(&of_group, batch.lengths());
        let trace = Trace::new(self.lm, batch, factors, self.activations);
        let rows = groups.concat();
        let numbers = here.read(self, &trace, &owners(of.rollouts, &rows, present));
        Forward { rows, trace, numbers }
    }

    /// The numbers of `rows`' response tokens, by the very passes that an update over the same rows begins with. The first of these passes is
    /// handed back if it is to be kept.
    pub(crate) fn begin<M: Learned>(
        &self,
        model: &M,
        of: Rows,
        rows: &[usize],
        keep: bool,
        out: &mut [Vec<f32>],
    ) -> Option<Ahead<'a, M>> {
        let present = present_of(of.rollouts, rows);
        let here = model.of_users(&present);
        let mut kept = None;
        for (part, groups) in in_parts(of.rollouts, rows, self.budget).iter().enumerate() {
            if keep && part == 0 {
                let first = self.forward(&here, of, &present, groups);
                first.scatter(out);
                kept = Some(first);
            } else {
                no_grad(|| self.quiet().forward(&here, of, &present, groups)).scatter(out);
            }
        }
        kept.map(|first| Ahead { minibatch: rows.to_vec(), here, first })
    }

    /// Gradients of the clipped surrogate over `rows`: the sum over users of the mean over each one's tokens. `ahead` is taken if it is of
    /// these rows, and of these parameters.
    pub(crate) fn policy(
        &self,
        bank: &Bank,
        round: &Round<'_>,
        rows: &[usize],
        clip: f64,
        ahead: Option<Ahead<'a, Bank>>,
        at: &str,
    ) -> Result<Update> {
        let rollouts = round.rows.rollouts;
        let (present, counts) = (present_of(rollouts, rows), sampled_tokens(rollouts, rows));
        let (here, mut ahead) = Ahead::taken(ahead, rows, || bank.of_users(&present));
        let parameters: Vec<Tensor> = here.parameters().into_iter().map(|p| p.tensor).collect();
        let (mut sum, mut seen) = (None, vec![Seen::default(); present.len()]);
        for groups in in_parts(rollouts, rows, self.budget) {
            let run = || self.forward(&here, round.rows, &present, &groups);
            let Forward { rows: part, trace, numbers: logp } = ahead.take().unwrap_or_else(run);
            let (weights, owners) = (weights(rollouts, &part, &counts), owners(rollouts, &part, &present));
            let [old, advantages] = [round.old, round.advantages].map(|v| self.tensor(&flat(v, &part)));
            let sampled = Sampled { logp: &logp, old: &old, advantages: &advantages };
            let losses = sampled.policy_losses(clip);

            let (each, now, before) = (list(&losses), list(&logp), list(&old));
            for (i, weight) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
                if !each[i].is_finite() {
                    return Ok(Err(Fault { user: present.user(owners[i]), what: "the policy's loss".into() }));
                }
                let (w, log_ratio) = (f64::from(*weight), f64::from(now[i]) - f64::from(before[i]));
                let (s, ratio) = (&mut seen[owners[i].0], log_ratio.exp());
                s.loss += w * f64::from(each[i]);
                s.approx_kl += w * 0.5 * log_ratio * log_ratio;
                s.clipped += w * f64::from(u8::from((ratio - 1.0).abs() > clip));
                s.ratio += w * ratio;
                s.ratio_square += w * ratio * ratio;
                s.entropy -= w * f64::from(now[i]);
                s.moved = s.moved.max(log_ratio.abs());
            }
            let loss = (losses * self.tensor(&weights)).sum(Kind::Float);
            lm::accumulate(&mut sum, trace.backward(&loss, &parameters, &[], at)?);
        }
        Ok(Ok((sum.unwrap_or_default(), seen)))
    }

    /// Gradients of the clipped value loss over `rows`: of the critic's adapters, then of its heads. `ahead` as in [`Self::policy`].
    pub(crate) fn critic(
        &self,
        critic: &Critic,
        round: &Round<'_>,
        rows: &[usize],
        clip: f64,
        ahead: Option<Ahead<'a, Critic>>,
        at: &str,
    ) -> Result<Update> {
        let rollouts = round.rows.rollouts;
        let (present, counts) = (present_of(rollouts, rows), sampled_tokens(rollouts, rows));
        let (here, mut ahead) = Ahead::taken(ahead, rows, || critic.of_users(&present));
        let leaves = |parameters: Vec<lm::Parameter>| parameters.into_iter().map(|p| p.tensor).collect::<Vec<_>>();
        let (of_bank, of_head) = (leaves(here.bank.parameters()), leaves(here.head.parameters()));
        let (mut sum, mut seen) = (None, vec![Seen::default(); present.len()]);
        for groups in in_parts(rollouts, rows, self.budget) {
            let run = || self.forward(&here, round.rows, &present, &groups);
            let Forward { rows: part, trace, numbers: values } = ahead.take().unwrap_or_else(run);
            let (weights, owners) = (weights(rollouts, &part, &counts), owners(rollouts, &part, &present));
            let [old, returns] = [round.values, round.returns].map(|v| self.tensor(&flat(v, &part)));
            let losses = value_losses(&values, &old, &returns, clip);

            let (each, now, before) = (list(&losses), list(&values), list(&old));
            for (i, weight) in weights.iter().enumerate().filter(|(_, w)| **w > 0.0) {
                if !each[i].is_finite() {
                    return Ok(Err(Fault { user: present.user(owners[i]), what: "the critic's loss".into() }));
                }
                let s = &mut seen[owners[i].0];
                s.loss += f64::from(*weight) * f64::from(each[i]);
                s.clipped += f64::from(*weight) * f64::from(u8::from(f64::from((now[i] - before[i]).abs()) > clip));
            }
            let loss = (losses * self.tensor(&weights)).sum(Kind::Float);
            lm::accumulate(&mut sum, trace.backward(&loss, &of_bank, &of_head, at)?);
        }
        Ok(Ok((sum.unwrap_or_default(), seen)))
    }
}

fn list(t: &Tensor) -> Vec<f32> {
    Vec::try_from(t.detach().to_kind(Kind::Float)).expect("a number a token")
}
