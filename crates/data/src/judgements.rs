//! Votes on the same two answers, brought together: what repeats, what contradicts itself, and how far people agree.

use crate::draft::{Choice, Draft};
use crate::spill::Record;
use crate::split::texts_key;

/// Who said what of which two answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Judgement {
    /// The prompt and both answers, in whatever order they were shown.
    pub(crate) pair: u128,
    pub(crate) user: u64,
    /// 0: the answer that sorts first is better, 1: the other, 2: tie.
    pub(crate) better: u8,
    /// Was the answer that sorts first shown first?
    pub(crate) in_order: bool,
    pub(crate) unit: u32,
    pub(crate) row: u32,
}

impl Judgement {
    pub(crate) fn of(draft: &Draft, unit: usize, row: usize) -> Self {
        let in_order = draft.first <= draft.second;
        let (low, high) = if in_order { (draft.first, draft.second) } else { (draft.second, draft.first) };
        let turns = draft.turns.iter().flat_map(|(role, content)| [*role, *content]);
        let better = match draft.choice {
            Choice::Tie => 2,
            Choice::Second => u8::from(in_order),
            Choice::First | Choice::Unordered => u8::from(!in_order),
        };
        Self {
            pair: texts_key(0, [low, high].into_iter().chain(turns)),
            user: crate::plan::user_key(&draft.user),
            better,
            in_order,
            unit: unit as u32,
            row: row as u32,
        }
    }
}

impl Record for Judgement {
    const SIZE: usize = 34;

    fn hash(&self) -> u64 {
        self.pair as u64
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.pair.to_le_bytes());
        out.extend_from_slice(&self.user.to_le_bytes());
        out.push(self.better);
        out.push(u8::from(self.in_order));
        out.extend_from_slice(&self.unit.to_le_bytes());
        out.extend_from_slice(&self.row.to_le_bytes());
    }

    fn read(b: &[u8]) -> Self {
        let four = |at: usize| u32::from_le_bytes(b[at..at + 4].try_into().expect("four bytes"));
        Self {
            pair: u128::from_le_bytes(b[..16].try_into().expect("sixteen bytes")),
            user: u64::from_le_bytes(b[16..24].try_into().expect("eight bytes")),
            better: b[24],
            in_order: b[25] == 1,
            unit: four(26),
            row: four(30),
        }
    }
}

/// How far users agree on pairs that several of them judged. A user's first vote on a pair counts.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Agreement {
    /// Pairs that at least two users judged.
    pub pairs: usize,
    /// Votes on these.
    pub votes: usize,
    /// Share of pairs of votes on the same answers that say the same, ties being an answer of their own.
    pub observed: Option<f64>,
    /// Krippendorff's alpha for nominal data: 1 full agreement, 0 what chance gives. (Krippendorff 2011, "Computing Krippendorff's
    /// Alpha-Reliability".)
    pub alpha: Option<f64>,
    /// Share of decided votes that side with the majority of the other users' decided votes on the pair (even ones left out).
    pub with_majority: Option<f64>,
}

/// Sums that give [`Agreement`].
#[derive(Debug, Default)]
pub(crate) struct Sums {
    pairs: usize,
    votes: usize,
    /// Agreeing pairs of votes over (n - 1), summed; n summed.
    agreeing: f64,
    same: f64,
    possible: f64,
    totals: [f64; 3],
    sided: usize,
    with: usize,
}

impl Sums {
    /// Adds the votes on one pair: how many said 0, 1, tie.
    pub(crate) fn add(&mut self, counts: [usize; 3]) {
        let n: usize = counts.iter().sum();
        if n < 2 {
            return;
        }
        self.pairs += 1;
        self.votes += n;
        let agreeing: usize = counts.iter().map(|c| c * c.saturating_sub(1)).sum();
        self.same += agreeing as f64;
        self.possible += (n * (n - 1)) as f64;
        self.agreeing += agreeing as f64 / (n - 1) as f64;
        self.totals.iter_mut().zip(counts).for_each(|(t, c)| *t += c as f64);
        for (own, other) in [(counts[0], counts[1]), (counts[1], counts[0])] {
            // Each of `own` sees own - 1 on its side and `other` on the other.
            if own > 0 && own - 1 != other {
                self.sided += own;
                self.with += if own > other { own } else { 0 };
            }
        }
    }

    pub(crate) fn agreement(&self) -> Agreement {
        let n = self.votes as f64;
        let share = |a: f64, b: f64| (b > 0.0).then(|| a / b);
        // alpha = 1 - D_o / D_e, with both disagreements as shares of the votes.
        let expected = 1.0 - self.totals.iter().map(|t| t * (t - 1.0)).sum::<f64>() / (n * (n - 1.0));
        let observed = 1.0 - self.agreeing / n;
        Agreement {
            pairs: self.pairs,
            votes: self.votes,
            observed: share(self.same, self.possible),
            alpha: (n > 1.0 && expected > 0.0).then(|| 1.0 - observed / expected),
            with_majority: share(self.with as f64, self.sided as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_by_hand() {
        // Krippendorff's example with two observers and binary data, 10 units (2011, section B): alpha = 0.095.
        let a = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0];
        let b = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0];
        let mut sums = Sums::default();
        for (x, y) in a.into_iter().zip(b) {
            let mut counts = [0; 3];
            counts[x] += 1;
            counts[y] += 1;
            sums.add(counts);
        }
        let agreement = sums.agreement();
        assert!((agreement.alpha.unwrap() - 0.095).abs() < 5e-4, "{agreement:?}");
        assert_eq!((agreement.pairs, agreement.votes, agreement.observed), (10, 20, Some(0.6)));

        // Three against one: each of the three sees 2 : 1 with them, the one sees 3 against.
        let mut sums = Sums::default();
        sums.add([3, 1, 0]);
        sums.add([1, 0, 0]); // a single vote says nothing
        let agreement = sums.agreement();
        assert_eq!((agreement.pairs, agreement.with_majority, agreement.observed), (1, Some(0.75), Some(0.5)));
        assert_eq!(Sums::default().agreement().alpha, None);
    }

    #[test]
    fn the_same_judgement_in_another_order_is_the_same() {
        let draft = |first: &'static str, second, choice| Draft {
            user: "u".into(),
            turns: smallvec::smallvec![("user", "q")],
            first,
            second,
            choice,
            finished: [None; 2],
            weight: 1.0,
            margin: None,
            timestamp: None,
            split: None,
            group: None,
        };
        let one = Judgement::of(&draft("a", "b", Choice::Second), 3, 4);
        let two = Judgement::of(&draft("b", "a", Choice::First), 3, 4);
        assert_eq!((one.pair, one.better), (two.pair, two.better));
        assert_eq!((one.better, one.in_order, two.in_order), (1, true, false));
        assert_eq!(Judgement::of(&draft("b", "a", Choice::Unordered), 0, 1).better, 1);
        let mut bytes = Vec::new();
        one.write(&mut bytes);
        assert_eq!((bytes.len(), Judgement::read(&bytes)), (Judgement::SIZE, one));
    }
}
