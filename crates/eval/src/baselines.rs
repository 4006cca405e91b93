//! What is predicted without a fitted reward: the majority of the other users on the same pair, and a user's lean to the response shown first.

use std::collections::{BTreeMap, HashMap};

use data::Vote;

fn hash(texts: &[&str]) -> String {
    let mut all = String::new();
    texts.iter().for_each(|t| all += &format!("{}:{t}", t.len()));
    run::hash_bytes(all.as_bytes())[..16].to_owned()
}

/// A vote's prompt and pair, as [`crate::Prediction`] names them: hashes of the prompt, and of the prompt with both responses in whatever order.
pub fn names(vote: &Vote) -> (String, String) {
    let turns: Vec<&str> = vote.prompt.iter().flat_map(|m| [m.role.as_str(), m.content.as_str()]).collect();
    let prompt = hash(&turns);
    let mut answers = [vote.chosen.as_str(), vote.rejected.as_str()];
    answers.sort_unstable();
    let pair = hash(&[&prompt, answers[0], answers[1]]);
    (prompt, pair)
}

/// For every pair of responses, who prefers which. A user's first decided vote on a pair counts.
#[derive(Debug)]
pub struct Crowd<'v>(HashMap<String, BTreeMap<&'v str, bool>>);

impl<'v> Crowd<'v> {
    /// Of all votes, whatever their split.
    pub fn new(votes: &'v [Vote]) -> Self {
        let mut all: HashMap<String, BTreeMap<&str, bool>> = HashMap::new();
        for vote in votes.iter().filter(|v| !v.tie) {
            let low_wins = vote.chosen <= vote.rejected;
            all.entry(names(vote).1).or_default().entry(&vote.user_id).or_insert(low_wins);
        }
        Self(all)
    }

    /// 1 if the majority of the other users agrees with a vote on this `pair`, 0 if it does not; NaN without any or if even.
    pub fn majority(&self, pair: &str, vote: &Vote) -> f64 {
        let others = self.0.get(pair).into_iter().flatten().filter(|(user, _)| **user != vote.user_id);
        let balance: i64 = others.map(|(_, low)| if *low { 1 } else { -1 }).sum();
        let for_chosen = if vote.chosen <= vote.rejected { balance } else { -balance };
        match for_chosen {
            0 => f64::NAN,
            n => f64::from(u8::from(n > 0)),
        }
    }
}

/// The lean `b` of a user to the answer shown first: the mode of `sum log sigmoid(y (a + b)) - b^2 / 2` over training votes, where
/// `a` is r(first) - r(second) and `y` is 1 if the first was chosen and -1 otherwise. A normal prior of deviation 1; Newton.
pub fn lean(votes: &[(f64, bool)]) -> f64 {
    let mut b = 0.0;
    for _ in 0..50 {
        let (mut slope, mut curvature) = (-b, 1.0);
        for (a, first) in votes {
            let p = 1.0 / (1.0 + (-(a + b)).exp());
            slope += f64::from(u8::from(*first)) - p;
            curvature += p * (1.0 - p);
        }
        let step: f64 = slope / curvature;
        b += step;
        if step.abs() < 1e-10 {
            break;
        }
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;
    use data::Split;

    fn vote(user: &str, chosen: &str, rejected: &str, tie: bool) -> Vote {
        Vote {
            user_id: user.into(),
            prompt: vec![text::Message::user("q")],
            chosen: chosen.into(),
            rejected: rejected.into(),
            tie,
            chosen_finished: None,
            rejected_finished: None,
            chosen_first: None,
            weight: 1.0,
            margin: None,
            timestamp: None,
            split: Split::Test,
            source_row: "x:1".into(),
        }
    }

    #[test]
    fn the_majority_is_that_of_the_others() {
        let votes = [
            vote("a", "x", "y", false),
            vote("b", "y", "x", false),
            vote("c", "x", "y", false),
            vote("d", "y", "x", true),
        ];
        let crowd = Crowd::new(&votes);
        let of = |v: &Vote| crowd.majority(&names(v).1, v);
        assert!(of(&votes[0]).is_nan(), "one for, one against");
        assert_eq!(of(&votes[1]), 0.0);
        assert_eq!(of(&vote("e", "x", "y", false)), 1.0);
        assert!(of(&vote("e", "x", "z", false)).is_nan());
        assert_eq!(names(&votes[0]), names(&votes[1]));
    }

    #[test]
    fn a_lean_is_the_posterior_mode() {
        // Four votes without a difference, three for the first: the root of 3 - 4 sigmoid(b) = b.
        let got = lean(&[(0.0, true), (0.0, true), (0.0, true), (0.0, false)]);
        assert!((3.0 - 4.0 / (1.0 + (-got).exp()) - got).abs() < 1e-9 && got > 0.4, "{got}");
        assert_eq!(lean(&[]), 0.0);
        assert!(lean(&[(0.0, true), (0.0, false)]).abs() < 1e-12);
    }
}
