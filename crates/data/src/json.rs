//! JSON lines (or one array of objects) as record batches; a wrong line is named.

use std::io::BufRead;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::json::ReaderBuilder;
use arrow::json::reader::Decoder;
use arrow::record_batch::RecordBatch;
use problem::{Problem, Result, invalid};

use crate::shape::Shape;
use crate::table::arrow_bug;

const BATCH_ROWS: usize = 4096;
const BATCH_BYTES: usize = 16 << 20;

/// The objects of a file, one at a time.
struct Objects {
    file: Arc<str>,
    reader: Box<dyn BufRead + Send>,
    /// One array rather than lines?
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
        let hint = "the file is damaged or cut, or is no JSON lines: fetch or write it again";
        invalid(place, "one JSON object a line", found.to_string(), hint)
    }

    /// Appends the next object's bytes to `out`; false at the end. Blank lines do not count.
    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool> {
        if !self.started {
            self.started = true;
            let head = self.reader.fill_buf().map_err(|e| invalid(&self.file, "text", e.to_string(), "is it cut?"))?;
            let bom = head.starts_with(b"\xef\xbb\xbf");
            let first = head.iter().skip(if bom { 3 } else { 0 }).position(|b| !b.is_ascii_whitespace());
            let skip = first.map_or(0, |at| at + if bom { 3 } else { 0 });
            self.array = head.get(skip) == Some(&b'[');
            self.reader.consume(if self.array {
                skip + 1
            } else if bom {
                3
            } else {
                0
            });
        }
        if self.array { self.next_of_array(out) } else { self.next_line(out) }
    }

    fn next_line(&mut self, out: &mut Vec<u8>) -> Result<bool> {
        loop {
            let start = out.len();
            let read = self.reader.read_until(b'\n', out).map_err(|e| self.broken(e))?;
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
                Err(error) => return Err(self.broken(error)),
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
            if let Some(object) = end {
                self.line += usize::from(object);
                return Ok(object);
            }
        }
    }
}

/// The columns and types of all of a file's objects: no key that first appears late is missed.
pub(crate) fn infer(file: &Arc<str>, reader: Box<dyn BufRead + Send>) -> Result<SchemaRef> {
    let mut objects = Objects::new(file.clone(), reader);
    let mut shape = Shape::default();
    let mut line = Vec::new();
    while objects.next(&mut line)? {
        shape.see(&line).map_err(|found| {
            objects.line -= 1;
            objects.broken(found)
        })?;
        line.clear();
    }
    if objects.line == 0 {
        return Err(objects.broken("none"));
    }
    let schema = shape.schema();
    let fields = schema.fields().iter().map(|f| f.as_ref().clone().with_data_type(told(f.data_type())));
    Ok(Arc::new(Schema::new(fields.collect::<Vec<_>>())))
}

/// Columns that are null in all objects are taken for text.
fn told(data_type: &DataType) -> DataType {
    let of = |f: &Arc<Field>| Arc::new(f.as_ref().clone().with_data_type(told(f.data_type())));
    match data_type {
        DataType::Null => DataType::Utf8,
        DataType::Boolean | DataType::Int64 | DataType::Float64 | DataType::Utf8 => data_type.clone(),
        DataType::List(item) => DataType::List(of(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(of).collect()),
        other => other.clone(),
    }
}

/// A file's objects, batch by batch.
pub(crate) struct JsonBatches {
    objects: Objects,
    decoder: Decoder,
    schema: SchemaRef,
    ended: bool,
}

fn decoder(schema: &SchemaRef) -> Result<Decoder> {
    ReaderBuilder::new(schema.clone())
        .with_batch_size(BATCH_ROWS)
        .with_coerce_primitive(true)
        .build_decoder()
        .map_err(|e| arrow_bug("json", &e))
}

impl JsonBatches {
    pub(crate) fn new(file: Arc<str>, reader: Box<dyn BufRead + Send>, schema: SchemaRef) -> Result<Self> {
        Ok(Self { objects: Objects::new(file, reader), decoder: decoder(&schema)?, schema, ended: false })
    }

    /// The first of these lines that does not decode, counted from 0, and why.
    fn culprit(&self, lines: &[u8], ends: &[usize]) -> Option<(usize, String)> {
        let mut from = 0;
        for (i, end) in ends.iter().enumerate() {
            let mut one = decoder(&self.schema).ok()?;
            let tried = one.decode(&lines[from..*end]).and_then(|_| one.flush());
            if let Err(error) = tried {
                return Some((i, error.to_string()));
            }
            from = *end;
        }
        None
    }
}

impl Iterator for JsonBatches {
    type Item = Result<(usize, RecordBatch)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let first = self.objects.line;
        let (mut lines, mut ends) = (Vec::new(), Vec::new());
        while ends.len() < BATCH_ROWS && lines.len() < BATCH_BYTES {
            match self.objects.next(&mut lines) {
                Ok(true) => ends.push(lines.len()),
                Ok(false) => {
                    self.ended = true;
                    break;
                }
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
        if ends.is_empty() {
            return None;
        }
        let decoded = self.decoder.decode(&lines).and_then(|_| self.decoder.flush());
        Some(match decoded {
            Ok(Some(batch)) if batch.num_rows() == ends.len() => Ok((first, batch)),
            other => {
                self.ended = true;
                let found = match other {
                    Err(error) => error.to_string(),
                    Ok(_) => "another number of objects than lines".into(),
                };
                let (row, found) = self.culprit(&lines, &ends).unwrap_or((0, found));
                self.objects.line = first + row;
                Err(self.objects.broken(found))
            }
        })
    }
}
