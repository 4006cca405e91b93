//! One JSON object, looked at before it is decoded: what is wrong with it and in which column; what other programs write beyond JSON
//! (Python's `NaN`, half a character) is taken out of columns that nobody needs.

use std::borrow::Cow;

use crate::draft::Flaw;

/// Objects and lists within each other, at most.
const DEPTH: usize = 100;

/// The object's bytes as JSON that any decoder reads: `NaN` and infinities are null, and in columns that are not `needed` what is no
/// text is replaced. A flaw that concerns a needed column, or the whole object, is given back.
pub(crate) fn clean<'a>(line: &'a [u8], needed: &dyn Fn(&str) -> bool) -> Result<Cow<'a, [u8]>, Flaw> {
    let utf8 = std::str::from_utf8(line).is_ok();
    let mut look = Look { bytes: line, at: 0, utf8, needed, column: String::new(), replaced: Vec::new() };
    look.space();
    match look.bytes.get(look.at) {
        Some(b'{') => {}
        Some(other) => {
            let what = match other {
                b'[' => "a list".to_owned(),
                b'"' => "a text".to_owned(),
                b'0'..=b'9' | b'-' => "a number".to_owned(),
                _ => format!("`{}`", String::from_utf8_lossy(line).trim().chars().take(40).collect::<String>()),
            };
            return Err(no_object(what));
        }
        None => return Err(no_object("nothing")),
    }
    look.object(0)?;
    look.space();
    if look.at < line.len() {
        return Err(no_object(format!("more text after the object, at character {}", look.at + 1)));
    }
    if look.replaced.is_empty() {
        return Ok(Cow::Borrowed(line));
    }
    let (mut out, mut from) = (Vec::with_capacity(line.len()), 0);
    for (start, end, text) in look.replaced {
        out.extend_from_slice(&line[from..start]);
        out.extend_from_slice(text.as_bytes());
        from = end;
    }
    out.extend_from_slice(&line[from..]);
    Ok(Cow::Owned(out))
}

fn no_object(found: impl Into<String>) -> Flaw {
    Flaw {
        kind: "no JSON object",
        column: String::new(),
        expected: "one JSON object a line".into(),
        found: found.into(),
        hint: "correct the row, or set `bad_rows = \"drop\"`",
    }
}

/// The name that a key in its quotes means: `"\u0061"` and `"a"` are the same.
fn name(quoted: &[u8]) -> Cow<'_, str> {
    let raw = &quoted[1..quoted.len() - 1];
    let escaped = memchr::memchr(b'\\', raw).is_some();
    match escaped.then(|| serde_json::from_slice::<String>(quoted)) {
        Some(Ok(name)) => Cow::Owned(name),
        // A key with half of a character is no column's name.
        Some(Err(_)) | None => String::from_utf8_lossy(raw),
    }
}

struct Look<'a, 'n> {
    bytes: &'a [u8],
    at: usize,
    /// Is all of it UTF-8?
    utf8: bool,
    needed: &'n dyn Fn(&str) -> bool,
    /// The key of the object that is being read, if it is needed.
    column: String,
    /// What stands in for bytes `[start, end)`.
    replaced: Vec<(usize, usize, String)>,
}

