//! JSON lines (or arrays of objects) as record batches; a wrong line is a flaw in its place.

use std::collections::VecDeque;
use std::io::BufRead;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::json::ReaderBuilder;
use arrow::json::reader::Decoder;
use arrow::record_batch::RecordBatch;
use problem::{Problem, Result, invalid};

use crate::draft::Flaw;
use crate::jsonline::clean;
use crate::shape::Shape;
use crate::table::arrow_bug;

const BATCH_ROWS: usize = 4096;
const BATCH_BYTES: usize = 16 << 20;

fn unreadable(file: &str, rows: usize, error: &std::io::Error) -> Problem {
    invalid(format!("{file}, after row {rows}"), "text that can be read", error.to_string(), crate::decode::hint(error))
}

/// The objects of a file, one at a time.
struct Objects {
    file: Arc<str>,
    reader: Box<dyn BufRead + Send>,
    /// Arrays, nearly always one, rather than lines?
    array: bool,
    started: bool,
    /// Objects read.
    line: usize,
}

impl Objects {
    fn new(file: Arc<str>, reader: Box<dyn BufRead + Send>) -> Self {
        Self { file, reader, array: false, started: false, line: 0 }
    }

    fn broken(&self, found: impl std::fmt::Display) -> Problem {
        let place = format!("{}, row {}", self.file, self.line + 1);
        let hint = "JSON lines have one object on each line; an array has `[` before all of them and `]` after";
        invalid(place, "one JSON object a line", found.to_string(), hint)
    }

    /// Appends the next object's bytes to `out`; false at the end. Blank lines do not count.
    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool> {
        if !self.started {
            self.started = true;
            let bracket = self.peek()? == Some(b'[');
            if bracket {
                self.array = self.begin_array()?;
            }
        }
        if self.array { self.next_of_array(out) } else { self.next_line(out) }
    }

    /// The next byte that is no white space, which is not taken; none at the end of the file.
    fn peek(&mut self) -> Result<Option<u8>> {
        loop {
            let head = self.reader.fill_buf().map_err(|e| unreadable(&self.file, self.line, &e))?;
            let blank = head.iter().take_while(|b| b.is_ascii_whitespace()).count();
            let (found, ended) = (head.get(blank).copied(), head.is_empty());
            self.reader.consume(blank);
            if found.is_some() || ended {
                return Ok(found);
            }
        }
    }

    /// An array has ended: does another one follow, whose bracket is taken? Anything else is refused, so that no object is lost.
    fn another_array(&mut self) -> Result<bool> {
        match self.peek()? {
            None => Ok(false),
            Some(b'[') => {
                self.reader.consume(1);
                Ok(true)
            }
            Some(_) => Err(self.broken("more text after the end of the array")),
        }
    }

    /// The first line begins with `[`: does an array of objects begin there, and not a line with a list? Its bracket is taken.
    fn begin_array(&mut self) -> Result<bool> {
        let head = self.reader.fill_buf().map_err(|e| unreadable(&self.file, self.line, &e))?;
        let at = head.iter().position(|b| *b == b'[').unwrap_or_default();
        let then = head[at + 1..].iter().find(|b| !b.is_ascii_whitespace());
        let array = matches!(then, None | Some(b'{' | b']'));
        if array {
            self.reader.consume(at + 1);
        }
        Ok(array)
    }

    fn next_line(&mut self, out: &mut Vec<u8>) -> Result<bool> {
        loop {
            let start = out.len();
            let read = self.reader.read_until(b'\n', out).map_err(|e| unreadable(&self.file, self.line, &e))?;
            if read == 0 {
                return Ok(false);
            }
            if out[start..].iter().all(u8::is_ascii_whitespace) {
                out.truncate(start);
                continue;
            }
            self.line += 1;
            return Ok(true);
        }
    }

