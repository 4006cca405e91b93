//! Which votes are kept and on which side they stand, where that takes more than the row itself.

use std::collections::{BTreeMap, HashMap};

use problem::Result;

use crate::draft::{Choice, Draft};
use crate::spill::{Record, Spill};
use crate::split::{by_share, share};
use crate::{Selection, Split, SplitRule};

/// What must be known of a vote to judge it beside its user's others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fact {
    pub(crate) user: u64,
    /// What stands on one side as a whole: the prompt's key, or the group's.
    pub(crate) whole: u128,
    /// Hash of the vote's content under the run's seed: an order that is independent of files.
    pub(crate) content: u128,
    pub(crate) time: i64,
    /// Hash of weight and margin: tells apart what is equal in content and time.
    pub(crate) rest: u32,
    pub(crate) unit: u32,
    pub(crate) index: u32,
    pub(crate) decided: bool,
    /// Where the row alone decides.
    pub(crate) split: Option<Split>,
}

impl Record for Fact {
    const SIZE: usize = 62;

    fn hash(&self) -> u64 {
        self.user
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.user.to_le_bytes());
        out.extend_from_slice(&self.whole.to_le_bytes());
        out.extend_from_slice(&self.content.to_le_bytes());
        out.extend_from_slice(&self.time.to_le_bytes());
        out.extend_from_slice(&self.rest.to_le_bytes());
        out.extend_from_slice(&self.unit.to_le_bytes());
        out.extend_from_slice(&self.index.to_le_bytes());
        out.push(u8::from(self.decided));
        out.push(self.split.map_or(u8::MAX, |s| s as u8));
    }

    fn read(b: &[u8]) -> Self {
        let four = |at: usize| u32::from_le_bytes(b[at..at + 4].try_into().expect("four bytes"));
        let eight = |at: usize| u64::from_le_bytes(b[at..at + 8].try_into().expect("eight bytes"));
        let sixteen = |at: usize| u128::from_le_bytes(b[at..at + 16].try_into().expect("sixteen bytes"));
        Self {
            user: eight(0),
            whole: sixteen(8),
            content: sixteen(24),
            time: eight(40) as i64,
            rest: four(48),
            unit: four(52),
            index: four(56),
            decided: b[60] == 1,
            split: Split::ALL.get(usize::from(b[61])).copied(),
        }
    }
}

/// What becomes of a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Kept(Split),
    /// An earlier vote has the same user, texts and choice.
    Duplicate,
    /// The user has more votes than the selection takes.
    OverShare,
    /// A training user's vote on a prompt that is held out.
    HeldOutPrompt,
    /// A held-out user's vote that is neither for fitting nor on a held-out prompt.
    Unused,
    /// The row is not as the card says.
    Refused,
}

/// Of whom no fact is told.
const REFUSED: u8 = 8;

impl Fate {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Kept(split) => split as u8,
            Self::Duplicate => 4,
            Self::OverShare => 5,
            Self::HeldOutPrompt => 6,
            Self::Unused => 7,
            Self::Refused => REFUSED,
        }
    }

    pub(crate) fn from_code(code: u8) -> Self {
        match code {
            4 => Self::Duplicate,
            5 => Self::OverShare,
            6 => Self::HeldOutPrompt,
            7 => Self::Unused,
            REFUSED => Self::Refused,
            split => Self::Kept(Split::ALL[usize::from(split)]),
        }
    }

    /// Why it is not kept.
    pub(crate) fn reason(self) -> Option<&'static str> {
        match self {
            Self::Kept(_) => None,
            Self::Duplicate => Some("duplicate vote"),
            Self::OverShare => Some("beyond the user's share"),
            Self::HeldOutPrompt => Some("training user on a held-out prompt"),
            Self::Unused => Some("held-out user's vote beyond those for fitting"),
            Self::Refused => Some("not as the card says"),
        }
    }
}

/// Folds of what is dealt, in the order of its hashes.
#[derive(Debug)]
pub(crate) struct Folds(HashMap<u128, usize>);

