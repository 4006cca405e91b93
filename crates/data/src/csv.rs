//! CSV: records told apart strictly, so that a text is the writer's or the file is refused; which character separates columns and how
//! a quote in a quoted text is written are told from the file and said.

use std::io::BufRead;
use std::sync::Arc;

use arrow::array::{ArrayRef, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use problem::{Problem, Result, invalid};

use crate::draft::Flaw;
use crate::table::arrow_bug;

const BATCH_ROWS: usize = 1024;
const BATCH_BYTES: usize = 16 << 20;

/// Separators that are looked for.
const DELIMITERS: [u8; 4] = *b",;\t|";

/// How a file writes its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dialect {
    delimiter: u8,
    /// A quote in a quoted text is written `\"` (Spark, MySQL, Python's `escapechar`), not `""`.
    backslash: bool,
    /// Excel's line `sep=;` in front of the header.
    has_sep_line: bool,
}

/// What a CSV file's beginning and a look at all of its records say.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) schema: SchemaRef,
    pub(crate) dialect: Dialect,
    /// What was decided that the name's ending does not say.
    pub(crate) remark: Option<String>,
}

/// A violation of CSV's rules, after which no later record is certain.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Broken {
    /// Of the file, from 1; 0 is the header.
    row: usize,
    found: String,
}

/// One record at a time.
struct Records {
    reader: Box<dyn BufRead + Send>,
    dialect: Dialect,
    /// Records read.
    count: usize,
    data: Vec<u8>,
    ends: Vec<usize>,
    /// Was a backslash followed by a quote within quotes?
    backslash_quote: bool,
    /// In a file that writes `\\"`: a backslash in a text without quotes that may be a sign or half of one.
    bare_backslash: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    FieldStart,
    Plain,
    Quoted,
    QuoteInQuoted,
    Escape,
}

/// Ends the field at the end of `data`. In a file that writes `\\"`: may a backslash in this text without quotes be half of a sign?
fn end_field(data: &[u8], ends: &mut Vec<usize>, state: State, dialect: Dialect) -> bool {
    let text = &data[ends.last().copied().unwrap_or(0)..];
    let holds = |what: &[u8]| memchr::memmem::find(text, what).is_some();
    let bare = state == State::Plain && dialect.backslash && (text == b"\\N" || holds(b"\\\\") || holds(b"\\\""));
    ends.push(data.len());
    bare
}

enum Failed {
    Read(std::io::Error),
    Broken(Broken),
}

impl Records {
    fn new(reader: Box<dyn BufRead + Send>, dialect: Dialect) -> std::result::Result<Self, Failed> {
        let (data, ends) = (Vec::new(), Vec::new());
        let mut records = Self { reader, dialect, count: 0, data, ends, backslash_quote: false, bare_backslash: false };
        if dialect.has_sep_line {
            let mut line = Vec::new();
            records.reader.read_until(b'\n', &mut line).map_err(Failed::Read)?;
        }
        Ok(records)
    }

