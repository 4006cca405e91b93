//! How far a fitted reward can be believed (P-ShareLoRA eq. C.3): the squared radius of the ball around a user's factors that holds the
//! truth. Who computes rewards in that ball is `reward`.

use serde::{Deserialize, Serialize};

/// How large the ball is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pessimism {
    /// `c4` of eq. C.3: the paper leaves it open, so it is a setting. 0: no pessimism.
    pub constant: f64,
    /// The ball holds the truth with probability `1 - delta`.
    #[serde(default = "five_percent")]
    pub delta: f64,
}

fn five_percent() -> f64 {
    0.05
}

/// What the ball's size depends on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// N: users.
    pub users: usize,
    /// N_p: training votes of a user, on average.
    pub votes: f64,
    /// k: the rank.
    pub rank: usize,
    /// d1, d2: sizes of the shared and of the personal side, summed over adapted layers.
    pub shared_size: usize,
    /// See there.
    pub personal_size: usize,
    /// `sigma_k^2 / N`: how far users reach into the weakest of the k directions; of the layer where it is least.
    pub diversity: f64,
    /// `Sigma_tail`: what the k directions leave out, over all layers. 0 for factors of rank k.
    pub tail: f64,
}

impl Pessimism {
    /// `zeta = c4 sqrt( (log N_G + log 1/delta) / (N N_p nu) + sqrt(Sigma_tail / N) / nu + (k d2 + log(N / delta)) / N_p )` (eq. C.3), with
    /// the bracketing number of shared factors, `log N_G = k (d1 + N d2) log(N N_p)` (section 4). The first term of the equation, how far
    /// the truth is from rank k, is not known and taken to be 0. Infinite where users do not reach into all k directions at all (`diversity` 0), such as
    /// before any training.
    pub fn zeta(&self, spread: &Spread) -> f64 {
        let Spread { users, votes, rank, shared_size, personal_size, diversity, tail } = *spread;
        if self.constant == 0.0 {
            return 0.0;
        }
        if diversity == 0.0 {
            return f64::INFINITY;
        }
        let (n, k, nu) = (users as f64, rank as f64, diversity);
        let all = (n * votes).max(2.0);
        let bracketing = k * (shared_size as f64 + n * personal_size as f64) * all.ln() + (1.0 / self.delta).ln();
        let own = k * personal_size as f64 + (n / self.delta).ln();
        self.constant * (bracketing / (all * nu) + (tail / n).sqrt() / nu + own / votes.max(1.0)).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeta_by_hand() {
        let spread =
            Spread { users: 4, votes: 25.0, rank: 2, shared_size: 10, personal_size: 3, diversity: 0.5, tail: 0.16 };
        let got = Pessimism { constant: 2.0, delta: 0.1 }.zeta(&spread);
        // log N_G = 2 (10 + 12) ln 100 = 202.63, + ln 10; over 100 * .5. sqrt(.16 / 4) / .5 = .4. (6 + ln 40) / 25.
        let bracketing = (44.0 * 100f64.ln() + 10f64.ln()) / 50.0;
        let want = 2.0 * (bracketing + 0.4 + (6.0 + 40f64.ln()) / 25.0).sqrt();
        assert!((got - want).abs() < 1e-12, "{got} {want}");
        let more = Spread { votes: 2500.0, ..spread };
        assert!(Pessimism { constant: 2.0, delta: 0.1 }.zeta(&more) < got);
        assert_eq!(Pessimism { constant: 0.0, delta: 0.1 }.zeta(&spread), 0.0);
        // Users who are all the same tell nothing of the others' directions.
        let nowhere = Spread { diversity: 0.0, tail: 0.0, ..spread };
        assert_eq!(Pessimism { constant: 2.0, delta: 0.1 }.zeta(&nowhere), f64::INFINITY);
        assert_eq!(Pessimism { constant: 0.0, delta: 0.1 }.zeta(&nowhere), 0.0);
    }
}
