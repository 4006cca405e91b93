//! From a reward model's scores to advantages.

use lm::{Lm, Prefix, Sampling, TokenRow};
use problem::Result;
use run::{Progress, Run};
use serde::{Deserialize, Serialize};
use text::Tokenizer;

use crate::advantages::{gae, group_relative, leave_one_out, whiten};
use crate::ppo_config::{Method, PpoConfig, wrong};
use crate::rollouts::{Ask, Rollout, roll_out};

/// Rewards of rows of a [`Prefix`], for (row, index of the user): means and standard errors. Whoever knows reward models passes it in.
pub type Rewards<'a> = dyn FnMut(&Prefix, &[(usize, usize)]) -> problem::Result<Vec<(f32, f32)>> + 'a;

/// A user's scale of rewards: calibrated ones are `(reward - mean) / deviation`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scale {
    /// On the base's answers.
    pub mean: f32,
    /// On the base's answers.
    pub deviation: f32,
}

/// Answers of the base to every prompt, scored for every user: mean 0 and variance 1 come from here.
pub(crate) fn calibrate(
    config: &PpoConfig,
    lm: &Lm,
    tokenizer: &Tokenizer,
    questions: &[Vec<i64>],
    users: &[String],
    sampling: &Sampling,
    rewards: &mut Rewards,
    run: &Run,
) -> Result<Vec<Scale>> {
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
                user: 0,
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
        let asked: Vec<(usize, usize)> = (0..users.len()).flat_map(|u| (0..count).map(move |row| (row, u))).collect();
        for ((_, user), (mean, _)) in asked.iter().zip(rewards(&prefix, &asked)?) {
            scores[*user].push(mean);
        }
        bar.advance(some.len() * copies, "");
    }
    let scale = |(user, scores): (&String, Vec<f32>)| {
        let n = scores.len() as f32;
        let mean = scores.iter().sum::<f32>() / n;
        let deviation = (scores.iter().map(|s| (s - mean).powi(2)).sum::<f32>() / (n - 1.0).max(1.0)).sqrt();
        if deviation > 0.0 && deviation.is_finite() {
            return Ok(Scale { mean, deviation });
        }
        let place = format!("rewards of the base's answers for `{user}`");
        Err(wrong(place, "numbers that differ", format!("a deviation of {deviation}"), "fit the reward model again"))
    };
    users.iter().zip(scores).map(scale).collect()
}

/// The calibrated score of an answer: `(mean - caution * error - m) / s`, clipped, less what an unfinished answer loses; below all of
/// them if the guard does not let it pass.
pub(crate) fn score(config: &PpoConfig, scale: Scale, (mean, error): (f32, f32), finished: bool, passes: bool) -> f32 {
    let terms = &config.reward;
    let (clip, penalty) = (terms.clip as f32, terms.missing_end_penalty as f32);
    if !passes {
        return -clip - penalty - 1.0;
    }
    let careful = if terms.caution == 0.0 { mean } else { mean - terms.caution as f32 * error };
    let calibrated = (careful - scale.mean) / scale.deviation;
    // A NaN stays one: `clamp` keeps it.
    calibrated.clamp(-clip, clip) - if finished { 0.0 } else { penalty }
}