impl<'a> Look<'a, '_> {
    fn broken(&self) -> Flaw {
        let inside = if self.column.is_empty() { String::new() } else { format!(" in `{}`", self.column) };
        no_object(match self.bytes.get(self.at) {
            None | Some(b'\n') => format!("an object that ends too early{inside}, at character {}", self.at + 1),
            Some(_) => {
                let rest: String =
                    String::from_utf8_lossy(&self.bytes[self.at..]).trim_end().chars().take(20).collect();
                format!("`{rest}`{inside} at character {}, which is no JSON", self.at + 1)
            }
        })
    }

    fn in_column(&self, kind: &'static str, expected: &str, found: String, hint: &'static str) -> Flaw {
        Flaw { kind, column: self.column.clone(), expected: expected.into(), found, hint }
    }

    fn space(&mut self) {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.bytes.get(self.at) == Some(&byte);
        self.at += usize::from(found);
        found
    }

    fn object(&mut self, depth: usize) -> Result<(), Flaw> {
        self.at += 1;
        let mut keys: Vec<Cow<'a, str>> = Vec::new();
        self.space();
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            self.space();
            let start = self.at + 1;
            if self.bytes.get(self.at) != Some(&b'"') {
                return Err(self.broken());
            }
            self.text()?;
            let key = name(&self.bytes[start - 1..self.at]);
            if depth == 0 {
                self.column = if (self.needed)(&key) { key.clone().into_owned() } else { String::new() };
            }
            if !self.column.is_empty() && keys.contains(&key) {
                let found = format!("two of `{key}`");
                let hint = "keep one of the two, or set `bad_rows = \"drop\"`";
                return Err(self.in_column("a key twice", "each key once", found, hint));
            }
            keys.push(key);
            self.space();
            if !self.take(b':') {
                return Err(self.broken());
            }
            self.space();
            self.value(depth + 1)?;
            if depth == 0 {
                self.column.clear();
            }
            self.space();
            if self.take(b'}') {
                return Ok(());
            }
            if !self.take(b',') {
                return Err(self.broken());
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<(), Flaw> {
        self.at += 1;
        self.space();
        if self.take(b']') {
            return Ok(());
        }
        loop {
            self.space();
            self.value(depth + 1)?;
            self.space();
            if self.take(b']') {
                return Ok(());
            }
            if !self.take(b',') {
                return Err(self.broken());
            }
        }
    }

    fn value(&mut self, depth: usize) -> Result<(), Flaw> {
        if depth > DEPTH {
            return Err(no_object(format!("more than {DEPTH} objects and lists within each other")));
        }
        let rest = &self.bytes[self.at..];
        let start = self.at;
        for word in ["true", "false", "null"] {
            if rest.starts_with(word.as_bytes()) {
                self.at += word.len();
                return Ok(());
            }
        }
        for word in ["NaN", "Infinity", "-Infinity"] {
            if rest.starts_with(word.as_bytes()) {
                self.at += word.len();
                self.replaced.push((start, self.at, "null".into()));
                return Ok(());
            }
        }
        match rest.first() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => self.text(),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => Err(self.broken()),
        }
    }

    fn digits(&mut self) -> usize {
        let from = self.at;
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
        self.at - from
    }

    fn number(&mut self) -> Result<(), Flaw> {
        let start = self.at;
        self.take(b'-');
        let zero = self.bytes.get(self.at) == Some(&b'0');
        let whole = self.digits();
        let mut right = whole == 1 || (whole > 1 && !zero);
        if self.take(b'.') {
            right &= self.digits() > 0;
        }
        if self.take(b'e') || self.take(b'E') {
            if !self.take(b'+') {
                self.take(b'-');
            }
            right &= self.digits() > 0;
        }
        if right {
            return Ok(());
        }
        self.at = start;
        Err(self.broken())
    }

    /// A text in quotes, from the opening to the closing one.
    fn text(&mut self) -> Result<(), Flaw> {
        self.at += 1;
        let start = self.at;
        loop {
            let Some(step) = memchr::memchr2(b'"', b'\\', &self.bytes[self.at..]) else {
                self.at = self.bytes.len();
                return Err(self.broken());
            };
            self.at += step;
            if self.take(b'"') {
                break;
            }
            self.escape()?;
        }
        let text = &self.bytes[start..self.at - 1];
        if self.utf8 || std::str::from_utf8(text).is_ok() {
            return Ok(());
        }
        let readable = String::from_utf8_lossy(text).into_owned();
        if self.column.is_empty() {
            // Escapes in it were looked at; those that are replaced lie inside.
            self.replaced.retain(|(from, _, _)| *from < start);
            self.replaced.push((start, self.at - 1, readable.replace(['\\', '"'], "\u{fffd}")));
            return Ok(());
        }
        let found = format!("other bytes, shown as \u{fffd}: `{}`", readable.chars().take(40).collect::<String>());
        Err(self.in_column("bytes that are no UTF-8", "UTF-8 text", found, crate::decode::REENCODE))
    }

    /// The escape at a backslash.
    fn escape(&mut self) -> Result<(), Flaw> {
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 2;
                return Ok(());
            }
            Some(b'u') => {}
            _ => return Err(self.broken()),
        }
        let unit = |at: usize| -> Option<u16> {
            let digits = self.bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
            digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
            u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        let start = self.at;
        let Some(first) = unit(start) else { return Err(self.broken()) };
        match (first, unit(start + 6)) {
            (0xd800..0xdc00, Some(0xdc00..0xe000)) => self.at += 12,
            (0xd800..0xe000, _) if self.column.is_empty() => {
                self.at += 6;
                self.replaced.push((start, self.at, "\\ufffd".into()));
            }
            (0xd800..0xe000, _) => {
                let found = format!("`{}`, half of one", String::from_utf8_lossy(&self.bytes[start..start + 6]));
                let hint =
                    "a text was cut inside an emoji or a rare letter: correct the row, or set `bad_rows = \"drop\"`";
                return Err(self.in_column("half of a character", "whole characters", found, hint));
            }
            _ => self.at += 6,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &[u8], needed: &[&str]) -> Result<String, (String, String, String)> {
        let cleaned = clean(line, &|name| needed.contains(&name));
        cleaned.map(|c| String::from_utf8(c.into_owned()).unwrap()).map_err(|f| (f.kind.to_owned(), f.column, f.found))
    }

    #[test]
    fn good_objects_stay_as_they_are() {
        for line in [
            "{}",
            " {\"a\" : [1, -2.5e+3, 0, true, null, {\"b\": \"x\\n\\u00e9\\ud83d\\ude42\"}] } \n",
            "{\"a\":\"é🙂\",\"b\":[]}",
        ] {
            assert_eq!(read(line.as_bytes(), &["a", "b"]).unwrap(), line);
        }
    }

    #[test]
    fn what_python_writes_beyond_json_is_null() {
        assert_eq!(
            read(b"{\"a\":NaN,\"b\":[Infinity,-Infinity],\"c\":\"NaN\"}", &["a"]).unwrap(),
            "{\"a\":null,\"b\":[null,null],\"c\":\"NaN\"}"
        );
    }

    #[test]
    fn half_characters_and_other_bytes_matter_in_needed_columns_only() {
        let line = b"{\"a\":\"nice \\ud83d\",\"b\":1}";
        assert_eq!(read(line, &["b"]).unwrap(), "{\"a\":\"nice \\ufffd\",\"b\":1}");
        let (kind, column, found) = read(line, &["a"]).unwrap_err();
        assert_eq!(
            (kind.as_str(), column.as_str(), found.as_str()),
            ("half of a character", "a", "`\\ud83d`, half of one")
        );
        assert_eq!(read(b"{\"a\":\"\\ude42\\ud83d\"}", &["a"]).unwrap_err().0, "half of a character");
        let line = b"{\"a\":\"caf\xe9 \\ud83d\",\"b\":1}";
        assert_eq!(read(line, &["b"]).unwrap(), "{\"a\":\"caf\u{fffd} \u{fffd}ud83d\",\"b\":1}");
        let (kind, column, _) = read(b"{\"a\":\"caf\xe9\"}", &["a"]).unwrap_err();
        assert_eq!((kind.as_str(), column.as_str()), ("bytes that are no UTF-8", "a"));
    }

    #[test]
    fn a_key_twice_is_told_where_it_matters() {
        assert_eq!(read(b"{\"a\":1,\"a\":2}", &["a"]).unwrap_err().0, "a key twice");
        assert_eq!(read(b"{\"a\":[{\"x\":1,\"x\":2}]}", &["a"]).unwrap_err().0, "a key twice");
        assert!(read(b"{\"a\":1,\"b\":[{\"x\":1,\"x\":2}],\"b\":3}", &["a"]).is_ok());
    }

    #[test]
    fn what_is_no_object_is_named() {
        for (line, found) in [
            ("[1]", "a list"),
            ("12", "a number"),
            ("\"x\"", "a text"),
            ("hello there", "`hello there`"),
            ("{\"a\": \"cut", "ends too early in `a`, at character 11"),
            ("{\"a\": 1", "ends too early, at character 8"),
            ("{\"a\": 01}", "`01}` in `a` at character 7"),
            ("{\"a\": 'x'}", "`'x'}` in `a` at character 7"),
            ("{\"a\": 1} {", "after the object, at character 10"),
            ("{a: 1}", "`a: 1}` at character 2"),
        ] {
            let error = read(line.as_bytes(), &["a"]).unwrap_err();
            assert!(error.0 == "no JSON object" && error.2.contains(found), "{line}: {error:?}");
        }
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
        assert!(read(deep.as_bytes(), &[]).unwrap_err().2.contains("within each other"));
    }
}
