//! CSV: records told apart strictly, so that a text is the writer's or the file is refused; which character separates columns and how
//! a quote in a quoted text is written are told from the file and said.

use std::io::BufRead;
use std::sync::Arc;

use arrow::array::{ArrayRef, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use problem::{Problem, Result, invalid};

use crate::csv_records::{Broken, Dialect, Failed, Records};
use crate::draft::Flaw;
use crate::table::arrow_bug;

const BATCH_ROWS: usize = 1024;
const BATCH_BYTES: usize = 16 << 20;

/// Separators that are looked for.
const DELIMITERS: [u8; 4] = *b",;\t|";

/// What a CSV file's beginning and a look at all of its records say.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) schema: SchemaRef,
    pub(crate) dialect: Dialect,
    /// What was decided that the name's ending does not say.
    pub(crate) remark: Option<String>,
}

/// All that a whole file shows under one dialect.
#[derive(Debug)]
struct Look {
    broken: Option<Broken>,
    other_lengths: usize,
    backslash_quote: bool,
    /// In a file with backslashes: one in a text without quotes may be one sign or two.
    bare_backslash: bool,
    rows: usize,
    /// Texts in double quotes after a space, and in single quotes, and the rows that show that they are meant as quotes.
    inner: [(usize, usize); 2],
}

type Open<'o> = &'o dyn Fn() -> Result<Box<dyn BufRead + Send>>;

/// Looks at all records of a file.
fn look(file: &str, open: Open, dialect: Dialect, columns: usize) -> Result<Look> {
    let (broken, inner) = (None, [(0, 0); 2]);
    let mut look = Look { broken, other_lengths: 0, backslash_quote: false, bare_backslash: false, rows: 0, inner };
    let mut records = Records::new(open()?, dialect).map_err(|f| failed(file, f))?;
    loop {
        match records.next() {
            Ok(true) => {
                look.other_lengths += usize::from(records.ends.len() != columns);
                look.rows += 1;
                // One text in single quotes may have them for its own sake; two in one row are a writer's habit.
                for ((all, seen), least) in look.inner.iter_mut().zip(records.seen.inner).zip([1, 2]) {
                    *all = (all.0 + seen, all.1 + usize::from(seen >= least));
                }
            }
            Ok(false) => break,
            Err(Failed::Broken(broken)) => {
                look.broken = Some(broken);
                break;
            }
            Err(read) => return Err(failed(file, read)),
        }
    }
    (look.backslash_quote, look.bare_backslash) = (records.backslash_quote, records.seen.bare_backslash);
    Ok(look)
}

fn failed(file: &str, failed: Failed) -> Problem {
    match failed {
        Failed::Read(error) => invalid(file, "text that can be read", error.to_string(), crate::decode::hint(&error)),
        Failed::Broken(Broken { row, found }) => {
            let place = if row == 0 { format!("{file}, header") } else { format!("{file}, row {row}") };
            let hint = "write the file again with each quote in a quoted text doubled (Spark: `.option(\"escape\", \"\\\"\")`; pandas does so), or as Parquet";
            invalid(place, "quotes around a whole text, with quotes in it written as two", found, hint)
        }
    }
}

/// What a delimiter is called in notes.
fn called(delimiter: u8) -> &'static str {
    match delimiter {
        b',' => "commas",
        b';' => "semicolons",
        b'\t' => "tabs",
        _ => "vertical bars",
    }
}