impl Folds {
    /// Deals distinct keys to `of` folds, round by round.
    pub(crate) fn deal(keys: impl IntoIterator<Item = u128>, seed: u64, of: usize) -> Self {
        let mut sorted: Vec<(u64, u128)> =
            keys.into_iter().map(|k| ((share(seed, "fold", k) * u64::MAX as f64) as u64, k)).collect();
        sorted.sort_unstable();
        sorted.dedup();
        Self(sorted.into_iter().enumerate().map(|(i, (_, key))| (key, i % of)).collect())
    }

    fn split(&self, key: u128, test: usize, dev: Option<usize>) -> Split {
        match self.0.get(&key) {
            Some(fold) if *fold == test => Split::Test,
            fold if fold.copied() == dev && dev.is_some() => Split::Dev,
            _ => Split::Train,
        }
    }
}

/// Fates of one user's votes, which come in the order of their content.
fn of_user(votes: &[Fact], selection: &Selection, seed: u64, folds: Option<&Folds>) -> Vec<Fate> {
    let mut fates: Vec<Fate> = match selection.split {
        SplitRule::Column | SplitRule::Prompt { .. } | SplitRule::Group { .. } => {
            votes.iter().map(|v| Fate::Kept(v.split.unwrap_or(Split::Train))).collect()
        }
        SplitRule::Folds { test, dev, .. } => {
            votes.iter().map(|v| Fate::Kept(folds.map_or(Split::Train, |f| f.split(v.whole, test, dev)))).collect()
        }
        SplitRule::Time { dev, test } => by_time(votes, dev, test),
        SplitRule::Users { test, adapt, prompts } => {
            let held_out_user = share(seed, "user", u128::from(votes[0].user)) < test;
            held_out(votes, seed, held_out_user, adapt, prompts)
        }
    };
    if selection.duplicates == crate::Duplicates::Drop {
        for i in 1..votes.len() {
            if votes[i].content == votes[i - 1].content {
                fates[i] = Fate::Duplicate;
            }
        }
    }
    fates
}

/// The newest votes are `test`, those before them `dev`; votes on one prompt stay together.
fn by_time(votes: &[Fact], dev: f64, test: f64) -> Vec<Fate> {
    let mut blocks: HashMap<u128, (i64, Vec<usize>)> = HashMap::new();
    for (i, vote) in votes.iter().enumerate() {
        let block = blocks.entry(vote.whole).or_insert((i64::MIN, vec![]));
        block.0 = block.0.max(vote.time);
        block.1.push(i);
    }
    let mut blocks: Vec<(i64, Vec<usize>)> = blocks.into_values().collect();
    blocks.sort_by_key(|(newest, votes)| (std::cmp::Reverse(*newest), votes[0]));
    let mut fates = vec![Fate::Kept(Split::Train); votes.len()];
    let mut before = 0;
    for (_, block) in blocks {
        let split = by_share((before as f64 + 0.5) / votes.len() as f64, dev, test);
        before += block.len();
        block.iter().for_each(|i| fates[*i] = Fate::Kept(split));
    }
    fates
}

fn held_out(votes: &[Fact], seed: u64, user: bool, adapt: usize, prompts: f64) -> Vec<Fate> {
    let held_out_prompt = |v: &Fact| share(seed, "held-out prompt", v.whole) < prompts;
    if !user {
        let fate = |v: &Fact| if held_out_prompt(v) { Fate::HeldOutPrompt } else { Fate::Kept(Split::Train) };
        return votes.iter().map(fate).collect();
    }
    // Whole prompts go to fitting until it has enough, so that no prompt of the user stands on two sides.
    let mut order: Vec<usize> = (0..votes.len()).collect();
    let block = |i: &usize| ((share(seed, "adapt", votes[*i].whole) * u64::MAX as f64) as u64, votes[*i].whole, *i);
    order.sort_by_key(block);
    let mut fates = vec![Fate::Kept(Split::Test); votes.len()];
    let (mut taken, mut last) = (0, None);
    for i in order {
        let whole = votes[i].whole;
        if held_out_prompt(&votes[i]) {
            continue;
        }
        if taken < adapt {
            fates[i] = Fate::Kept(Split::Adapt);
            taken += 1;
            last = Some(whole);
        } else if prompts > 0.0 || last == Some(whole) {
            fates[i] = Fate::Unused;
        }
    }
    fates
}

