//! The likelihood of a vote given two rewards, as pure functions.
//!
//! Bradley-Terry, `P(chosen) = sigmoid(d)` with `d = r(chosen) - r(rejected)` (P-ShareLoRA eq. 3.3), and what voters do beyond
//! it: ties (Rao and Kupper 1967; Davidson 1970), slips of the hand (a lapse rate, Wichmann and Hill 2001), known margins
//! (Touvron et al. 2023, eq. 2), and rewards that float away from zero (centring, Eisenstein et al. 2023, eq. 3).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// What a tie says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Ties {
    /// Nothing: tied votes are left out, and counted.
    #[default]
    LeaveOut,
    /// A difference below a threshold `eta` is not seen: `P(chosen) = sigmoid(d - eta)`.
    RaoKupper,
    /// `P(tie)` is in proportion to the geometric mean of both answers' strengths, times `nu`.
    Davidson,
}

/// Votes in which the voter did not decide by the answers, but by chance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Lapse {
    /// A share that is known, the same for all.
    Share(f64),
    /// A share of every user's own, learnt from this start.
    PerUser {
        /// Between 0 and 1, both excluded.
        per_user: f64,
    },
}

impl Default for Lapse {
    fn default() -> Self {
        Self::Share(0.0)
    }
}

/// How much a vote counts in the pooled loss. Where everything is personal, every user's votes are averaged alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Weighting {
    /// Every vote once, as in the paper.
    #[default]
    ByRow,
    /// Every user once, however many votes they have.
    ByUser,
    /// A user with `n` votes counts `n` to this power: 1 is by row, 0 by user.
    Temperature(f64),
}

/// As written in `[objective]` of a reward stage. Everything left out is as in the paper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Objective {
    /// What a tie says.
    pub ties: Ties,
    /// Share of decided votes that are taken to be the wrong way round (conservative Bradley-Terry).
    pub label_smoothing: f64,
    /// Votes by chance.
    pub lapse: Lapse,
    /// Is the difference of rewards to exceed the vote's `margin`, where it has one?
    pub margin: bool,
    /// Times the squared sum of a vote's two rewards, added to the loss. TRL: `center_rewards_coefficient`.
    pub centering: f64,
    /// How much a vote counts.
    pub weighting: Weighting,
    /// Pull of personal factors towards their mean over users: each step of a user moves their factors by `learning rate x
    /// shrinkage` of the way. A decoupled normal prior, as decoupled as AdamW's decay (Loshchilov and Hutter 2019). 0: none.
    pub shrinkage: f64,
}

impl Objective {
    /// What is wrong with its numbers: (key, expected, found).
    pub(crate) fn problem(&self) -> Option<(&'static str, &'static str, f64)> {
        let Self { ties: _, label_smoothing, lapse, margin: _, centering, weighting, shrinkage } = *self;
        let lapse_ok = match lapse {
            Lapse::Share(share) => (0.0..1.0).contains(&share),
            Lapse::PerUser { per_user } => per_user > 0.0 && per_user < 1.0,
        };
        let lapse = match lapse {
            Lapse::Share(share) | Lapse::PerUser { per_user: share } => share,
        };
        let finite = |x: f64| x >= 0.0 && x.is_finite();
        if !(0.0..0.5).contains(&label_smoothing) {
            Some(("label_smoothing", "a share from 0 to below one half", label_smoothing))
        } else if !lapse_ok {
            Some(("lapse", "a share from 0 to below 1, above 0 where it is learnt", lapse))
        } else if !finite(centering) {
            Some(("centering", "a number from 0", centering))
        } else if !finite(shrinkage) {
            Some(("shrinkage", "a number from 0", shrinkage))
        } else if let Weighting::Temperature(t) = weighting
            && !finite(t)
        {
            Some(("weighting", "a power from 0", t))
        } else {
            None
        }
    }
}

/// `log(exp(a) + exp(b))`
fn log_add(a: &Tensor, b: &Tensor) -> Tensor {
    a.logaddexp(b)
}

/// Log-probabilities of (first better, second better, tie), each `[P]`, for differences `d` `[P]` of rewards. `tie` `[P]` is the
/// raw tie parameter of each vote's user: `eta = softplus(tie)`, `nu = exp(tie)`. Without ties the third is none.
pub fn outcomes(d: &Tensor, ties: Ties, tie: Option<&Tensor>) -> (Tensor, Tensor, Option<Tensor>) {
    match (ties, tie) {
        (Ties::RaoKupper, Some(tie)) => {
            let eta = tie.softplus();
            let (win, lose) = ((d - &eta).log_sigmoid(), (-d - &eta).log_sigmoid());
            // P(tie) = (e^2eta - 1) P(win) P(lose); log(e^2eta - 1) = 2 eta + log(1 - e^-2eta).
            let even = &eta * 2.0 + (-(&eta * -2.0).exp()).log1p() + &win + &lose;
            (win, lose, Some(even))
        }
        (Ties::Davidson, Some(tie)) => {
            let (up, down) = (d * 0.5, d * -0.5);
            let total = log_add(&log_add(&up, &down), tie);
            (up - &total, down - &total, Some(tie - total))
        }
        _ => (d.log_sigmoid(), (-d).log_sigmoid(), None),
    }
}