    /// Reads to the brace that closes the object, strings left aside.
    fn next_of_array(&mut self, out: &mut Vec<u8>) -> Result<bool> {
        let (mut depth, mut in_text, mut escaped) = (0usize, false, false);
        loop {
            let bytes = match self.reader.fill_buf() {
                Ok(bytes) => bytes,
                Err(error) => return Err(unreadable(&self.file, self.line, &error)),
            };
            if bytes.is_empty() {
                return Err(self.broken("the end of the file inside the array"));
            }
            let (mut used, mut strange, mut end) = (0, None, None);
            for b in bytes {
                used += 1;
                if depth == 0 {
                    match b {
                        b'{' => {}
                        b']' => end = Some(false),
                        b',' => continue,
                        b if b.is_ascii_whitespace() => continue,
                        other => strange = Some(char::from(*other)),
                    }
                    if end.is_some() || strange.is_some() {
                        break;
                    }
                }
                out.push(*b);
                match b {
                    _ if escaped => escaped = false,
                    b'\\' if in_text => escaped = true,
                    b'"' => in_text = !in_text,
                    b'{' | b'[' if !in_text => depth += 1,
                    b'}' | b']' if !in_text => {
                        depth -= 1;
                        if depth == 0 {
                            out.push(b'\n');
                            end = Some(true);
                            break;
                        }
                    }
                    _ => {}
                }
            }
            self.reader.consume(used);
            if let Some(strange) = strange {
                return Err(self.broken(format!("`{strange}` between objects")));
            }
            match end {
                Some(true) => {
                    self.line += 1;
                    return Ok(true);
                }
                Some(false) if !self.another_array()? => return Ok(false),
                _ => {}
            }
        }
    }
}

