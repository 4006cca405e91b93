//! The first of two passes: what must be known of all votes before one of them can be judged.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use problem::{Result, invalid};

use crate::draft::{Choice, Draft, Flaw};
use crate::select::{Fact, Folds, content_key, fates, rest_key, tally, targets};
use crate::spill::Spill;
use crate::split::{HashedSet, by_share, prompt_key, share, texts_key};
use crate::walk::{At, Source};
use crate::{BadRows, Columns, Report, Selection, Split, SplitRule, Whole};

/// Bytes of facts, and of keys, that stay in memory.
pub(crate) const SPILL_AFTER: usize = 96 << 20;

/// What the first pass decides.
pub(crate) struct Plan {
    /// Keys of the users that stay.
    pub(crate) users: HashedSet<u64>,
    /// By unit and number in the unit; none where a row decides alone.
    pub(crate) fates: Option<Vec<Vec<u8>>>,
}

/// A worker's finds in the first pass.
#[derive(Default)]
struct Finds {
    /// Decided votes by user and split; which splits, the facts know.
    decided: HashMap<String, [usize; 4]>,
    /// Votes of weight 0 by user.
    without_weight: HashMap<String, usize>,
    wholes: HashSet<u128>,
    facts: Vec<Fact>,
    sizes: Vec<(usize, usize)>,
    room: Vec<u8>,
}

impl Finds {
    /// Takes what must be known of one vote.
    fn take(
        &mut self,
        draft: &Draft,
        at: &At,
        columns: &Columns,
        selection: &Selection,
        seed: u64,
        spill: &Spill<Fact>,
    ) -> Result<()> {
        let key = prompt_key(&draft.turns, &mut self.room);
        let split = match of_row(draft, key, selection, columns, seed) {
            Ok(split) => split,
            Err(flaw) => return refuse(at, flaw, selection),
        };
        let decided = draft.choice != Choice::Tie;
        let counts = match self.decided.get_mut(draft.user.as_ref()) {
            Some(counts) => counts,
            None => self.decided.entry(draft.user.clone().into_owned()).or_default(),
        };
        counts[split.unwrap_or(Split::Train) as usize] += usize::from(decided);
        if !selection.needs_facts() {
            return Ok(());
        }
        let time = match (selection.split, draft.timestamp) {
            (SplitRule::Time { .. }, None) => {
                let column = columns.timestamp.as_deref().unwrap_or("timestamp");
                return refuse(at, Flaw::null(column), selection);
            }
            (_, time) => time.unwrap_or(0),
        };
        let over_groups = matches!(selection.split, SplitRule::Folds { over: Whole::Group, .. });
        let whole = if over_groups { group_key(draft) } else { key };
        if matches!(selection.split, SplitRule::Folds { .. }) {
            self.wholes.insert(whole);
        }
        self.facts.push(Fact {
            user: user_key(&draft.user),
            whole,
            content: content_key(draft, seed),
            time,
            rest: rest_key(draft),
            unit: at.unit as u32,
            index: at.index,
            decided,
            split,
        });
        if self.facts.len() >= 8192 { spill.add(&mut self.facts) } else { Ok(()) }
    }
}