/// Decided votes of each user by split, and votes kept by split.
pub(crate) type Tally = HashMap<u64, ([usize; 4], [usize; 4])>;

/// Judges all votes: tallies by user.
pub(crate) fn tally(facts: &Spill<Fact>, selection: &Selection, seed: u64, folds: Option<&Folds>) -> Result<Tally> {
    let mut tally = Tally::new();
    each_user(facts, |votes| {
        let (decided, kept) = tally.entry(votes[0].user).or_default();
        for (vote, fate) in votes.iter().zip(of_user(votes, selection, seed, folds)) {
            if let Fate::Kept(split) = fate {
                kept[split as usize] += 1;
                decided[split as usize] += usize::from(vote.decided);
            }
        }
        Ok(())
    })?;
    Ok(tally)
}

/// How many votes of each user and split are taken, of those that there are.
pub(crate) fn targets(kept: &BTreeMap<u64, [usize; 4]>, selection: &Selection) -> HashMap<(u64, Split), usize> {
    let temperature = if selection.equalise { Some(f64::INFINITY) } else { selection.user_temperature };
    let mut targets = HashMap::new();
    for split in Split::ALL {
        let counts = || kept.iter().map(|(user, counts)| (*user, counts[split as usize])).filter(|(_, n)| *n > 0);
        let least = counts().map(|(_, n)| n).min().unwrap_or(0) as f64;
        for (user, n) in counts() {
            // Shares go as n^(1/T); the smallest user keeps all.
            let share = temperature.map_or(n, |t| (least * (n as f64 / least).powf(1.0 / t)).round() as usize);
            targets.insert((user, split), share.min(n).min(selection.max_votes_per_user.unwrap_or(n)));
        }
    }
    targets
}

/// Fates by unit and number in the unit.
pub(crate) fn fates(
    facts: &Spill<Fact>,
    selection: &Selection,
    seed: u64,
    folds: Option<&Folds>,
    targets: &HashMap<(u64, Split), usize>,
    sizes: &[usize],
) -> Result<Vec<Vec<u8>>> {
    let mut codes: Vec<Vec<u8>> = sizes.iter().map(|n| vec![REFUSED; *n]).collect();
    each_user(facts, |votes| {
        let mut taken: HashMap<Split, usize> = HashMap::new();
        for (vote, fate) in votes.iter().zip(of_user(votes, selection, seed, folds)) {
            let fate = match fate {
                Fate::Kept(split) => {
                    let taken = taken.entry(split).or_default();
                    *taken += 1;
                    if *taken > targets.get(&(vote.user, split)).copied().unwrap_or(0) { Fate::OverShare } else { fate }
                }
                other => other,
            };
            codes[vote.unit as usize][vote.index as usize] = fate.code();
        }
        Ok(())
    })?;
    Ok(codes)
}

fn each_user(facts: &Spill<Fact>, mut see: impl FnMut(&[Fact]) -> Result<()>) -> Result<()> {
    facts.each(|mut all| {
        // Places come last: the outcome must not depend on the order of rows.
        all.sort_unstable_by_key(|f| (f.user, f.content, f.time, f.rest, f.unit, f.index));
        all.chunk_by(|a, b| a.user == b.user).try_for_each(&mut see)
    })
}

/// A hash of what else a vote carries.
pub(crate) fn rest_key(draft: &Draft) -> u32 {
    let bits = |x: Option<f32>| x.map_or(u64::MAX, |x| u64::from(x.to_bits()));
    let all = [bits(Some(draft.weight)), bits(draft.margin)].map(u64::to_le_bytes).concat();
    xxhash_rust::xxh3::xxh3_64(&all) as u32
}

