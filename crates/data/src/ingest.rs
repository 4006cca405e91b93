//! From a source's rows to the canonical table: every vote is kept, or dropped for a reason that is counted.
//!
//! Memory grows with the users and by a byte a vote, not with the texts (folds keep a hash of every prompt too). Rules that need a row alone take one pass; those that need a user's other votes (a
//! minimum, a share, an order in time) take two, with what must be remembered of each vote spilled to disk.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use problem::{Result, bug, invalid};

use crate::canonical::{RowRef, TableWriter};
use crate::draft::{Choice, Draft, Flaw};
use crate::leakage::{Guard, Offence, Seen, guards, look};
use crate::plan::{Plan, SPILL_AFTER, group_key, of_row, refuse, usable, user_key};
use crate::roles::{Role, role};
use crate::select::Fate;
use crate::spill::Spill;
use crate::split::{HashedSet, prompt_key};
use crate::walk::{At, Source};
use crate::{Card, Report, Selection, Split, SplitRule};

/// Reads, checks and splits a source (files, folders, globs, addresses), and writes the canonical table to `out`.
///
/// # Errors
/// Nobody says whose votes the rows are; a missing column, a null, an unknown label or split (`bad_rows = "drop"` counts these), anything on two sides, no user
/// left; with `strict`, any dropped user. Nothing is written then.
pub fn ingest(card: &Card, sources: &[String], selection: &Selection, seed: u64, out: &Path) -> Result<Report> {
    ingest_on(card, sources, selection, seed, out, 0)
}

/// [`ingest`] on so many threads; 0: one for each core. The table is the same.
pub fn ingest_on(
    card: &Card,
    sources: &[String],
    selection: &Selection,
    seed: u64,
    out: &Path,
    threads: usize,
) -> Result<Report> {
    selection.check(card)?;
    let source = Source::open(card, sources, seed, threads)?;
    refuse_unsaid_users(card, &source)?;
    let folder = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let place = sources.join(", ");
    let notes = source.notes();
    let mut report = Report {
        files: source.files.len(),
        column_notes: notes.missed_sentences(),
        unused_columns: notes.unused,
        ..Report::default()
    };
    let of_all = selection.needs_facts() || selection.min_votes > 0 || selection.top_users.is_some();
    let plan = if of_all || card.may_weigh_0() {
        Some(Plan::make(&source, selection, seed, folder, &place, &mut report)?)
    } else {
        None
    };
    source.forget_readings();
    let table = TableWriter::new(out)?;
    let pass = Pass { source: &source, selection, seed, plan: plan.as_ref(), table: &table };
    let seen: Spill<Seen> = Spill::new(folder, SPILL_AFTER);
    let counts = pass.write(&seen)?;
    add_up(counts, &mut report);
    source.refuse_contradictions()?;
    report.remarks = source.remarks();
    let offence;
    (report.leakage, report.prompts, offence) = look(&seen, &selection.split)?;
    refuse_nothing_kept(&report)?;
    refuse_leaks(offence, &source, &report)?;
    refuse_empty_splits(selection, &report)?;
    table.finish()?;
    Ok(report)
}

/// A worker's counts in the pass that writes.
#[derive(Default)]
struct Counts {
    rows: usize,
    votes: usize,
    kept: usize,
    ties: usize,
    dropped: HashMap<&'static str, usize>,
    splits: [usize; 4],
    notes: Notes,
    room: Vec<u8>,
}

impl Counts {
    /// Counts a vote that is dropped.
    #[expect(clippy::unnecessary_wraps, reason = "what the caller returns")]
    fn drop_for<T>(&mut self, reason: &'static str) -> Result<Option<T>> {
        *self.dropped.entry(reason).or_default() += 1;
        Ok(None)
    }
}

/// Who and what stood where, each once.
#[derive(Default)]
struct Notes {
    users: HashedSet<u64>,
    /// What is in `seen` or was, half of its hash: most prompts come many times.
    noted: HashedSet<u64>,
    seen: Vec<Seen>,
    /// Looked up many at a time: tables of this size are not in a core's cache, and a core waits for several at once.
    waiting: Vec<(u64, Seen)>,
}

impl Notes {
    /// Notes all that a kept vote must not share with another split.
    fn take(
        &mut self,
        draft: &Draft,
        key: u128,
        split: Split,
        at: &At,
        guards: &[Guard],
        spill: &Spill<Seen>,
    ) -> Result<()> {
        let user = user_key(&draft.user);
        let mut note = |guard: Guard, key: u128| {
            self.add(user, Seen { guard, key, split, unit: at.unit as u32, row: at.row as u32 }, spill)
        };
        note(Guard::Prompt, key)?;
        for guard in guards {
            let user = u128::from(user);
            let key = match guard {
                Guard::User => user,
                Guard::Group => group_key(draft),
                Guard::UserAndPrompt => key.rotate_left(1) ^ user,
                Guard::Prompt => continue,
            };
            note(*guard, key)?;
        }
        Ok(())
    }