/// Advantages and returns of every answer token; 0 where a token was not sampled.
pub(crate) fn advantages(
    config: &PpoConfig,
    rollouts: &[Rollout],
    kl: &[Vec<f32>],
    scores: &[f32],
    betas: &[f64],
    values: &[Vec<f32>],
) -> (Vec<Vec<f32>>, Vec<Vec<f32>>) {
    let mut rewards: Vec<Vec<f32>> = (0..rollouts.len())
        .map(|r| {
            let mut each: Vec<f32> = kl[r].iter().map(|k| -(betas[rollouts[r].user] as f32) * k).collect();
            if let Some(last) = each.last_mut() {
                *last += scores[r];
            }
            each
        })
        .collect();
    let mut users: Vec<usize> = rollouts.iter().map(|r| r.user).collect();
    users.dedup();
    let of = |u: usize| (0..rollouts.len()).filter(move |r| rollouts[*r].user == u);
    let whiten_all = |numbers: &mut [Vec<f32>], shift_mean: bool| {
        for u in &users {
            let mut flat: Vec<f32> = of(*u).flat_map(|r| numbers[r].iter().copied()).collect();
            whiten(&mut flat, shift_mean);
            let mut flat = flat.into_iter();
            of(*u).for_each(|r| numbers[r].iter_mut().for_each(|n| *n = flat.next().expect("as many as before")));
        }
    };
    let mut returns = vec![Vec::new(); rollouts.len()];
    let mut out: Vec<Vec<f32>> = match &config.method {
        Method::Ppo(critic) => {
            if critic.whiten_rewards {
                whiten_all(&mut rewards, false);
            }
            let each = |r: usize| gae(&rewards[r], &values[r][..rewards[r].len()], critic.gamma, critic.lambda);
            let found: Vec<Vec<f32>> = (0..rollouts.len()).map(each).collect();
            for (r, advantages) in found.iter().enumerate() {
                returns[r] = advantages.iter().zip(&values[r]).map(|(a, v)| a + v).collect();
            }
            found
        }
        Method::Rloo | Method::Grpo => {
            let mut found = vec![Vec::new(); rollouts.len()];
            for some in (0..rollouts.len()).collect::<Vec<_>>().chunks(config.samples_per_prompt.get()) {
                let totals: Vec<f32> = some.iter().map(|r| rewards[*r].iter().sum()).collect();
                let compared =
                    if config.method == Method::Rloo { leave_one_out(&totals) } else { group_relative(&totals) };
                some.iter().zip(compared).for_each(|(r, a)| found[*r] = vec![a; rewards[*r].len()]);
            }
            found
        }
    };
    if config.whiten_advantages {
        whiten_all(&mut out, true);
    }
    for (r, rollout) in rollouts.iter().enumerate() {
        out[r].resize(rollout.row.answer_tokens(), 0.0);
        returns[r].resize(rollout.row.answer_tokens(), 0.0);
    }
    (out, returns)
}