/// A hash of who said what of which texts, under the run's seed.
pub(crate) fn content_key(draft: &Draft, seed: u64) -> u128 {
    let choice = match draft.choice {
        Choice::First => "1",
        Choice::Second => "2",
        Choice::Tie => "=",
        Choice::Unordered => "1?",
    };
    let turns = draft.turns.iter().flat_map(|(role, content)| [*role, *content]);
    crate::split::texts_key(seed, [draft.user.as_ref(), draft.first, draft.second, choice].into_iter().chain(turns))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(whole: u128, content: u128, time: i64) -> Fact {
        Fact { user: 9, whole, content, time, rest: 6, unit: 0, index: content as u32, decided: true, split: None }
    }

    #[test]
    fn a_fact_survives_its_bytes() {
        for split in [None, Some(Split::Adapt)] {
            let fact = Fact { split, ..fact(u128::MAX - 5, 77, -3) };
            let mut bytes = Vec::new();
            fact.write(&mut bytes);
            assert_eq!((bytes.len(), Fact::read(&bytes)), (Fact::SIZE, fact));
        }
        for code in 0..=REFUSED {
            assert_eq!(Fate::from_code(code).code(), code);
        }
    }

    #[test]
    fn the_newest_votes_are_test_and_prompts_stay_whole() {
        // Prompt 1 has an old and the newest vote; ten votes, two of them test.
        let votes: Vec<Fact> = [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4), (6, 5), (7, 6), (8, 7), (9, 8), (1, 9)]
            .into_iter()
            .enumerate()
            .map(|(i, (prompt, time))| fact(prompt, i as u128, time))
            .collect();
        let fates = by_time(&votes, 0.1, 0.2);
        let at = |split| (0..10).filter(|i| fates[*i] == Fate::Kept(split)).collect::<Vec<_>>();
        assert_eq!((at(Split::Test), at(Split::Dev)), (vec![0, 9], vec![8]));
    }

    #[test]
    fn held_out_users_have_exactly_so_many_votes_to_fit() {
        let votes: Vec<Fact> = (0..40).map(|i| fact(i / 3, i, 0)).collect();
        for prompts in [0.0, 0.4] {
            let fates = held_out(&votes, 5, true, 7, prompts);
            let of = |split| -> Vec<u128> {
                votes.iter().zip(&fates).filter(|(_, f)| **f == Fate::Kept(split)).map(|(v, _)| v.whole).collect()
            };
            let (adapt, test) = (of(Split::Adapt), of(Split::Test));
            assert_eq!(adapt.len(), 7);
            assert!(!test.is_empty());
            assert!(test.iter().all(|p| !adapt.contains(p)));
            let train = held_out(&votes, 5, false, 7, prompts);
            for (vote, fate) in votes.iter().zip(&train) {
                if *fate == Fate::Kept(Split::Train) && prompts > 0.0 {
                    assert!(!test.contains(&vote.whole));
                }
            }
            assert_eq!(train.contains(&Fate::HeldOutPrompt), prompts > 0.0);
        }
    }

    #[test]
    fn folds_differ_by_one_at_most() {
        let folds = Folds::deal(0..17u128, 3, 5);
        let mut sizes = [0; 5];
        folds.0.values().for_each(|f| sizes[*f] += 1);
        sizes.sort_unstable();
        assert_eq!(sizes, [3, 3, 3, 4, 4]);
        assert_ne!(folds.0, Folds::deal(0..17u128, 4, 5).0);
        assert_eq!(folds.0, Folds::deal((0..17u128).rev().chain(3..5), 3, 5).0);
    }

    #[test]
    fn temperature_goes_from_all_to_equal() {
        let selection = |equalise, user_temperature, max_votes_per_user| Selection {
            equalise,
            user_temperature,
            max_votes_per_user,
            ..Selection::all(SplitRule::Column)
        };
        let kept = BTreeMap::from([(1, [100, 0, 0, 8]), (2, [25, 0, 0, 9]), (3, [400, 0, 0, 7])]);
        let train = |s: &Selection| [1, 2, 3].map(|u| targets(&kept, s)[&(u, Split::Train)]);
        assert_eq!(train(&selection(false, None, None)), [100, 25, 400]);
        assert_eq!(train(&selection(false, Some(2.0), None)), [50, 25, 100]); // 25 * sqrt(4), 25 * sqrt(16)
        assert_eq!(train(&selection(true, None, None)), [25, 25, 25]);
        assert_eq!(train(&selection(false, None, Some(60))), [60, 25, 60]);
        assert_eq!(targets(&kept, &selection(true, None, None))[&(2, Split::Test)], 7);
    }
}