    fn add(&mut self, user: u64, seen: Seen, spill: &Spill<Seen>) -> Result<()> {
        self.waiting.push((user, seen));
        if self.waiting.len() >= 4096 { self.settle(spill) } else { Ok(()) }
    }

    fn settle(&mut self, spill: &Spill<Seen>) -> Result<()> {
        if self.noted.len() >= 1 << 20 {
            self.noted.clear();
        }
        self.users.extend(self.waiting.iter().map(|(user, _)| *user));
        for (_, seen) in self.waiting.drain(..) {
            let what = (seen.guard as u128) << 4 | seen.split as u128;
            if self.noted.insert((seen.key ^ what) as u64) {
                self.seen.push(seen);
            }
        }
        if self.seen.len() >= 8192 { spill.add(&mut self.seen) } else { Ok(()) }
    }
}

/// The pass that writes: what it reads, and where the rows go.
struct Pass<'p, 'c> {
    source: &'p Source<'c>,
    selection: &'p Selection,
    seed: u64,
    plan: Option<&'p Plan>,
    table: &'p TableWriter,
}

impl Pass<'_, '_> {
    /// Writes the rows of all units, each in order; what stood where goes to `seen`.
    fn write(&self, seen: &Spill<Seen>) -> Result<Vec<Counts>> {
        let guards: Vec<Guard> = guards(&self.selection.split).into_iter().filter(|g| *g != Guard::Prompt).collect();
        self.source.on_all_cores(Counts::default, |counts, unit| {
            let mut writer = self.table.unit(unit);
            let work = self.source.walk(unit, &mut |at, draft| {
                counts.votes += 1;
                let Some((draft, key, split)) = self.judge(&at, draft, counts)? else { return Ok(()) };
                writer.push(&row(&draft, split, &at))?;
                counts.kept += 1;
                counts.ties += usize::from(draft.choice == Choice::Tie);
                counts.splits[split as usize] += 1;
                counts.notes.take(&draft, key, split, &at, &guards, seen)
            });
            let end = work.and_then(|rows| {
                counts.rows += rows;
                counts.notes.settle(seen)?;
                seen.add(&mut counts.notes.seen)?;
                writer.finish()
            });
            end.inspect_err(|_| self.table.stop())
        })
    }

    /// A vote that is kept, its prompt's key and its split; none if it is dropped, and counted.
    fn judge<'d>(
        &self,
        at: &At,
        draft: Result<Draft<'d>, Flaw>,
        counts: &mut Counts,
    ) -> Result<Option<(Draft<'d>, u128, Split)>> {
        let kind = draft.as_ref().err().map(|flaw| flaw.kind);
        let Some(draft) = usable(at, draft, self.selection)? else {
            return counts.drop_for(kind.unwrap_or("flaw"));
        };
        if let Some(reason) = draft.flaw() {
            return counts.drop_for(reason);
        }
        if self.plan.is_some_and(|p| !p.users.contains(&user_key(&draft.user))) {
            return counts.drop_for("user below the minimum of votes or not of the top");
        }
        let key = prompt_key(&draft.turns, &mut counts.room);
        let fate = match self.plan.and_then(|p| p.fates.as_ref()) {
            Some(fates) => Fate::from_code(fates[at.unit][at.index as usize]),
            None => match of_row(&draft, key, self.selection, &self.source.card.columns, self.seed) {
                Ok(split) => Fate::Kept(split.unwrap_or(Split::Train)),
                Err(flaw) => {
                    counts.drop_for::<()>(flaw.kind)?;
                    return refuse(at, flaw, self.selection).map(|()| None);
                }
            },
        };
        match fate {
            Fate::Kept(split) => Ok(Some((draft, key, split))),
            _ => counts.drop_for(fate.reason().unwrap_or_default()),
        }
    }
}

/// A vote as a row of the table.
fn row<'d>(draft: &'d Draft, split: Split, at: &At<'d>) -> RowRef<'d> {
    let (chosen, rejected) = draft.ranked();
    RowRef {
        user_id: &draft.user,
        prompt: &draft.turns,
        chosen,
        rejected,
        tie: draft.choice == Choice::Tie,
        finished: draft.ranked_finished(),
        chosen_first: draft.chosen_first(),
        weight: draft.weight,
        margin: draft.margin,
        timestamp: draft.timestamp,
        split,
        source: (at.short, at.row),
    }
}