/// The columns and types of all of a file's objects: no key that first appears late is missed. Lines that are none are left to those
/// who read the rows.
pub(crate) fn infer(file: &Arc<str>, reader: Box<dyn BufRead + Send>) -> Result<SchemaRef> {
    let mut objects = Objects::new(file.clone(), reader);
    let mut shape = Shape::default();
    let mut line = Vec::new();
    let (mut good, mut wrong) = (false, None);
    while objects.next(&mut line)? {
        // Most lines are plain JSON, and only others are looked at once more.
        let cleaned = |_| clean(&line, &|_| false).map_err(|flaw| flaw.found);
        match shape.see(&line).or_else(|found| cleaned(found).and_then(|line| shape.see(&line))) {
            Ok(()) => good = true,
            Err(found) => wrong = wrong.or(Some((objects.line - 1, found))),
        }
        line.clear();
    }
    if !good {
        let (row, found) = wrong.unwrap_or((0, "none".into()));
        objects.line = row;
        let spread = "is it one object spread over many lines? write each object on a line of its own, or all of them as one array";
        return Err(objects.broken(found).with_hint(spread));
    }
    let schema = shape.schema();
    let fields = schema.fields().iter().map(|f| f.as_ref().clone().with_data_type(told(f.data_type())));
    Ok(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
}

/// Columns that are null in all objects are taken for text, and so are numbers: their digits stay as they were written, and who needs a
/// number reads it from them.
fn told(data_type: &DataType) -> DataType {
    let of = |f: &Arc<Field>| Arc::new(f.as_ref().clone().with_data_type(told(f.data_type())));
    match data_type {
        DataType::Null | DataType::Int64 | DataType::Float64 => DataType::Utf8,
        DataType::Boolean | DataType::Utf8 => data_type.clone(),
        DataType::List(item) => DataType::List(of(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(of).collect()),
        other => other.clone(),
    }
}

/// A file's objects, batch by batch; a line that is none, or not of its columns' types, is a flaw in its place.
pub(crate) struct JsonBatches {
    objects: Objects,
    schema: SchemaRef,
    waiting: VecDeque<(usize, Result<RecordBatch, Flaw>)>,
    ended: bool,
}

fn decoder(schema: &SchemaRef) -> Result<Decoder> {
    ReaderBuilder::new(schema.clone())
        .with_batch_size(BATCH_ROWS)
        .with_coerce_primitive(true)
        .build_decoder()
        .map_err(|e| arrow_bug("json", &e))
}

/// Lines as one batch; none with what is wrong if they do not decode.
fn decode(schema: &SchemaRef, lines: &[u8], rows: usize) -> Result<Result<RecordBatch, String>> {
    let mut decoder = decoder(schema)?;
    Ok(match decoder.decode(lines).and_then(|_| decoder.flush()) {
        Ok(Some(batch)) if batch.num_rows() == rows => Ok(batch),
        Ok(_) => Err("another number of objects than lines".into()),
        Err(error) => Err(error.to_string()),
    })
}

/// A line whose values are not of its columns' types; Arrow names the column in its message.
fn other_type(error: &str) -> Flaw {
    let error = error.strip_prefix("Json error: ").unwrap_or(error);
    let named = error.strip_prefix("whilst decoding field '").and_then(|rest| rest.split_once("': "));
    let (column, found) = named.unwrap_or(("", error));
    Flaw {
        kind: "a value of another type",
        column: column.into(),
        expected: "a value of the kind that the column has in most of the file's rows".into(),
        found: found.into(),
        hint: "correct the row, or set `bad_rows = \"drop\"`",
    }
}

impl JsonBatches {
    pub(crate) fn new(file: Arc<str>, reader: Box<dyn BufRead + Send>, schema: SchemaRef) -> Self {
        Self { objects: Objects::new(file, reader), schema, waiting: VecDeque::new(), ended: false }
    }

    /// Reads lines to fill a batch, or up to one that is no object, and decodes them.
    fn gather(&mut self) -> Result<()> {
        let first = self.objects.line;
        let (mut lines, mut ends, mut bad) = (Vec::new(), Vec::new(), None);
        while ends.len() < BATCH_ROWS && lines.len() < BATCH_BYTES {
            let start = lines.len();
            if !self.objects.next(&mut lines)? {
                self.ended = true;
                break;
            }
            let cleaned = clean(&lines[start..], &|name| self.schema.index_of(name).is_ok()).map(|line| match line {
                std::borrow::Cow::Borrowed(_) => None,
                std::borrow::Cow::Owned(line) => Some(line),
            });
            match cleaned {
                Ok(None) => ends.push(lines.len()),
                Ok(Some(line)) => {
                    lines.truncate(start);
                    lines.extend_from_slice(&line);
                    ends.push(lines.len());
                }
                Err(flaw) => {
                    lines.truncate(start);
                    bad = Some((self.objects.line - 1, Err(flaw)));
                    break;
                }
            }
        }
        self.decode_all(first, &lines, &ends)?;
        self.waiting.extend(bad);
        Ok(())
    }

    /// Decodes lines to batches, with a flaw in the place of each line that does not decode.
    fn decode_all(&mut self, first: usize, lines: &[u8], ends: &[usize]) -> Result<()> {
        if ends.is_empty() {
            return Ok(());
        }
        if let Ok(batch) = decode(&self.schema, lines, ends.len())? {
            self.waiting.push_back((first, Ok(batch)));
            return Ok(());
        }
        // Runs of good lines between the bad ones.
        let start = |line: usize| if line == 0 { 0 } else { ends[line - 1] };
        let mut from = 0;
        for (line, end) in ends.iter().enumerate() {
            let Err(error) = decode(&self.schema, &lines[start(line)..*end], 1)? else { continue };
            if line > from {
                self.waiting.push_back((first + from, self.run(&lines[start(from)..start(line)], line - from)?));
            }
            self.waiting.push_back((first + line, Err(other_type(&error))));
            from = line + 1;
        }
        if ends.len() > from {
            self.waiting.push_back((first + from, self.run(&lines[start(from)..], ends.len() - from)?));
        }
        Ok(())
    }

    /// Lines each of which decodes.
    fn run(&self, lines: &[u8], rows: usize) -> Result<Result<RecordBatch, Flaw>> {
        decode(&self.schema, lines, rows)?.map(Ok).map_err(|error| arrow_bug(&self.objects.file, &error))
    }
}

impl Iterator for JsonBatches {
    type Item = Result<(usize, Result<RecordBatch, Flaw>)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(next) = self.waiting.pop_front() {
                return Some(Ok(next));
            }
            if self.ended {
                return None;
            }
            if let Err(error) = self.gather() {
                self.ended = true;
                return Some(Err(error));
            }
        }
    }
}