/// Reads the header, and looks at the whole file for how it is written. `usual` is the delimiter that the name's ending promises.
pub(crate) fn shape(file: &str, open: Open, usual: u8) -> Result<Shape> {
    let plain = Dialect { delimiter: usual, backslash: false, has_sep_line: false };
    let mut dialect = plain;
    let mut first = Vec::new();
    open()?.read_until(b'\n', &mut first).map_err(|e| failed(file, Failed::Read(e)))?;
    if first.contains(&0) {
        let hint = "is it UTF-16 without a byte order mark? re-encode it: `iconv -f UTF-16LE -t UTF-8 FILE > NEW`";
        return Err(invalid(format!("{file}, header"), "names of columns", "zero bytes", hint));
    }
    let sep = first.trim_ascii_end().strip_prefix(b"sep=").filter(|rest| rest.len() <= 1);
    if let Some(sep) = sep {
        // Excel's `sep=` with a tab behind it: the tab is trimmed with the line's end.
        let delimiter = sep.first().copied().unwrap_or(b'\t');
        dialect = Dialect { delimiter, has_sep_line: true, ..plain };
    } else {
        // The delimiter that makes the most columns of the header; the usual one of equals.
        let mut most = 0;
        for delimiter in [usual].into_iter().chain(DELIMITERS) {
            let tried = Dialect { delimiter, ..plain };
            let mut records = Records::new(open()?, tried).map_err(|f| failed(file, f))?;
            match records.next() {
                Ok(_) if records.ends.len() > most => (most, dialect) = (records.ends.len(), tried),
                Ok(_) | Err(Failed::Broken(_)) => {}
                Err(read) => return Err(failed(file, read)),
            }
        }
    }
    let mut records = Records::new(open()?, dialect).map_err(|f| failed(file, f))?;
    if !records.next().map_err(|f| failed(file, f))? {
        return Err(invalid(file, "a header with the names of columns", "none", "is the file empty?"));
    }
    let names = records
        .fields()
        .map(|f| std::str::from_utf8(f).map(str::to_owned))
        .collect::<std::result::Result<Vec<String>, _>>()
        .map_err(|_| invalid(format!("{file}, header"), "UTF-8 text", "other bytes", crate::decode::REENCODE))?;
    let look;
    (dialect, look) = with_quotes(file, open, dialect, names.len())?;
    let mut notes = inner_quotes(file, &look)?;
    if dialect.delimiter != usual {
        notes.push(format!("columns are separated by {}", called(dialect.delimiter)));
    }
    if dialect.backslash {
        notes.push("a quote in a quoted text is written as \\\"".to_owned());
    }
    // Everything is text: `007` is an id, not a number.
    let fields: Vec<Field> = names.into_iter().map(|n| Field::new(n, DataType::Utf8, true)).collect();
    let remark = (!notes.is_empty()).then(|| format!("{file}: {}", notes.join("; ")));
    Ok(Shape { schema: Arc::new(Schema::new(fields)), dialect, remark })
}

/// What is to be said of quotes that are read as parts of texts; an error if most rows have them, since they are not meant so.
fn inner_quotes(file: &str, look: &Look) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for (called, (texts, rows)) in ["double quotes after a space", "single quotes"].into_iter().zip(look.inner) {
        // The header is one of the records.
        if rows * 2 > look.rows.saturating_sub(1) {
            let hint =
                "write the file again with `\"` around texts and without a space between a separator and the quote";
            return Err(invalid(
                file,
                "texts in `\"` that begin right after a separator",
                format!("texts in {called} in {rows} rows"),
                hint,
            ));
        }
        if texts > 0 {
            notes.push(format!("{texts} texts are in {called}, which are read as parts of the texts"));
        }
    }
    Ok(notes)
}

/// The dialect with its way to write quotes, told from the whole file. Two ways that both make sense are refused.
fn with_quotes(file: &str, open: Open, dialect: Dialect, columns: usize) -> Result<(Dialect, Look)> {
    let doubled = look(file, open, dialect, columns)?;
    if !doubled.backslash_quote {
        return match doubled.broken {
            Some(broken) => Err(failed(file, Failed::Broken(broken))),
            None => Ok((dialect, doubled)),
        };
    }
    let other = Dialect { backslash: true, ..dialect };
    let escaped = look(file, open, other, columns)?;
    let unclear = |found: &str| {
        let hint = "write the file again with each quote in a quoted text doubled (Spark: `.option(\"escape\", \"\\\"\")`; pandas does so), or as Parquet";
        Err(invalid(file, "one way to write a quote in a quoted text: `\"\"` or `\\\"`", found, hint))
    };
    match (&doubled.broken, &escaped.broken) {
        (None, Some(_)) => Ok((dialect, doubled)),
        (None, None) => match (doubled.other_lengths, escaped.other_lengths) {
            (0, 1..) => Ok((dialect, doubled)),
            (1.., 0) if !escaped.bare_backslash => Ok((other, escaped)),
            _ => unclear("texts with a backslash in front of a quote, which could be either"),
        },
        (Some(_), None) if !escaped.bare_backslash => Ok((other, escaped)),
        (Some(_), None) => unclear(
            "`\\\"` in some texts, and in others backslashes that writers of it mean differently (`\\\\`, `\\N`)",
        ),
        (Some(broken), Some(_)) => Err(failed(file, Failed::Broken(broken.clone()))),
    }
}

