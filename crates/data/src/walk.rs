//! All of a source's judgements, on all cores: each unit's in order, whoever reads it.

use std::cell::Cell;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use problem::{Problem, Result, invalid};

use crate::Card;
use crate::columns::{Place, mostly_messages};
use crate::draft::{Draft, Flaw};
use crate::layouts::{self, Bound, Memory};
use crate::location::SourceFile;
use crate::readings::{Contradiction, Reader, Readings};
use crate::sources::resolve;
use crate::units::{Opened, Piece, Unit, open};
use crate::unread::{ColumnNotes, notes};

/// A source, opened.
#[derive(Debug)]
pub(crate) struct Source<'c> {
    pub(crate) card: &'c Card,
    pub(crate) files: Vec<Opened>,
    pub(crate) units: Vec<Unit>,
    paths: Vec<Vec<String>>,
    seed: u64,
    threads: usize,
    /// How values are understood.
    readings: Arc<Readings>,
    /// What was decided about folders and files.
    remarks: Vec<String>,
}

/// Where a judgement stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<'a> {
    pub(crate) unit: usize,
    /// Number of the judgement in its unit.
    pub(crate) index: u32,
    /// The file, as messages name it, and below what the user gave.
    pub(crate) file: &'a str,
    pub(crate) short: &'a str,
    /// Row of the file, from 1.
    pub(crate) row: usize,
}

impl At<'_> {
    /// A flaw as an error.
    pub(crate) fn error(&self, flaw: Flaw) -> Problem {
        flaw.at(self.file, self.row)
    }
}

/// Is shown a judgement and where it stands.
type See<'s, R> = dyn FnMut(At<'_>, Result<Draft<'_>, Flaw>) -> Result<R> + 's;

/// So many threads; 0: one for each core.
fn cores(threads: usize) -> usize {
    if threads == 0 { std::thread::available_parallelism().map_or(1, std::num::NonZero::get) } else { threads }
}

/// Opens files, several at a time: to know a JSON file's columns is to read all of it. The error is that of the first file that has
/// one.
pub(crate) fn open_all(files: Vec<SourceFile>, threads: usize) -> Result<Vec<Opened>> {
    let threads = cores(threads).min(files.len()).max(1);
    let (waiting, done) = (Mutex::new(files.into_iter().enumerate()), Mutex::new(Vec::new()));
    let worker = || {
        loop {
            let file = waiting.lock().expect("no panic with the lock").next();
            let Some((index, file)) = file else { return };
            let opened = open(file);
            done.lock().expect("no panic with the lock").push((index, opened));
        }
    };
    std::thread::scope(|scope| {
        (1..threads).for_each(|_| _ = scope.spawn(worker));
        worker();
    });
    let mut opened = done.into_inner().expect("no panic with the lock");
    opened.sort_by_key(|(index, _)| *index);
    opened.into_iter().map(|(_, opened)| opened).collect()
}

/// A missing column's error, which says so if another file of the source has it.
fn in_others(error: Problem, files: &[Opened], wanted: &[String]) -> Problem {
    match files.iter().find(|other| other.check(wanted).is_ok()) {
        Some(other) => error.with_hint(format!(
            "another file of the source has the column, such as {}: give this file the column too, or ingest the files apart",
            other.file.name
        )),
        None => error,
    }
}

impl<'c> Source<'c> {
    /// Opens all files and looks for the card's columns. `threads` 0: one for each core.
    pub(crate) fn open(card: &'c Card, sources: &[String], seed: u64, threads: usize) -> Result<Self> {
        let found = resolve(sources)?;
        let (mut remarks, readings) = (found.remarks, Arc::new(Readings::default()));
        for file in &found.files {
            let name = Path::new(file.short.as_ref()).file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let (Some(wanted), Some(path)) = (card.sha256.get(&name), &file.path) {
                let found = run::hash_file(path)?;
                if found != *wanted {
                    let place = file.name.to_string();
                    let hint = "fetch the file again, or correct the card";
                    return Err(invalid(place, format!("SHA-256 {wanted}"), found, hint));
                }
            }
        }
        let mut files = open_all(found.files, threads)?;
        for (index, file) in files.iter_mut().enumerate() {
            file.reader = Reader { all: readings.clone(), file: index };
            remarks.extend(file.remark.take());
        }
        let paths: Vec<Vec<String>> = files.iter().map(|file| layouts::paths(card, &file.columns)).collect();
        let mut units = Vec::new();
        for (index, (file, wanted)) in files.iter().zip(&paths).enumerate() {
            file.check(wanted).map_err(|error| in_others(error, &files, wanted))?;
            units.extend(file.units(index, layouts::in_order(&card.layout)));
        }
        let threads = cores(threads).min(units.len()).max(1);
        let source = Self { card, files, units, paths, seed, threads, readings, remarks };
        source.readings.decide(source.messages_as_text());
        Ok(source)
    }

    /// Columns of texts most of whose first rows are lists of messages written as text. What is wrong with these rows is left to
    /// those who read them.
    fn messages_as_text(&self) -> HashSet<String> {
        for unit in &self.units {
            let Ok(pieces) = self.files[unit.file].batches(*unit, &self.paths[unit.file]) else { continue };
            let rows = pieces.map_while(std::result::Result::ok).find_map(|piece| match piece {
                Piece::Rows(place, batch) if batch.num_rows() > 0 => Some((place, batch)),
                _ => None,
            });
            let Some((place, batch)) = rows else { continue };
            let schema = batch.schema();
            let columns = schema.fields().iter().zip(batch.columns());
            let written = columns.filter(|(_, array)| mostly_messages(array, &place) == Some(true));
            return written.map(|(field, _)| field.name().clone()).collect();
        }
        HashSet::new()
    }

