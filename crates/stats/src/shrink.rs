//! Many small studies, one for each user: what is known of each when all are looked at together.

use serde::{Deserialize, Serialize};

/// A user's mean with what all users say about it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shrunk {
    /// The user's own mean.
    pub own: f64,
    /// Votes behind it.
    pub votes: usize,
    /// Posterior mean.
    pub mean: f64,
    /// Posterior standard deviation.
    pub deviation: f64,
}

/// All users' means and how they spread.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Population {
    /// Mean over users.
    pub mean: f64,
    /// Standard deviation between users, beyond what the votes' noise makes; 0 if there is none to see.
    pub between: f64,
    /// In the order of the input; none for a user without votes.
    pub users: Vec<Option<Shrunk>>,
}

/// Empirical Bayes with a normal prior: each user's votes have a common variance around the user's mean (pooled over users),
/// users' means vary normally around a common one, both estimated by moments (DerSimonian and Laird 1986, eqs. 8-9). `None`
/// unless two users have votes and one has several.
pub fn shrink(values: &[Vec<f64>]) -> Option<Population> {
    let there: Vec<&Vec<f64>> = values.iter().filter(|v| !v.is_empty()).collect();
    let freedom: usize = there.iter().map(|v| v.len() - 1).sum();
    if there.len() < 2 || freedom == 0 {
        return None;
    }
    let mean_of = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let squares: f64 = there.iter().map(|v| v.iter().map(|x| (x - mean_of(v)).powi(2)).sum::<f64>()).sum();
    // Where no vote differs from its user's mean, a vote is taken to be worth a millionth of noise.
    let within = (squares / freedom as f64).max(1e-6);
    let weights: Vec<f64> = there.iter().map(|v| v.len() as f64 / within).collect();
    let total: f64 = weights.iter().sum();
    let fixed = there.iter().zip(&weights).map(|(v, w)| w * mean_of(v)).sum::<f64>() / total;
    let q: f64 = there.iter().zip(&weights).map(|(v, w)| w * (mean_of(v) - fixed).powi(2)).sum();
    let scale = total - weights.iter().map(|w| w * w).sum::<f64>() / total;
    let between = ((q - (there.len() - 1) as f64) / scale).max(0.0); // variance
    let (mut sum, mut weight) = (0.0, 0.0);
    for v in &there {
        let w = 1.0 / (between + within / v.len() as f64);
        (sum, weight) = (sum + w * mean_of(v), weight + w);
    }
    let mean = sum / weight;
    let user = |v: &Vec<f64>| {
        (!v.is_empty()).then(|| {
            let (own, noise) = (mean_of(v), within / v.len() as f64);
            let trust = between / (between + noise);
            // The common mean's own uncertainty reaches those who lean on it.
            let variance = trust * noise + (1.0 - trust).powi(2) / weight;
            Shrunk { own, votes: v.len(), mean: mean + trust * (own - mean), deviation: variance.sqrt() }
        })
    };
    Some(Population { mean, between: between.sqrt(), users: values.iter().map(user).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    #[test]
    fn users_who_do_not_differ_all_get_the_common_mean() {
        let values = vec![vec![1.0, -1.0, 1.0, -1.0], vec![], vec![1.0, -1.0], vec![-1.0, 1.0]];
        let got = shrink(&values).unwrap();
        assert_eq!((got.mean, got.between), (0.0, 0.0));
        assert!(got.users[1].is_none() && got.users[0].unwrap().mean == 0.0);
        // Variance 8 / (3 + 1 + 1) a vote, 8 votes.
        assert!((got.users[0].unwrap().deviation - (1.6f64 / 8.0).sqrt()).abs() < 1e-12);
        assert!(shrink(&[vec![1.0, 2.0]]).is_none() && shrink(&[vec![1.0], vec![2.0]]).is_none());
    }

    #[test]
    fn it_finds_the_spread_and_beats_users_own_means() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let mut normal = move || (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
        let truth: Vec<f64> = (0..400).map(|_| 0.3 + 0.5 * normal()).collect();
        let values: Vec<Vec<f64>> =
            truth.iter().enumerate().map(|(u, t)| (0..3 + u % 20).map(|_| t + 2.0 * normal()).collect()).collect();
        let got = shrink(&values).unwrap();
        assert!((got.mean - 0.3).abs() < 0.1 && (got.between - 0.5).abs() < 0.12, "{} {}", got.mean, got.between);
        let error = |f: fn(&Shrunk) -> f64| {
            truth.iter().zip(&got.users).map(|(t, u)| (f(u.as_ref().unwrap()) - t).powi(2)).sum::<f64>()
        };
        assert!(error(|u| u.mean) < 0.6 * error(|u| u.own));
        let covered = truth.iter().zip(&got.users).filter(|(t, u)| {
            let u = u.as_ref().unwrap();
            (**t - u.mean).abs() < 1.2816 * u.deviation
        });
        let share = covered.count() as f64 / truth.len() as f64;
        assert!((share - 0.8).abs() < 0.06, "{share}");
    }
}