    fn fields(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(from, to)| &self.data[from..*to])
    }

    fn field(&self, index: usize) -> &[u8] {
        let from = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.data[from..self.ends[index]]
    }

    fn broken(&self, found: impl Into<String>) -> Failed {
        Failed::Broken(Broken { row: self.count, found: found.into() })
    }

    /// Reads the next record into `data` and `ends`; false at the end of the file. Empty lines are no records.
    fn next(&mut self) -> std::result::Result<bool, Failed> {
        loop {
            self.data.clear();
            self.ends.clear();
            let Some(quoted) = self.record()? else { return Ok(false) };
            if self.ends.len() > 1 || quoted || !self.data.is_empty() {
                self.count += 1;
                return Ok(true);
            }
        }
    }

    /// One line or quoted lines: was a quote opened? None at the end of the file.
    fn record(&mut self) -> std::result::Result<Option<bool>, Failed> {
        let (mut state, mut quoted, mut started, mut quote_at) = (State::FieldStart, false, false, 0);
        let Dialect { delimiter, backslash, .. } = self.dialect;
        loop {
            let bytes = self.reader.fill_buf().map_err(Failed::Read)?;
            if bytes.is_empty() {
                return match state {
                    State::Quoted | State::Escape => {
                        let from: String = String::from_utf8_lossy(&self.data[quote_at..]).chars().take(40).collect();
                        Err(self.broken(format!("a quote that is opened in front of `{from}` and never closed")))
                    }
                    _ if !started => Ok(None),
                    _ => {
                        self.bare_backslash |= end_field(&self.data, &mut self.ends, state, self.dialect);
                        Ok(Some(quoted))
                    }
                };
            }
            started = true;
            let mut used = 0;
            while used < bytes.len() {
                let rest = &bytes[used..];
                let byte = rest[0];
                match state {
                    State::FieldStart if byte == b'"' => {
                        (state, quoted, quote_at) = (State::Quoted, true, self.data.len());
                        used += 1;
                    }
                    State::FieldStart | State::Plain | State::QuoteInQuoted
                        if byte == delimiter || byte == b'\n' || byte == b'\r' =>
                    {
                        let ended = state;
                        state = State::FieldStart;
                        used += 1;
                        if byte == delimiter {
                            let bare = end_field(&self.data, &mut self.ends, ended, self.dialect);
                            self.bare_backslash |= bare;
                        } else {
                            self.reader.consume(used);
                            self.bare_backslash |= end_field(&self.data, &mut self.ends, ended, self.dialect);
                            if byte == b'\r' {
                                let next = self.reader.fill_buf().map_err(Failed::Read)?;
                                let pair = usize::from(next.first() == Some(&b'\n'));
                                self.reader.consume(pair);
                            }
                            return Ok(Some(quoted));
                        }
                    }
                    State::FieldStart | State::Plain => {
                        state = State::Plain;
                        let end = memchr::memchr3(delimiter, b'\n', b'\r', rest).unwrap_or(rest.len());
                        self.data.extend_from_slice(&rest[..end]);
                        used += end;
                    }
                    State::Quoted => {
                        let end =
                            if backslash { memchr::memchr2(b'"', b'\\', rest) } else { memchr::memchr(b'"', rest) };
                        self.data.extend_from_slice(&rest[..end.unwrap_or(rest.len())]);
                        used += end.map_or(rest.len(), |end| end + 1);
                        match end.map(|end| rest[end]) {
                            Some(b'"') => {
                                self.backslash_quote |= self.data.len() > quote_at && self.data.ends_with(b"\\");
                                state = State::QuoteInQuoted;
                            }
                            Some(_) => state = State::Escape,
                            None => {}
                        }
                    }
                    State::QuoteInQuoted if byte == b'"' && !backslash => {
                        self.data.push(b'"');
                        state = State::Quoted;
                        used += 1;
                    }
                    State::QuoteInQuoted => {
                        let text: String = String::from_utf8_lossy(rest).chars().take(20).collect();
                        return Err(self.broken(format!("`{text}` after a closing quote")));
                    }
                    State::Escape if byte == b'"' || byte == b'\\' => {
                        self.backslash_quote |= byte == b'"';
                        self.data.push(byte);
                        state = State::Quoted;
                        used += 1;
                    }
                    State::Escape => {
                        let found = format!("a backslash in front of `{}`", char::from(byte));
                        return Err(
                            self.broken(format!("{found}, which some writers take for a sign and others for two"))
                        );
                    }
                }
            }
            self.reader.consume(used);
        }
    }
}

/// All that a whole file shows under one dialect.
#[derive(Debug)]
struct Look {
    broken: Option<Broken>,
    other_lengths: usize,
    backslash_quote: bool,
    /// In a file with backslashes: one in a text without quotes may be one sign or two.
    bare_backslash: bool,
}

type Open<'o> = &'o dyn Fn() -> Result<Box<dyn BufRead + Send>>;

/// Looks at all records of a file.
fn look(file: &str, open: Open, dialect: Dialect, columns: usize) -> Result<Look> {
    let mut look = Look { broken: None, other_lengths: 0, backslash_quote: false, bare_backslash: false };
    let mut records = Records::new(open()?, dialect).map_err(|f| failed(file, f))?;
    loop {
        match records.next() {
            Ok(true) => {
                look.other_lengths += usize::from(records.ends.len() != columns);
            }
            Ok(false) => break,
            Err(Failed::Broken(broken)) => {
                look.broken = Some(broken);
                break;
            }
            Err(read) => return Err(failed(file, read)),
        }
    }
    (look.backslash_quote, look.bare_backslash) = (records.backslash_quote, records.bare_backslash);
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
    dialect = with_quotes(file, open, dialect, names.len())?;
    let mut notes = Vec::new();
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

/// The dialect with its way to write quotes, told from the whole file. Two ways that both make sense are refused.
fn with_quotes(file: &str, open: Open, dialect: Dialect, columns: usize) -> Result<Dialect> {
    let doubled = look(file, open, dialect, columns)?;
    if !doubled.backslash_quote {
        return match doubled.broken {
            Some(broken) => Err(failed(file, Failed::Broken(broken))),
            None => Ok(dialect),
        };
    }
    let other = Dialect { backslash: true, ..dialect };
    let escaped = look(file, open, other, columns)?;
    let unclear = |found: &str| {
        let hint = "write the file again with each quote in a quoted text doubled (Spark: `.option(\"escape\", \"\\\"\")`; pandas does so), or as Parquet";
        Err(invalid(file, "one way to write a quote in a quoted text: `\"\"` or `\\\"`", found, hint))
    };
    match (doubled.broken, escaped.broken) {
        (None, Some(_)) => Ok(dialect),
        (None, None) => match (doubled.other_lengths, escaped.other_lengths) {
            (0, 1..) => Ok(dialect),
            (1.., 0) if !escaped.bare_backslash => Ok(other),
            _ => unclear("texts with a backslash in front of a quote, which could be either"),
        },
        (Some(_), None) if !escaped.bare_backslash => Ok(other),
        (Some(_), None) => unclear(
            "`\\\"` in some texts, and in others backslashes that writers of it mean differently (`\\\\`, `\\N`)",
        ),
        (Some(broken), Some(_)) => Err(failed(file, Failed::Broken(broken))),
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