impl Plan {
    pub(crate) fn make(
        source: &Source,
        selection: &Selection,
        seed: u64,
        folder: &Path,
        place: &str,
        report: &mut Report,
    ) -> Result<Self> {
        let with_facts = selection.needs_facts();
        let spill: Spill<Fact> = Spill::new(folder, SPILL_AFTER);
        let finds = source.on_all_cores(Finds::default, |finds, unit| {
            let mut size = 0;
            source.walk(unit, &mut |at, draft| {
                size = at.index as usize + 1;
                let Some(draft) = usable(&at, draft, selection)? else { return Ok(()) };
                if draft.weight == 0.0 {
                    *finds.without_weight.entry(draft.user.into_owned()).or_default() += 1;
                    return Ok(());
                }
                if draft.flaw().is_some() {
                    return Ok(());
                }
                finds.take(&draft, &at, &source.card.columns, selection, seed, &spill)
            })?;
            spill.add(&mut finds.facts)?;
            finds.sizes.push((unit, size));
            Ok(())
        })?;

        let mut sizes = vec![0; source.units.len()];
        let mut decided: BTreeMap<String, [usize; 4]> = BTreeMap::new();
        let mut wholes = HashSet::new();
        let mut without_weight: BTreeMap<String, usize> = BTreeMap::new();
        for find in finds {
            find.sizes.into_iter().for_each(|(unit, size)| sizes[unit] = size);
            wholes.extend(find.wholes);
            for (user, counts) in find.decided {
                let all = decided.entry(user).or_default();
                all.iter_mut().zip(counts).for_each(|(a, b)| *a += b);
            }
            for (user, votes) in find.without_weight {
                *without_weight.entry(user).or_default() += votes;
            }
        }
        without_weight.retain(|user, _| !decided.contains_key(user));
        report.users_without_weight = without_weight;
        refuse_equal_keys(decided.keys(), place)?;
        let folds = match selection.split {
            SplitRule::Folds { of, .. } => Some(Folds::deal(wholes, seed, of.get())),
            _ => None,
        };
        let tally = if with_facts { tally(&spill, selection, seed, folds.as_ref())? } else { HashMap::new() };

        // Who stays.
        let all = decided.len() + report.users_without_weight.len();
        let votes_of = |user: &str, counts: &[usize; 4]| -> usize {
            let counts = tally.get(&user_key(user)).map_or(counts, |(decided, _)| decided);
            let everything = matches!(selection.split, SplitRule::Users { .. });
            if everything { counts.iter().sum() } else { counts[Split::Train as usize] }
        };
        let mut ranked: Vec<(usize, &str)> = decided.iter().map(|(u, c)| (votes_of(u, c), u.as_str())).collect();
        ranked.sort_by_key(|(n, user)| (std::cmp::Reverse(*n), *user));
        let enough = ranked.iter().take_while(|(n, _)| *n >= selection.min_votes).count();
        report.dropped_users = ranked[enough..].iter().map(|(n, u)| ((*u).to_owned(), *n)).collect();
        let taken = enough.min(selection.top_users.unwrap_or(enough));
        report.users_beyond_the_top = enough - taken;
        let below = report.dropped_users.len() + report.users_without_weight.len();
        if taken == 0 || (selection.strict && below > 0) {
            let wanted = if selection.strict { "every user" } else { "at least one user" };
            let first = report.dropped_users.iter().next().map(|(u, n)| format!(", such as `{u}` with {n}"));
            let weightless = report.users_without_weight.iter().next();
            let and = if weightless.is_some() { " and a vote of a weight above 0" } else { "" };
            let weightless = weightless.map(|(u, n)| format!(", such as `{u}` with {n} votes, all of weight 0"));
            return Err(invalid(
                place,
                format!("{wanted} with at least {} decided training votes{and}", selection.min_votes),
                format!("{below} of {all} users below{}", first.or(weightless).unwrap_or_default()),
                "lower `min_votes`, gather more votes, or leave `strict` off",
            ));
        }
        let users: HashedSet<u64> = ranked[..taken].iter().map(|(_, u)| user_key(u)).collect();
        let fates = if with_facts {
            let kept: BTreeMap<u64, [usize; 4]> =
                tally.iter().filter(|(key, _)| users.contains(key)).map(|(key, (_, kept))| (*key, *kept)).collect();
            let targets = targets(&kept, selection);
            Some(fates(&spill, selection, seed, folds.as_ref(), &targets, &sizes)?)
        } else {
            None
        };
        Ok(Self { users, fates })
    }
}

/// Users are told apart by 64 bits.
fn refuse_equal_keys<'n>(names: impl Iterator<Item = &'n String>, place: &str) -> Result<()> {
    let mut keyed: HashMap<u64, &str> = HashMap::new();
    for name in names {
        if let Some(other) = keyed.insert(user_key(name), name) {
            let found = format!("`{other}` and `{name}`, whose 64-bit hashes are equal");
            return Err(invalid(place, "users that can be told apart", found, "rename one of them"));
        }
    }
    Ok(())
}

pub(crate) fn user_key(user: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(user.as_bytes())
}

pub(crate) fn group_key(draft: &Draft) -> u128 {
    texts_key(0, [draft.group.unwrap_or_default()])
}

/// A row's judgement, unless the row is not as the card says.
pub(crate) fn usable<'a>(at: &At, draft: Result<Draft<'a>, Flaw>, selection: &Selection) -> Result<Option<Draft<'a>>> {
    match draft {
        Ok(draft) => Ok(Some(draft)),
        Err(flaw) => refuse(at, flaw, selection).map(|()| None),
    }
}

pub(crate) fn refuse(at: &At, flaw: Flaw, selection: &Selection) -> Result<()> {
    if selection.bad_rows == BadRows::Drop { Ok(()) } else { Err(at.error(flaw)) }
}

/// The split, where the row alone decides.
pub(crate) fn of_row(
    draft: &Draft,
    key: u128,
    selection: &Selection,
    columns: &Columns,
    seed: u64,
) -> Result<Option<Split>, Flaw> {
    match selection.split {
        SplitRule::Column => {
            let column = columns.split.as_deref().unwrap_or("(the file's name)");
            let value = draft.split.ok_or_else(|| Flaw::null(column))?;
            let known = columns.split_names.get(value).copied();
            let split = known.or_else(|| Split::parse(value)).ok_or_else(|| Flaw {
                kind: "unknown split",
                column: column.into(),
                expected: "`train`, `dev`, `adapt` or `test`".into(),
                found: format!("`{value}`"),
                hint: "say what it means in the card's `split_names`, rename the values, or split by prompt",
            })?;
            Ok(Some(split))
        }
        SplitRule::Prompt { dev, test } => Ok(Some(by_share(share(seed, "prompt", key), dev, test))),
        SplitRule::Group { dev, test } => Ok(Some(by_share(share(seed, "group", group_key(draft)), dev, test))),
        _ => Ok(None),
    }
}
