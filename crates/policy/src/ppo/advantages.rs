//! From scores to advantages: how much better each token of a round was than expected.

use crate::maths::advantages::{gae, group_relative, leave_one_out, whiten};
use crate::ppo::config::{Method, PpoConfig};
use crate::ppo::rollouts::{Rollout, by_user};

/// Advantages and returns of every response token; 0 where a token was not sampled.
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
            let mut each: Vec<f32> = kl[r].iter().map(|k| -(betas[rollouts[r].user.0] as f32) * k).collect();
            if let Some(last) = each.last_mut() {
                *last += scores[r];
            }
            each
        })
        .collect();
    let of_users = by_user(rollouts);
    let whiten_all = |numbers: &mut [Vec<f32>], shift_mean: bool| {
        for own in of_users.values() {
            let mut flat: Vec<f32> = own.iter().flat_map(|r| numbers[*r].iter().copied()).collect();
            whiten(&mut flat, shift_mean);
            let mut flat = flat.into_iter();
            own.iter().for_each(|r| numbers[*r].iter_mut().for_each(|n| *n = flat.next().expect("as many as before")));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ppo::config::CriticConfig;
    use lm::{TokenRow, UserIndex};

    fn config(method: Method) -> PpoConfig {
        PpoConfig { method, whiten_advantages: false, ..PpoConfig::default() }
    }

    fn critic(config: &PpoConfig) -> CriticConfig {
        config.critic().unwrap().clone()
    }

    fn rollout(user: usize, sampled: usize, finished: bool) -> Rollout {
        let row = TokenRow { ids: vec![0; 3 + sampled], answer_start: 3 };
        let user = UserIndex(user);
        Rollout { user, prompt: 0, turn: 0, row, sampled, finished, text: String::new(), logp: vec![0.0; sampled] }
    }

    #[test]
    fn advantages_by_hand() {
        // Two answers of user 1 to a prompt, of two and one sampled tokens (the second was cut), divergences as below at a weight of 1/2.
        let rollouts = [rollout(1, 2, true), rollout(1, 1, false)];
        let kl = [vec![0.2, 0.4], vec![-0.2]];
        let (scores, betas) = ([1.0, 2.0], [9.0, 0.5]);
        let values = [vec![0.0, 0.5], vec![1.0]];
        let close = |got: &[Vec<f32>], want: [&[f32]; 2]| {
            for (g, w) in got.iter().zip(want) {
                assert_eq!(g.len(), w.len(), "{got:?} {want:?}");
                assert!(g.iter().zip(w).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?} {want:?}");
            }
        };
        // Rewards: -.1, -.2 + 1 = .8; .1 + 2 = 2.1. Sums: .7 and 2.1.
        let (found, _) = advantages(&config(Method::Rloo), &rollouts, &kl, &scores, &betas, &values);
        close(&found, [&[-1.4, -1.4], &[1.4]]);
        let (found, _) = advantages(&config(Method::Grpo), &rollouts, &kl, &scores, &betas, &values);
        let half = 0.7 / (0.98f32.sqrt() + 1e-4);
        close(&found, [&[-half, -half], &[half]]);
        // GAE with lambda 1/2: .8 - .5 = .3; -.1 + .5 - 0 + .15 = .55; 2.1 - 1 = 1.1. Returns add the values.
        let plain = PpoConfig::default();
        let critic = CriticConfig { gamma: 1.0, lambda: 0.5, whiten_rewards: false, ..critic(&plain) };
        let ppo = config(Method::Ppo(critic.clone()));
        let (found, returns) = advantages(&ppo, &rollouts, &kl, &scores, &betas, &values);
        close(&found, [&[0.55, 0.3], &[1.1]]);
        close(&returns, [&[0.55, 0.8], &[2.1]]);
        // Whitened over the user's sampled tokens: mean .65, variance (.01 + .1225 + .2025) / 2 = .1675.
        let whitened = PpoConfig { whiten_advantages: true, ..ppo };
        let (found, _) = advantages(&whitened, &rollouts, &kl, &scores, &betas, &values);
        let s = 0.1675f32.sqrt();
        close(&found, [&[-0.1 / s, -0.35 / s], &[0.45 / s]]);
        // Rewards -.1, .8, 2.1 with variance 1 and their mean kept: advantages of lambda 0 without values are they.
        let critic = CriticConfig { lambda: 0.0, whiten_rewards: true, ..critic };
        let (found, _) =
            advantages(&config(Method::Ppo(critic)), &rollouts, &kl, &scores, &betas, &[vec![0.0; 2], vec![0.0; 1]]);
        let mean = 2.8 / 3.0;
        let s = (((-0.1f32 - mean).powi(2) + (0.8 - mean).powi(2) + (2.1 - mean).powi(2)) / 2.0).sqrt();
        close(&found, [&[(-0.1 - mean) / s + mean, (0.8 - mean) / s + mean], &[(2.1 - mean) / s + mean]]);
    }
}
