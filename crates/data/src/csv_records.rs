//! The records of a CSV file, one at a time, told apart strictly under one way to write them.

use std::io::BufRead;

/// How a file writes its records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dialect {
    pub(crate) delimiter: u8,
    /// A quote in a quoted text is written `\"` (Spark, MySQL, Python's `escapechar`), not `""`.
    pub(crate) backslash: bool,
    /// Excel's line `sep=;` in front of the header.
    pub(crate) has_sep_line: bool,
}

/// A violation of CSV's rules, after which no later record is certain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    /// Of the file, from 1; 0 is the header.
    pub(crate) row: usize,
    pub(crate) found: String,
}

/// One record at a time.
pub(crate) struct Records {
    pub(crate) reader: Box<dyn BufRead + Send>,
    pub(crate) dialect: Dialect,
    /// Records read.
    pub(crate) count: usize,
    pub(crate) data: Vec<u8>,
    pub(crate) ends: Vec<usize>,
    /// Was a backslash followed by a quote within quotes?
    pub(crate) backslash_quote: bool,
    pub(crate) seen: Seen,
}

/// What texts without quotes of their own show.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// In a file that writes `\\"`: a backslash in one of them may be a sign or half of one.
    pub(crate) bare_backslash: bool,
    /// Texts of the latest record in double quotes after a space, and in single quotes: these quotes are read as parts of the texts.
    pub(crate) inner: [usize; 2],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    FieldStart,
    Plain,
    Quoted,
    QuoteInQuoted,
    Escape,
}

/// Ends the field at the end of `data`.
fn end_field(data: &[u8], ends: &mut Vec<usize>, state: State, dialect: Dialect, seen: &mut Seen) {
    let text = &data[ends.last().copied().unwrap_or(0)..];
    ends.push(data.len());
    if state != State::Plain {
        return;
    }
    let holds = |what: &[u8]| memchr::memmem::find(text, what).is_some();
    seen.bare_backslash |= dialect.backslash && (text == b"\\N" || holds(b"\\\\") || holds(b"\\\""));
    match text.trim_ascii() {
        [b'"', .., b'"'] => seen.inner[0] += 1,
        [b'\'', .., b'\''] => seen.inner[1] += 1,
        _ => {}
    }
}

pub(crate) enum Failed {
    Read(std::io::Error),
    Broken(Broken),
}

impl Records {
    pub(crate) fn new(reader: Box<dyn BufRead + Send>, dialect: Dialect) -> std::result::Result<Self, Failed> {
        let (data, ends) = (Vec::new(), Vec::new());
        let mut records = Self { reader, dialect, count: 0, data, ends, backslash_quote: false, seen: Seen::default() };
        if dialect.has_sep_line {
            let mut line = Vec::new();
            records.reader.read_until(b'\n', &mut line).map_err(Failed::Read)?;
        }
        Ok(records)
    }

    pub(crate) fn fields(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(from, to)| &self.data[from..*to])
    }

    pub(crate) fn field(&self, index: usize) -> &[u8] {
        let from = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.data[from..self.ends[index]]
    }

    fn broken(&self, found: impl Into<String>) -> Failed {
        Failed::Broken(Broken { row: self.count, found: found.into() })
    }

    /// Reads the next record into `data` and `ends`; false at the end of the file. Empty lines are no records.
    pub(crate) fn next(&mut self) -> std::result::Result<bool, Failed> {
        loop {
            self.data.clear();
            self.ends.clear();
            self.seen.inner = [0; 2];
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
                        end_field(&self.data, &mut self.ends, state, self.dialect, &mut self.seen);
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
                            end_field(&self.data, &mut self.ends, ended, self.dialect, &mut self.seen);
                        } else {
                            self.reader.consume(used);
                            end_field(&self.data, &mut self.ends, ended, self.dialect, &mut self.seen);
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