/// Share of the variance of a user's returns that the critic expected; none without a critic or variance.
pub(crate) fn explained(
    rows: &[usize],
    rollouts: &[Rollout],
    values: &[Vec<f32>],
    returns: &[Vec<f32>],
) -> Option<f64> {
    let pairs: Vec<(f64, f64)> = rows
        .iter()
        .flat_map(|r| (0..rollouts[*r].sampled).map(move |t| (f64::from(returns[*r][t]), f64::from(values[*r][t]))))
        .collect();
    let variance = |all: &mut dyn Iterator<Item = f64>| {
        let all: Vec<f64> = all.collect();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        all.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / all.len() as f64
    };
    let whole = variance(&mut pairs.iter().map(|p| p.0));
    (whole > 0.0).then(|| 1.0 - variance(&mut pairs.iter().map(|(r, v)| r - v)) / whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lm::TokenRow;

    fn config(method: Method) -> PpoConfig {
        let text = include_str!("../../../configs/ppo/per-user.toml");
        let config: PpoConfig = toml::from_str(text).unwrap();
        PpoConfig { method, samples_per_prompt: 2.try_into().unwrap(), whiten_advantages: false, ..config }
    }

    fn critic(config: &PpoConfig) -> crate::CriticConfig {
        config.critic().unwrap().clone()
    }

    fn rollout(user: usize, sampled: usize, finished: bool) -> Rollout {
        let tokens = sampled + usize::from(!finished); // the stop token is always there, and was sampled if it is finished
        let row = TokenRow { ids: vec![0; 3 + tokens], answer_start: 3 };
        Rollout { user, prompt: 0, turn: 0, row, sampled, finished, text: String::new(), logp: vec![0.0; sampled] }
    }

    #[test]
    fn scores_are_calibrated_clipped_punished_and_floored() {
        let mut config = config(Method::Rloo);
        (config.reward.clip, config.reward.missing_end_penalty) = (3.0, 0.5);
        let scale = Scale { mean: 1.0, deviation: 2.0 };
        let of = |config: &PpoConfig, mean: f32, finished: bool, passes: bool| {
            score(config, scale, (mean, 1.0), finished, passes)
        };
        assert_eq!(of(&config, 5.0, true, true), 2.0);
        assert_eq!(of(&config, 5.0, false, true), 1.5);
        assert_eq!(of(&config, 99.0, true, true), 3.0);
        // The worst that a reward can say, and what the guard says.
        assert_eq!(of(&config, -99.0, false, true), -3.5);
        assert_eq!(of(&config, 99.0, true, false), -4.5);
        assert!(of(&config, f32::NAN, true, true).is_nan());
        config.reward.caution = 2.0; // standard errors, before the scale
        assert_eq!(of(&config, 5.0, true, true), 1.0);
    }

    #[test]
    fn advantages_by_hand() {
        // Two answers of user 1 to a prompt, of two and one sampled tokens (the second was cut), divergences as below at a weight of 1/2.
        let rollouts = [rollout(1, 2, true), rollout(1, 1, false)];
        let kl = [vec![0.2, 0.4], vec![-0.2]];
        let (scores, betas) = ([1.0, 2.0], [9.0, 0.5]);
        let values = [vec![0.0, 0.5], vec![1.0, 7.0]];
        let close = |got: &[Vec<f32>], want: [&[f32]; 2]| {
            for (g, w) in got.iter().zip(want) {
                assert!(g.len() == w.len() && g.iter().zip(w).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?} {want:?}");
            }
        };
        // Rewards: -.1, -.2 + 1 = .8; .1 + 2 = 2.1. Sums: .7 and 2.1.
        let (found, _) = advantages(&config(Method::Rloo), &rollouts, &kl, &scores, &betas, &values);
        close(&found, [&[-1.4, -1.4], &[1.4, 0.0]]);
        let (found, _) = advantages(&config(Method::Grpo), &rollouts, &kl, &scores, &betas, &values);
        let half = 0.7 / (0.98f32.sqrt() + 1e-4);
        close(&found, [&[-half, -half], &[half, 0.0]]);
        // GAE with lambda 1/2: .8 - .5 = .3; -.1 + .5 - 0 + .15 = .55; 2.1 - 1 = 1.1. Returns add the values.
        let plain: PpoConfig = toml::from_str(include_str!("../../../configs/ppo/per-user.toml")).unwrap();
        let critic = crate::CriticConfig { gamma: 1.0, lambda: 0.5, whiten_rewards: false, ..critic(&plain) };
        let ppo = config(Method::Ppo(critic.clone()));
        let (found, returns) = advantages(&ppo, &rollouts, &kl, &scores, &betas, &values);
        close(&found, [&[0.55, 0.3], &[1.1, 0.0]]);
        close(&returns, [&[0.55, 0.8], &[2.1, 0.0]]);
        // Whitened over the user's sampled tokens: mean .65, variance (.01 + .1225 + .2025) / 2 = .1675.
        let whitened = PpoConfig { whiten_advantages: true, ..ppo };
        let (found, _) = advantages(&whitened, &rollouts, &kl, &scores, &betas, &values);
        let s = 0.1675f32.sqrt();
        close(&found, [&[-0.1 / s, -0.35 / s], &[0.45 / s, 0.0]]);
        // Rewards -.1, .8, 2.1 with variance 1 and their mean kept: advantages of lambda 0 without values are they.
        let critic = crate::CriticConfig { lambda: 0.0, whiten_rewards: true, ..critic };
        let (found, _) =
            advantages(&config(Method::Ppo(critic)), &rollouts, &kl, &scores, &betas, &[vec![0.0; 2], vec![0.0; 2]]);
        let mean = 2.8 / 3.0;
        let s = (((-0.1f32 - mean).powi(2) + (0.8 - mean).powi(2) + (2.1 - mean).powi(2)) / 2.0).sqrt();
        close(&found, [&[(-0.1 - mean) / s + mean, (0.8 - mean) / s + mean], &[(2.1 - mean) / s + mean, 0.0]]);
    }
}