/// A file's rows, batch by batch; a row that cannot be read is a flaw in its place.
pub(crate) struct CsvBatches {
    file: Arc<str>,
    records: Records,
    /// All of the file's columns, and those that are read.
    columns: usize,
    wanted: Vec<usize>,
    schema: SchemaRef,
    bad: Option<(usize, Flaw)>,
    ended: bool,
}

impl CsvBatches {
    pub(crate) fn new(
        file: Arc<str>,
        reader: Box<dyn BufRead + Send>,
        shape: &Shape,
        wanted: Vec<usize>,
    ) -> Result<Self> {
        let mut records = Records::new(reader, shape.dialect).map_err(|f| failed(&file, f))?;
        records.next().map_err(|f| failed(&file, f))?;
        let schema = shape.schema.project(&wanted).map_err(|e| arrow_bug(&file, &e))?;
        let columns = shape.schema.fields().len();
        Ok(Self { file, records, columns, wanted, schema: Arc::new(schema), bad: None, ended: false })
    }

    /// What is wrong with the record that was read, if anything is.
    fn flaw(&self) -> Option<Flaw> {
        let fields = self.records.ends.len();
        if fields != self.columns {
            return Some(Flaw {
                kind: "a row with another number of fields",
                column: String::new(),
                expected: format!("{} fields, as the header has", self.columns),
                found: fields.to_string(),
                hint: "correct the row (is a text with a separator in it without quotes?), or set `bad_rows = \"drop\"`",
            });
        }
        let wrong = self
            .wanted
            .iter()
            .zip(self.schema.fields())
            .find(|(i, _)| std::str::from_utf8(self.records.field(**i)).is_err());
        wrong.map(|(i, field)| {
            let text: String = String::from_utf8_lossy(self.records.field(*i)).chars().take(40).collect();
            Flaw {
                kind: "bytes that are no UTF-8",
                column: field.name().clone(),
                expected: "UTF-8 text".into(),
                found: format!("other bytes, shown as \u{fffd}: `{text}`"),
                hint: crate::decode::REENCODE,
            }
        })
    }

    fn gather(&mut self) -> Result<(usize, Option<RecordBatch>)> {
        let mut builders: Vec<StringBuilder> = self.wanted.iter().map(|_| StringBuilder::new()).collect();
        let (first, mut rows, mut bytes) = (self.records.count - 1, 0, 0); // without the header
        while rows < BATCH_ROWS && bytes < BATCH_BYTES {
            if !self.records.next().map_err(|f| failed(&self.file, f))? {
                self.ended = true;
                break;
            }
            if let Some(flaw) = self.flaw() {
                self.bad = Some((self.records.count - 2, flaw));
                break;
            }
            for (builder, index) in builders.iter_mut().zip(&self.wanted) {
                let text = std::str::from_utf8(self.records.field(*index)).unwrap_or_default(); // looked at above
                builder.append_value(text);
            }
            rows += 1;
            bytes += self.records.data.len();
        }
        if rows == 0 {
            return Ok((first, None));
        }
        let arrays: Vec<ArrayRef> = builders.iter_mut().map(|b| Arc::new(b.finish()) as ArrayRef).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options);
        batch.map(|batch| (first, Some(batch))).map_err(|e| arrow_bug(&self.file, &e))
    }
}

impl Iterator for CsvBatches {
    type Item = Result<(usize, Result<RecordBatch, Flaw>)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((row, flaw)) = self.bad.take() {
                return Some(Ok((row, Err(flaw))));
            }
            if self.ended {
                return None;
            }
            match self.gather() {
                Ok((first, Some(batch))) => return Some(Ok((first, Ok(batch)))),
                Ok((_, None)) => {}
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
    }
}