/// Where the raw tie parameter starts: two equal answers are tied with probability `share`.
pub(crate) fn tie_start(ties: Ties, share: f64) -> f64 {
    let share = share.clamp(0.01, 0.9);
    match ties {
        // tanh(eta / 2) = share; softplus(raw) = eta
        Ties::RaoKupper => (2.0 * share.atanh()).exp_m1().ln(),
        // nu / (2 + nu) = share; exp(raw) = nu
        Ties::Davidson => (2.0 * share / (1.0 - share)).ln(),
        Ties::LeaveOut => 0.0,
    }
}

/// A batch of votes as the likelihood sees it.
#[derive(Debug)]
pub struct Judged<'a> {
    /// Rewards of (chosen, rejected), of a tie (first, second), `[P, 2]`.
    pub rewards: &'a Tensor,
    /// 1 for a tie, 0 for a decided vote, `[P]`.
    pub tied: &'a Tensor,
    /// Margins, 0 where there is none, `[P]`.
    pub margins: &'a Tensor,
    /// Each vote's raw tie parameter, `[P]`.
    pub tie: Option<&'a Tensor>,
    /// Each vote's lapse rate, `[P]`.
    pub lapse: Option<&'a Tensor>,
}

impl Objective {
    /// Each vote's loss `[P]`, float32, before weighting.
    pub fn losses(&self, votes: &Judged) -> Tensor {
        let Judged { rewards, tied, margins, tie, lapse } = *votes;
        let d = rewards.select(1, 0) - rewards.select(1, 1);
        let d = if self.margin { d - margins } else { d };
        let (win, lose, even) = outcomes(&d, self.ties, tie);
        let by_chance = |logp: &Tensor| match lapse {
            Some(rate) => {
                let kinds = if even.is_some() { 3.0 } else { 2.0 };
                log_add(&(logp + (-rate).log1p()), &(rate / kinds).log())
            }
            None => logp.shallow_clone(),
        };
        let (win, lose) = (by_chance(&win), by_chance(&lose));
        let smooth = self.label_smoothing;
        let decided = if smooth > 0.0 { win * (1.0 - smooth) + lose * smooth } else { win };
        let logp = match &even {
            // `where` and not a product: a tie's log-probability may be -inf where nobody tied.
            Some(even) => by_chance(even).where_self(&tied.gt(0.5), &decided),
            None => decided,
        };
        if self.centering > 0.0 {
            return rewards.sum_dim_intlist(1, false, Kind::Float).square() * self.centering - logp;
        }
        -logp
    }
}

