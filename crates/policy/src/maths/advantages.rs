//! How much better an action was than expected: pure functions of rewards and values.

/// Generalised advantage estimation (Schulman et al. 2016, eq. 16) of one response: for each token
/// `A_t = sum_l (gamma lambda)^l (r_{t+l} + gamma V_{t+l+1} - V_{t+l})`, nothing after the last one. Returns are `A_t + V_t`.
pub fn gae(rewards: &[f32], values: &[f32], gamma: f32, lambda: f32) -> Vec<f32> {
    assert_eq!(rewards.len(), values.len(), "a value for every reward");
    let mut out = vec![0.0; rewards.len()];
    let (mut next_value, mut next_advantage) = (0.0, 0.0);
    for t in (0..rewards.len()).rev() {
        let surprise = rewards[t] + gamma * next_value - values[t];
        next_advantage = surprise + gamma * lambda * next_advantage;
        next_value = values[t];
        out[t] = next_advantage;
    }
    out
}

/// REINFORCE leave-one-out (Ahmadian et al. 2024): each of a prompt's scores less the mean of the others'.
pub fn leave_one_out(scores: &[f32]) -> Vec<f32> {
    let (sum, others) = (scores.iter().sum::<f32>(), (scores.len() as f32 - 1.0).max(1.0));
    scores.iter().map(|s| if scores.len() < 2 { 0.0 } else { s - (sum - s) / others }).collect()
}

/// GRPO (Shao et al. 2024): each of a prompt's scores less their mean, over their standard deviation (n - 1, plus 1e-4, as TRL has it).
pub fn group_relative(scores: &[f32]) -> Vec<f32> {
    let n = scores.len() as f32;
    let mean = scores.iter().sum::<f32>() / n;
    let variance = scores.iter().map(|s| (s - mean).powi(2)).sum::<f32>() / (n - 1.0).max(1.0);
    scores.iter().map(|s| (s - mean) / (variance.sqrt() + 1e-4)).collect()
}

/// Numbers scaled to variance 1 (n - 1), and to mean 0 unless the mean is to stay. As TRL's `masked_whiten`: `1e-8` is added to the
/// variance.
pub fn whiten(values: &mut [f32], shift_mean: bool) {
    let n = values.len() as f64;
    if values.len() < 2 {
        return;
    }
    let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let variance = values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let back = if shift_mean { 0.0 } else { mean };
    for value in values {
        *value = ((f64::from(*value) - mean) / (variance + 1e-8).sqrt() + back) as f32;
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;

    fn close(got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-5), "{got:?} {want:?}");
    }

    #[test]
    fn gae_equals_its_sum_written_out() {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(3);
        for (gamma, lambda) in [(1.0f32, 0.95f32), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)] {
            let n = rng.random_range(1..12);
            let rewards: Vec<f32> = (0..n).map(|_| rng.random_range(-1.0..1.0)).collect();
            let values: Vec<f32> = (0..n).map(|_| rng.random_range(-1.0..1.0)).collect();
            let value = |t: usize| values.get(t).copied().unwrap_or(0.0);
            let naive = |t: usize| -> f32 {
                (0..n - t)
                    .map(|l| {
                        let surprise = rewards[t + l] + gamma * value(t + l + 1) - value(t + l);
                        (gamma * lambda).powi(l as i32) * surprise
                    })
                    .sum()
            };
            close(&gae(&rewards, &values, gamma, lambda), &(0..n).map(naive).collect::<Vec<_>>());
        }
        // By hand, gamma 1, lambda 1/2: the last 1 - .5 = .5; before it 0 + .5 - .25 + .25 = .5.
        close(&gae(&[0.0, 1.0], &[0.25, 0.5], 1.0, 0.5), &[0.5, 0.5]);
        // With lambda 1 the return is the sum of what is to come.
        let all = gae(&[1.0, 2.0, 4.0], &[0.5, 0.5, 0.5], 1.0, 1.0);
        close(&all, &[6.5, 5.5, 3.5]);
    }

    #[test]
    fn advantages_within_a_prompt_by_hand() {
        close(&leave_one_out(&[1.0, 2.0, 6.0]), &[-3.0, -1.5, 4.5]);
        close(&leave_one_out(&[5.0]), &[0.0]);
        // Mean 3, deviation sqrt((4 + 1 + 9) / 2) = 2.645751.
        close(&group_relative(&[1.0, 2.0, 6.0]), &[-2.0 / 2.645_851, -1.0 / 2.645_851, 3.0 / 2.645_851]);
        close(&group_relative(&[2.0, 2.0]), &[0.0, 0.0]);
    }

    #[test]
    fn whitening_keeps_the_mean_if_asked() {
        // Mean 2, variance 4 (n - 1).
        let mut values = [0.0, 2.0, 4.0];
        whiten(&mut values, true);
        close(&values, &[-1.0, 0.0, 1.0]);
        let mut values = [0.0, 2.0, 4.0];
        whiten(&mut values, false);
        close(&values, &[1.0, 2.0, 3.0]);
        let mut one = [7.0];
        whiten(&mut one, true);
        close(&one, &[7.0]);
    }
}