    /// Another pass begins: what the one before saw of values is forgotten.
    pub(crate) fn forget_readings(&self) {
        self.readings.forget();
    }

    /// What was decided about folders, files and values, in sentences.
    pub(crate) fn remarks(&self) -> Vec<String> {
        self.remarks.iter().cloned().chain(self.readings.remarks()).collect()
    }

    /// Columns whose values were understood in several ways.
    pub(crate) fn contradictions(&self) -> Vec<Contradiction> {
        self.readings.contradictions()
    }

    /// Rows as messages name them, `file:row`.
    pub(crate) fn rows_of(&self, contradiction: &Contradiction) -> Vec<String> {
        let name = |(file, row): &(usize, usize)| format!("{}:{row}", self.files[*file].file.short);
        contradiction.first.iter().map(name).collect()
    }

    /// Refuses a column whose values were understood in several ways.
    pub(crate) fn refuse_contradictions(&self) -> Result<()> {
        let Some(first) = self.contradictions().into_iter().next() else { return Ok(()) };
        let rows = self.rows_of(&first).join(" and ");
        let hint = "write all values of the column in one way; the first row of each way is named";
        let place = format!("column `{}`, rows {rows}", first.column);
        Err(invalid(place, "values that are all meant in one way", format!("{}: {}", first.kind, first.found), hint))
    }

    /// What there is to say of the columns.
    pub(crate) fn notes(&self) -> ColumnNotes {
        notes(self.card, &self.files, &self.paths)
    }

    /// Shows every judgement of a unit, or what is wrong with its row. Gives the rows read.
    pub(crate) fn walk(&self, unit: usize, see: &mut See<()>) -> Result<usize> {
        self.walk_until(unit, &mut |at, draft| see(at, draft).map(ControlFlow::Continue))
    }

    /// [`Self::walk`], which ends with the batch in which `see` breaks off.
    pub(crate) fn walk_until(&self, unit: usize, see: &mut See<ControlFlow<()>>) -> Result<usize> {
        let at = self.units[unit];
        let opened = &self.files[at.file];
        let (file, short) = (opened.file.name.as_ref(), opened.file.short.as_ref());
        let (mut index, mut rows, broken_off) = (0, 0, Cell::new(false));
        let mut memory = Memory::default();
        let mut last = None;
        let mut show = |first_row: usize, row: usize, draft: Result<Draft, Flaw>| -> Result<()> {
            if !broken_off.get() {
                let at = At { unit, index, file, short, row: first_row + row + 1 };
                index += 1;
                broken_off.set(see(at, draft)?.is_break());
            }
            Ok(())
        };
        for piece in opened.batches(at, &self.paths[at.file])? {
            let (place, batch) = match piece? {
                Piece::Rows(place, batch) => (place, batch),
                Piece::Bad(place, flaw) => {
                    rows += 1;
                    show(place.first_row, 0, Err(flaw))?;
                    if broken_off.get() {
                        return Ok(rows);
                    }
                    last = Some(place);
                    continue;
                }
            };
            let batch = opened.with_partitions(batch, &place, &self.paths[at.file])?;
            rows += batch.num_rows();
            let bound = Bound { batch: &batch, place: &place };
            let mut emit = |row: usize, draft: Result<Draft, Flaw>| show(place.first_row, row, draft);
            layouts::drafts(self.card, &bound, self.seed, &mut memory, &mut emit)?;
            if broken_off.get() {
                return Ok(rows);
            }
            last = Some(Place { first_row: (place.first_row + batch.num_rows()).max(1) - 1, ..place });
        }
        if let Some(place) = last {
            let mut emit = |row: usize, draft: Result<Draft, Flaw>| show(place.first_row, row, draft);
            layouts::finish(self.card, self.seed, &mut memory, &mut emit)?;
        }
        Ok(rows)
    }

    /// Does `work` for every unit, the earlier ones first, and gives each worker's state. The error is that of the first unit
    /// that has one.
    pub(crate) fn on_all_cores<S: Send>(
        &self,
        state: impl Fn() -> S + Sync,
        work: impl Fn(&mut S, usize) -> Result<()> + Sync,
    ) -> Result<Vec<S>> {
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<(usize, Problem)>> = Mutex::new(None);
        let worker = || {
            let mut own = state();
            loop {
                let unit = next.fetch_add(1, Ordering::Relaxed);
                let known = failed.lock().expect("no panic with the lock").as_ref().map(|(unit, _)| *unit);
                if unit >= self.units.len() || known.is_some_and(|k| k < unit) {
                    return own;
                }
                if let Err(error) = work(&mut own, unit) {
                    let mut failed = failed.lock().expect("no panic with the lock");
                    if failed.as_ref().is_none_or(|(known, _)| unit < *known) {
                        *failed = Some((unit, error));
                    }
                }
            }
        };
        let states = std::thread::scope(|scope| {
            let handles: Vec<_> = (1..self.threads).map(|_| scope.spawn(worker)).collect();
            let mut states = vec![worker()];
            states
                .extend(handles.into_iter().map(|h| h.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))));
            states
        });
        match failed.into_inner().expect("no panic with the lock") {
            Some((_, error)) => Err(error),
            None => Ok(states),
        }
    }
}
