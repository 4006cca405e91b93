//! What must not stand on two sides, looked for in the votes as they are written.

use std::collections::BTreeMap;

use problem::Result;
use serde::{Deserialize, Serialize};

use crate::spill::{Record, Spill};
use crate::{Split, SplitRule, Whole};

/// What a split keeps on one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Guard {
    Prompt,
    Group,
    User,
    UserAndPrompt,
}

/// One vote's key under one guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pub(crate) guard: Guard,
    pub(crate) key: u128,
    pub(crate) split: Split,
    pub(crate) unit: u32,
    /// Row of the file, from 1.
    pub(crate) row: u32,
}

impl Record for Seen {
    const SIZE: usize = 26;

    fn hash(&self) -> u64 {
        self.key as u64
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(self.guard as u8);
        out.extend_from_slice(&self.key.to_le_bytes());
        out.push(self.split as u8);
        out.extend_from_slice(&self.unit.to_le_bytes());
        out.extend_from_slice(&self.row.to_le_bytes());
    }

    fn read(b: &[u8]) -> Self {
        let four = |at: usize| u32::from_le_bytes(b[at..at + 4].try_into().expect("four bytes"));
        Self {
            guard: [Guard::Prompt, Guard::Group, Guard::User, Guard::UserAndPrompt][usize::from(b[0])],
            key: u128::from_le_bytes(b[1..17].try_into().expect("sixteen bytes")),
            split: Split::ALL[usize::from(b[17])],
            unit: four(18),
            row: four(22),
        }
    }
}

/// What stands on two sides; all zero where nothing does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leakage {
    /// Distinct prompts in two splits, near-duplicates counted as one.
    pub prompts: usize,
    /// Groups in two splits.
    pub groups: usize,
    /// Held-out users with training votes.
    pub users: usize,
    /// Prompts of a user in two of their splits.
    pub users_prompts: usize,
}

impl Leakage {
    /// Does nothing stand on two sides?
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Which guards a rule promises.
pub(crate) fn guards(rule: &SplitRule) -> Vec<Guard> {
    match rule {
        SplitRule::Column | SplitRule::Prompt { .. } | SplitRule::Folds { over: Whole::Prompt, .. } => {
            vec![Guard::Prompt]
        }
        SplitRule::Group { .. } | SplitRule::Folds { over: Whole::Group, .. } => vec![Guard::Prompt, Guard::Group],
        SplitRule::Time { .. } => vec![Guard::UserAndPrompt],
        SplitRule::Users { prompts, .. } if *prompts > 0.0 => vec![Guard::User, Guard::UserAndPrompt, Guard::Prompt],
        SplitRule::Users { .. } => vec![Guard::User, Guard::UserAndPrompt],
    }
}

/// The side that a split is on, under a guard. Votes for fitting a held-out user count as that user's, and as everyone's prompts.
fn side(guard: Guard, split: Split, rule: &SplitRule) -> Split {
    match (guard, split) {
        (Guard::User, Split::Adapt) => Split::Test,
        (Guard::Prompt, Split::Adapt) if matches!(rule, SplitRule::Users { .. }) => Split::Train,
        _ => split,
    }
}

/// Two rows that share what they must not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offence {
    pub(crate) first: Seen,
    pub(crate) second: Seen,
}

/// Counts what stands on two sides and the distinct prompts of each split; the first offence in the order of the source.
pub(crate) fn look(
    seen: &Spill<Seen>,
    rule: &SplitRule,
) -> Result<(Leakage, BTreeMap<String, usize>, Option<Offence>)> {
    let promised = guards(rule);
    let mut leakage = Leakage::default();
    let mut prompts: BTreeMap<String, usize> = BTreeMap::new();
    let mut first: Option<Offence> = None;
    seen.each(|mut all| {
        all.sort_unstable();
        for same in all.chunk_by(|a, b| a.guard == b.guard && a.key == b.key) {
            let guard = same[0].guard;
            if guard == Guard::Prompt {
                for split in same.chunk_by(|a, b| a.split == b.split) {
                    *prompts.entry(split[0].split.name().into()).or_default() += 1;
                }
            }
            let own = side(guard, same[0].split, rule);
            let other = same.iter().find(|s| side(guard, s.split, rule) != own);
            if let Some(other) = other.filter(|_| promised.contains(&guard)) {
                match guard {
                    Guard::Prompt => leakage.prompts += 1,
                    Guard::Group => leakage.groups += 1,
                    Guard::User => leakage.users += 1,
                    Guard::UserAndPrompt => leakage.users_prompts += 1,
                }
                let (a, b) = (same[0], *other);
                let offence = if (a.unit, a.row) <= (b.unit, b.row) {
                    Offence { first: a, second: b }
                } else {
                    Offence { first: b, second: a }
                };
                let place = |o: &Offence| (o.second.unit, o.second.row);
                if first.as_ref().is_none_or(|known| place(&offence) < place(known)) {
                    first = Some(offence);
                }
            }
        }
        Ok(())
    })?;
    Ok((leakage, prompts, first))
}