/// P(chosen is better), given that the user decided, of a difference of rewards; `tie` is the raw tie parameter.
pub(crate) fn decided_probability(d: f64, ties: Ties, tie: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match ties {
        Ties::LeaveOut | Ties::Davidson => sigmoid(d),
        Ties::RaoKupper => {
            let eta = tie.exp().ln_1p();
            let (win, lose) = (sigmoid(d - eta), sigmoid(-d - eta));
            if win + lose > 0.0 { win / (win + lose) } else { 0.5 }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(t: &Tensor) -> Vec<f64> {
        Vec::try_from(t.to_kind(Kind::Double)).unwrap()
    }

    fn close(got: &Tensor, want: &[f64]) {
        let got = numbers(got);
        assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{got:?} and not {want:?}");
    }

    #[test]
    fn three_outcomes_by_hand() {
        let (d, raw) = (1.2f64, 0.3f64);
        let t = |x: f64| Tensor::from_slice(&[x]);
        // Rao-Kupper: pi = e^d, 1; theta = e^eta, eta = ln(1 + e^raw). P = pi_i / (pi_i + theta pi_j).
        let (pi, theta) = (d.exp(), 1.0 + raw.exp());
        let (win, lose) = (pi / (pi + theta), 1.0 / (1.0 + theta * pi));
        let (a, b, c) = outcomes(&t(d), Ties::RaoKupper, Some(&t(raw)));
        close(&a.exp(), &[win]);
        close(&b.exp(), &[lose]);
        close(&c.unwrap().exp(), &[1.0 - win - lose]);
        // Davidson: pi_i / (pi_i + pi_j + nu sqrt(pi_i pi_j)).
        let nu = raw.exp();
        let total = pi + 1.0 + nu * pi.sqrt();
        let (a, b, c) = outcomes(&t(d), Ties::Davidson, Some(&t(raw)));
        close(&a.exp(), &[pi / total]);
        close(&b.exp(), &[1.0 / total]);
        close(&c.unwrap().exp(), &[nu * pi.sqrt() / total]);
        // Two equal answers are tied as often as asked for.
        for ties in [Ties::RaoKupper, Ties::Davidson] {
            let (_, _, tie) = outcomes(&t(0.0), ties, Some(&t(tie_start(ties, 0.22))));
            close(&tie.unwrap().exp(), &[0.22]);
        }
        // Far out nothing overflows.
        let (a, b, c) = outcomes(&t(100.0), Ties::RaoKupper, Some(&t(raw)));
        assert!([&a, &b, &c.unwrap()].iter().all(|x| numbers(x)[0].is_finite()));
    }

    #[test]
    fn losses_by_hand() {
        let rewards = Tensor::from_slice(&[1.0f32, 0.2, -0.5, 0.5]).view([2, 2]);
        let (decided, ties) = (Tensor::from_slice(&[0.0f32, 0.0]), Tensor::from_slice(&[0.0f32, 1.0]));
        let margins = Tensor::from_slice(&[0.3f32, 0.0]);
        let judged = |tied| Judged { rewards: &rewards, tied, margins: &margins, tie: None, lapse: None };
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let plain = Objective::default();
        close(&plain.losses(&judged(&decided)), &[-sigmoid(0.8).ln(), -sigmoid(-1.0).ln()]);
        let margin = Objective { margin: true, ..plain };
        close(&margin.losses(&judged(&decided)), &[-sigmoid(0.5).ln(), -sigmoid(-1.0).ln()]);
        let smooth = Objective { label_smoothing: 0.1, ..plain };
        let of = |d: f64| -0.9 * sigmoid(d).ln() - 0.1 * sigmoid(-d).ln();
        close(&smooth.losses(&judged(&decided)), &[of(0.8), of(-1.0)]);
        let centred = Objective { centering: 0.01, ..plain };
        close(&centred.losses(&judged(&decided)), &[0.01 * 1.44 - sigmoid(0.8).ln(), -sigmoid(-1.0).ln()]);
        let rate = Tensor::from_slice(&[0.2f32, 0.2]);
        let lapsed = plain.losses(&Judged { lapse: Some(&rate), ..judged(&decided) });
        close(&lapsed, &[-(0.8 * sigmoid(0.8) + 0.1).ln(), -(0.8 * sigmoid(-1.0) + 0.1).ln()]);
        // A tie is judged by its own outcome: nu = 1, e^(1/2) + e^(-1/2) + 1.
        let raw = Tensor::from_slice(&[0.0f32, 0.0]);
        let davidson = Objective { ties: Ties::Davidson, ..plain };
        let got = davidson.losses(&Judged { tie: Some(&raw), ..judged(&ties) });
        let total = |d: f64| (d / 2.0).exp() + (-d / 2.0).exp() + 1.0;
        close(&got, &[total(0.8).ln() - 0.4, total(1.0).ln()]);
    }

    #[test]
    fn a_decided_vote_forgets_the_ties() {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        assert_eq!(decided_probability(0.7, Ties::Davidson, 0.3), sigmoid(0.7));
        let (win, lose) = (sigmoid(0.7 - 2f64.ln()), sigmoid(-0.7 - 2f64.ln()));
        let got = decided_probability(0.7, Ties::RaoKupper, 0.0); // eta = ln 2
        assert!((got - win / (win + lose)).abs() < 1e-12);
    }

    #[test]
    fn impossible_numbers_are_told() {
        let with = |change: fn(&mut Objective)| {
            let mut objective = Objective::default();
            change(&mut objective);
            objective.problem().map(|(key, _, _)| key)
        };
        assert_eq!(with(|_| ()), None);
        assert_eq!(with(|o| o.label_smoothing = 0.5), Some("label_smoothing"));
        assert_eq!(with(|o| o.lapse = Lapse::PerUser { per_user: 0.0 }), Some("lapse"));
        assert_eq!(with(|o| o.centering = f64::NAN), Some("centering"));
        assert_eq!(with(|o| o.shrinkage = -1.0), Some("shrinkage"));
        assert_eq!(with(|o| o.weighting = Weighting::Temperature(-0.5)), Some("weighting"));
    }
}
