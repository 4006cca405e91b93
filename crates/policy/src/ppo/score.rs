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

/// Responses of the reference to every prompt are scored for every user: each user's mean 0 and variance 1 come from here. The reference is the one
/// that divergences are measured from: the base, or the policies of all users that `reference` holds; nothing is computed for users `without` one.
/// Computed once; a resumed run reads them back. A user whose rewards do not differ, or are not finite, has none.
///
/// # Errors
/// Rewards that cannot be computed; a disk without room.
pub(crate) fn scales(
    setup: &Setup,
    tokenizer: &Tokenizer,
    questions: &[Vec<i64>],
    (reference, without): (Option<&Bank>, &[UserIndex]),
    rewards: &mut Rewards,
    run: &mut Run,
) -> Result<Vec<MaybeScale>> {
    if let Some(saved) = run.finished_part("reward-scales")? {
        return Ok(saved);
    }
    let users = UserIndex::all(setup.users.len());
    let whose: Vec<Option<UserIndex>> = match reference {
        None => vec![None],
        Some(_) => users.filter(|user| !without.contains(user)).map(Some).collect(),
    };
    let scores = scores_of_reference(setup, tokenizer, questions, reference, &whose, rewards, run)?;
    run.save_part("reward-scales", scores.iter().map(|own| scale(own)).collect())
}

/// Rewards of responses of the reference, for each user: of each of `whose` policies in `reference` for that user, or of the base for all.
fn scores_of_reference(
    setup: &Setup,
    tokenizer: &Tokenizer,
    questions: &[Vec<i64>],
    reference: Option<&Bank>,
    whose: &[Option<UserIndex>],
    rewards: &mut Rewards,
    run: &Run,
) -> Result<Vec<Vec<f32>>> {
    let Setup { config, lm, users, sampling, .. } = setup;
    let copies = config.reward.calibration_samples_per_prompt.get();
    let _phase = run::phase("scale of rewards");
    let mut bar = Progress::new("ppo: scale of rewards", whose.len() * questions.len() * copies, 0);
    let mut scores: Vec<Vec<f32>> = vec![Vec::new(); users.len()];
    let together = (config.rollout_rows.get() / copies).max(1);
    let ask = |(user, prompt): (Option<UserIndex>, usize)| {
        let (number, whose) = (prompt.to_string(), user.map_or("", |user| &users[user.0]));
        let seed = |n: usize| {
            let n = n.to_string();
            let of_base = ["ppo", "scale", &number, &n];
            let name = user.map_or(of_base.to_vec(), |_| vec!["ppo", "scale", whose, &number, &n]);
            run::derive(run.seed(), &name)
        };
        Ask {
            user: user.unwrap_or(UserIndex(0)), // nobody's where the base responds
            prompt,
            turn: prompt,
            ids: questions[prompt].clone(),
            seeds: (0..copies).map(seed).collect(),
        }
    };
    let all: Vec<(Option<UserIndex>, usize)> =
        whose.iter().flat_map(|user| (0..questions.len()).map(|prompt| (*user, prompt))).collect();
    for some in all.chunks(together) {
        let asks: Vec<Ask> = some.iter().copied().map(ask).collect();
        let rollouts = roll_out(lm, tokenizer, reference, &asks, sampling, config.rollout_rows.get())?;
        let rows: Vec<TokenRow> = rollouts.iter().map(|r| r.row.clone()).collect();
        let of_rows: Vec<UserIndex> = rollouts.iter().map(|r| r.user).collect();
        let prefix = Prefix::new(lm, rows, 0..lm.depth(), |_| ())?;
        let asked: Vec<(usize, UserIndex)> = match reference {
            None => UserIndex::all(users.len()).flat_map(|u| (0..of_rows.len()).map(move |row| (row, u))).collect(),
            Some(_) => of_rows.into_iter().enumerate().collect(),
        };
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
