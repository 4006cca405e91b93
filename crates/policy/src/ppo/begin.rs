//! The reference, the policies and the critics as a round begins: what its responses are measured against.

use run::Run;

use lm::Bank;

use crate::ppo::ask::minibatches;
use crate::ppo::models::Models;
use crate::ppo::passes::{Ahead, Critic, Rows};
use crate::ppo::rollouts::reference_logp;
use crate::ppo::score::Scored;
use crate::ppo::setup::{Setup, Turn};

/// A number for every response token of every response, as a round begins.
#[derive(Debug)]
pub(crate) struct Begun<'a> {
    /// The estimated divergence from the reference, of sampled tokens only.
    pub(crate) kl: Vec<Vec<f32>>,
    /// Log-probabilities under the policies.
    pub(crate) old: Vec<Vec<f32>>,
    /// The critics' values; 0 without critics.
    pub(crate) values: Vec<Vec<f32>>,
    /// The minibatches of the round's first pass.
    pub(crate) first: Vec<Vec<usize>>,
    /// The first passes, which the first update takes over.
    pub(crate) kept: Kept<'a>,
}

/// Passes of the first update, of the policies and of the critics.
#[derive(Debug, Default)]
pub(crate) struct Kept<'a> {
    pub(crate) policy: Option<Ahead<'a, Bank>>,
    pub(crate) critic: Option<Ahead<'a, Critic>>,
}

/// Log-probabilities and values before anything is updated, by the passes of the first updates.
pub(crate) fn begin<'a>(setup: &Setup<'a>, models: &Models, turn: &Turn, scored: &Scored, run: &Run) -> Begun<'a> {
    let Setup { config, lm, users, passes, .. } = setup;
    let Scored { rollouts, prefix, .. } = scored;
    let logp_ref = reference_logp(lm, prefix, rollouts, models.reference.as_ref(), config.temperature, passes.budget);
    let trains = |row: usize| turn.steps[rollouts[row].user.0] >= setup.warmup();
    let first = minibatches(config, run, users, &turn.steps, rollouts, 0);
    let mut old = vec![Vec::new(); rollouts.len()];
    let mut values: Vec<Vec<f32>> = rollouts.iter().map(|r| vec![0.0; r.row.answer_tokens()]).collect();
    let of = Rows { rollouts, prefix };
    let mut kept = Kept::default();
    for (number, rows) in first.iter().enumerate() {
        let (now, later): (Vec<usize>, Vec<usize>) = rows.iter().partition(|row| trains(**row));
        let keep = number == 0;
        passes.begin(&models.bank, of, &later, false, &mut old);
        let policy = passes.begin(&models.bank, of, &now, keep, &mut old);
        let critic = models.critic.as_ref();
        let critic = critic.and_then(|(critic, _)| passes.begin(critic, of, rows, keep, &mut values));
        if keep {
            kept = Kept { policy, critic };
        }
    }
    let kl = rollouts.iter().enumerate().map(|(row, rollout)| {
        let token = |t: usize| config.kl.estimator.of(old[row][t], logp_ref[row][t]);
        (0..rollout.sampled).map(token).collect()
    });
    Begun { kl: kl.collect(), old, values, first, kept }
}
