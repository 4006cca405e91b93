//! What a reward model says of responses, on each user's own scale.

use lm::{Bank, Prefix, TokenRow, UserIndex};
use problem::Result;
use run::{Progress, Run};
use text::Tokenizer;

use crate::ppo::rollouts::{Ask, Rollout, roll_out};
use crate::ppo::scale::{MaybeScale, scale, score_of};
use crate::ppo::setup::Setup;

/// Rewards of rows of a [`Prefix`], for (row, user): means and standard errors. Whoever knows reward models passes it in.
pub type Rewards<'a> = dyn FnMut(&Prefix, &[(usize, UserIndex)]) -> problem::Result<Vec<(f32, f32)>> + 'a;

/// Responses of the base to every prompt are scored for every user: each user's mean 0 and variance 1 come from here. Computed once; a resumed run
/// reads them back. A user whose rewards do not differ, or are not finite, has none.
///
/// # Errors
/// Rewards that cannot be computed; a disk without room.
pub(crate) fn scales(
    setup: &Setup,
    tokenizer: &Tokenizer,
    questions: &[Vec<i64>],
    rewards: &mut Rewards,
    run: &mut Run,
) -> Result<Vec<MaybeScale>> {
    if let Some(saved) = run.finished_part("reward-scales")? {
        return Ok(saved);
    }
    let scores = scores_of_base(setup, tokenizer, questions, rewards, run)?;
    run.save_part("reward-scales", scores.iter().map(|own| scale(own)).collect())
}

/// Rewards of responses of the base, for each user.
fn scores_of_base(
    setup: &Setup,
    tokenizer: &Tokenizer,
    questions: &[Vec<i64>],
    rewards: &mut Rewards,
    run: &Run,
) -> Result<Vec<Vec<f32>>> {
    let Setup { config, lm, users, sampling, .. } = setup;
    let copies = config.reward.calibration_samples_per_prompt.get();
    let _phase = run::phase("scale of rewards");
    let mut bar = Progress::new("ppo: scale of rewards", questions.len() * copies, 0);
    let mut scores: Vec<Vec<f32>> = vec![Vec::new(); users.len()];
    let together = (config.rollout_rows.get() / copies).max(1);
    for first in (0..questions.len()).step_by(together) {
        let some = first..(first + together).min(questions.len());
        let ask = |prompt: usize| {
            let seed = |n: usize| run::derive(run.seed(), &["ppo", "scale", &prompt.to_string(), &n.to_string()]);
            Ask {
                user: UserIndex(0), // nobody's: the base responds
                prompt,
                turn: prompt,
                ids: questions[prompt].clone(),
                seeds: (0..copies).map(seed).collect(),
            }
        };
        let asks: Vec<Ask> = some.clone().map(ask).collect();
        let rollouts = roll_out(lm, tokenizer, None, &asks, sampling, config.rollout_rows.get())?;
        let rows: Vec<TokenRow> = rollouts.iter().map(|r| r.row.clone()).collect();
        let count = rows.len();
        let prefix = Prefix::new(lm, rows, 0..lm.depth(), |_| ())?;
        let asked: Vec<(usize, UserIndex)> =
            UserIndex::all(users.len()).flat_map(|u| (0..count).map(move |row| (row, u))).collect();
        for ((_, user), (mean, _)) in asked.iter().zip(rewards(&prefix, &asked)?) {
            scores[user.0].push(mean);
        }
        bar.advance(some.len() * copies, "");
    }
    Ok(scores)
}

/// A round's responses with what is thought of each.
#[derive(Debug)]
pub(crate) struct Scored {
    pub(crate) rollouts: Vec<Rollout>,
    /// Where their hidden states are.
    pub(crate) prefix: Prefix,
    /// Means and standard errors, as the reward model gives them.
    pub(crate) raw: Vec<(f32, f32)>,
    /// On the user's scale.
    pub(crate) scores: Vec<f32>,
    /// Does the guard let it pass?
    pub(crate) passes: Vec<bool>,
}

/// Scores a round's responses.
///
/// # Errors
/// Rewards that cannot be computed.
pub(crate) fn score(
    setup: &Setup,
    bank: &Bank,
    scales: &[MaybeScale],
    rollouts: Vec<Rollout>,
    rewards: &mut Rewards,
) -> Result<Scored> {
    let Setup { config, lm, .. } = setup;
    let rows: Vec<TokenRow> = rollouts.iter().map(|r| r.row.clone()).collect();
    let prefix = Prefix::new(lm, rows, bank.first_block()..lm.depth(), |_| ())?;
    let owners: Vec<(usize, UserIndex)> = rollouts.iter().enumerate().map(|(row, r)| (row, r.user)).collect();
    let raw = rewards(&prefix, &owners)?;
    let passes: Vec<bool> = rollouts.iter().map(|r| config.guard.passes(&r.text)).collect();
    let of = |(row, rollout): (usize, &Rollout)| {
        let scale = scales[rollout.user.0].as_ref().expect("a user without a scale is in quarantine");
        score_of(config, *scale, raw[row], rollout.finished, passes[row])
    };
    let scores = rollouts.iter().enumerate().map(of).collect();
    Ok(Scored { rollouts, prefix, raw, scores, passes })
}