/// Adds the workers' counts up.
fn add_up(counts: Vec<Counts>, report: &mut Report) {
    let mut users = HashedSet::default();
    for own in counts {
        report.rows += own.rows;
        report.votes += own.votes;
        report.kept += own.kept;
        report.ties += own.ties;
        users.extend(own.notes.users);
        for (reason, n) in own.dropped {
            *report.dropped.entry(reason.to_owned()).or_default() += n;
        }
        for (split, n) in Split::ALL.into_iter().zip(own.splits).filter(|(_, n)| *n > 0) {
            *report.splits.entry(split.name().into()).or_default() += n;
        }
    }
    report.users = users.len();
}

/// Nobody's votes become those of one user unless that was said.
fn refuse_unsaid_users(card: &Card, source: &Source) -> Result<()> {
    if !card.lacks_users() {
        return Ok(());
    }
    let notes = source.notes();
    let column = notes.unused.iter().find(|c| role(c) == Some(Role::User));
    let named = match column {
        Some(column) => format!("`user_id = {column:?}` under [layout] of a card reads `{column}`"),
        None => "`user_id` under [layout] of a card names one".to_owned(),
    };
    let columns: BTreeSet<&str> = source.files.iter().flat_map(|f| &f.columns).map(String::as_str).collect();
    let found = format!(
        "no word on whose votes these are in the columns {}",
        columns.into_iter().collect::<Vec<_>>().join(", ")
    );
    let hint = format!(
        "{named}; if all votes are one user's, say so: `one_user = \"everyone\"` above [layout] in the card, or --one-user everyone"
    );
    let place = source.files.first().map_or_else(String::new, |f| f.file.name.to_string());
    Err(invalid(place, "a column that names the user", found, hint))
}

fn refuse_nothing_kept(report: &Report) -> Result<()> {
    if report.kept > 0 {
        return Ok(());
    }
    let found = format!("{} rows, {} votes, all dropped: {:?}", report.rows, report.votes, report.dropped);
    let hint = "look at the reasons: `idiolect data check` lists the rows";
    Err(invalid("ingestion", "at least one vote", found, hint))
}

/// Refuses what lies in two splits and must not.
fn refuse_leaks(offence: Option<Offence>, source: &Source, report: &Report) -> Result<()> {
    let Some(offence) = offence else { return Ok(()) };
    let name = |seen: Seen| {
        let file = &source.files[source.units[seen.unit as usize].file].file;
        format!("{}:{}", file.short, seen.row)
    };
    let what = match offence.first.guard {
        Guard::Prompt => "prompt",
        Guard::Group => "group",
        Guard::User => "held-out user",
        Guard::UserAndPrompt => "prompt of a user",
    };
    let place = format!("rows {} and {}", name(offence.first), name(offence.second));
    let (one, other) = (offence.first.split.name(), offence.second.split.name());
    let found = format!("the same {what} in {one} and in {other}; in all {:?}", report.leakage);
    let expected = format!("a {what} in one split only");
    Err(match offence.first.guard {
        Guard::Prompt => {
            invalid(place, expected, found, "split by prompt: `split = { by = \"prompt\", dev = 0.1, test = 0.2 }`")
        }
        Guard::Group | Guard::User | Guard::UserAndPrompt => bug(place, expected, found),
    })
}

/// Refuses a split that was asked for and got no vote.
fn refuse_empty_splits(selection: &Selection, report: &Report) -> Result<()> {
    let wanted = match selection.split {
        SplitRule::Prompt { dev, test } | SplitRule::Group { dev, test } | SplitRule::Time { dev, test } => {
            vec![(Split::Dev, dev > 0.0), (Split::Test, test > 0.0)]
        }
        SplitRule::Folds { dev, .. } => vec![(Split::Dev, dev.is_some()), (Split::Test, true)],
        SplitRule::Users { test, adapt, .. } => {
            vec![(Split::Test, test > 0.0), (Split::Adapt, test > 0.0 && adapt > 0)]
        }
        SplitRule::Column => vec![],
    };
    for (split, _) in wanted.iter().filter(|(_, wanted)| *wanted) {
        if !report.splits.contains_key(split.name()) {
            return Err(invalid(
                "the split",
                format!("votes in `{}`", split.name()),
                "none: too few prompts, groups or users for the share",
                "raise the share, choose another seed, or deal folds: `split = { by = \"folds\", over = \"prompt\", of = 5, test = 0 }`",
            ));
        }
    }
    Ok(())
}
