//! Fixtures.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use data::{Card, Column, Report, Selection, SplitRule, Vote};
use parquet::arrow::ArrowWriter;

pub(crate) fn card(layout: &str) -> Card {
    let text = format!("name = 'x'\nsource = 'y'\nlicence = 'z'\n[layout]\n{layout}");
    Card::parse(&text, &"card").unwrap()
}

pub(crate) fn votes_card() -> Card {
    card(
        "kind = 'votes'\nuser_id = 'rater'\nprompt = 'q'\nresponse_a = 'one'\nresponse_b = 'two'\nlabel = 'pick'\n\
         label_a = '1'\nlabel_b = '2'\nlabel_tie = '='\n[columns]\nsplit = 'part'",
    )
}

pub(crate) const NAMES: [&str; 6] = ["rater", "q", "one", "two", "pick", "part"];

/// A folder with `v.parquet` of these rows under [`NAMES`].
pub(crate) fn file<S: AsRef<str>>(rows: &[[S; 6]]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.parquet");
    write_rows(&path, rows);
    (dir, path)
}

pub(crate) fn write_rows<S: AsRef<str>>(path: &Path, rows: &[[S; 6]]) {
    let column = |c: usize| Column::Text(rows.iter().map(|r| r[c].as_ref().to_owned()).collect());
    let columns: Vec<(&str, Column)> = NAMES.iter().enumerate().map(|(c, n)| (*n, column(c))).collect();
    data::write_table(path, &columns).unwrap();
}

pub(crate) fn texts<S: AsRef<str>>(values: &[S]) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values.iter().map(AsRef::as_ref)))
}

pub(crate) fn write_batch(path: &Path, batch: &RecordBatch) {
    let mut writer = ArrowWriter::try_new(fs_err::File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

pub(crate) fn by_prompt(dev: f64, test: f64) -> Selection {
    Selection::all(SplitRule::Prompt { dev, test })
}

/// Everything to train on.
pub(crate) fn all() -> Selection {
    by_prompt(0.0, 0.0)
}

/// Ingests one source and reads the table back.
pub(crate) fn ingest(card: &Card, source: &Path, selection: &Selection) -> problem::Result<(Vec<Vote>, Report)> {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("votes.parquet");
    let result = data::ingest(card, &[source.display().to_string()], selection, 7, &out);
    match result {
        Ok(report) => {
            let votes = data::read_votes(&out).unwrap();
            assert_eq!(votes.len(), report.kept);
            let left = fs_err::read_dir(dir.path()).unwrap().count();
            assert_eq!(left, 1, "only the table is left");
            Ok((votes, report))
        }
        Err(error) => {
            assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind: {error}");
            assert!(error.hint().is_some_and(|h| !h.is_empty()), "no hint: {error}");
            Err(error)
        }
    }
}
