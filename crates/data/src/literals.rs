//! Messages that a writer turned into text: JSON (`json.dumps`), what Python prints (`repr`, `str`), and NumPy's lists of those, which
//! have no commas.

use serde_json::Value;

/// Lists and objects within each other, at most.
const DEPTH: usize = 32;

/// What the two fields of a message are called, in the order in which they are tried.
pub(crate) const MESSAGE_FIELDS: [(&str, &str); 2] = [("role", "content"), ("from", "value")];

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    Json,
    Python,
}

/// (role, content) of each message.
pub(crate) type Messages = Vec<(String, String)>;

/// The messages that a text is, if it is nothing else: a list of objects with a role and a content, or one such object.
pub(crate) fn messages(text: &str) -> Option<(Writer, Messages)> {
    let text = text.trim();
    let outer = (text.as_bytes().first()?, text.as_bytes().last()?);
    if !matches!(outer, (b'[', b']') | (b'{', b'}')) {
        return None;
    }
    let (writer, value) = match serde_json::from_str(text) {
        Ok(value) => (Writer::Json, value),
        Err(_) => (Writer::Python, python(text)?),
    };
    let list = match value {
        Value::Array(list) if !list.is_empty() => list,
        Value::Object(_) => vec![value],
        _ => return None,
    };
    let message = |value: Value| -> Option<(String, String)> {
        let Value::Object(mut fields) = value else { return None };
        let (role, content) = MESSAGE_FIELDS
            .into_iter()
            .find(|(role, content)| fields.contains_key(*role) && fields.contains_key(*content))?;
        match (fields.remove(role)?, fields.remove(content)?) {
            (Value::String(role), Value::String(content)) => Some((role, content)),
            _ => None,
        }
    };
    Some((writer, list.into_iter().map(message).collect::<Option<Messages>>()?))
}

/// Does a text look like messages as a program prints them, whether or not they can be read?
pub(crate) fn looks_like_messages(text: &str) -> bool {
    let text = text.trim_start();
    let text = text.strip_prefix("array(").unwrap_or(text);
    let Some(text) = text.strip_prefix('[').or(text.starts_with('{').then_some(text)) else { return false };
    let Some(text) = text.trim_start().strip_prefix('{') else { return false };
    let key = text.trim_start().trim_start_matches(['"', '\'']);
    MESSAGE_FIELDS.iter().any(|(role, content)| {
        [role, content].iter().any(|name| key.strip_prefix(**name).is_some_and(|rest| rest.starts_with(['"', '\''])))
    })
}

/// A Python literal as JSON's value; none for what is not one whole literal of texts, numbers, lists, tuples and dictionaries.
fn python(text: &str) -> Option<Value> {
    let mut literal = Literal { text, at: 0 };
    let value = literal.value(0)?;
    literal.space();
    (literal.at == text.len()).then_some(value)
}

struct Literal<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Literal<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn take(&mut self, what: &str) -> bool {
        let found = self.rest().starts_with(what);
        self.at += if found { what.len() } else { 0 };
        found
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > DEPTH {
            return None;
        }
        self.space();
        for (word, value) in [("None", Value::Null), ("True", Value::Bool(true)), ("False", Value::Bool(false))] {
            if self.take(word) {
                return Some(value);
            }
        }
        match self.rest().chars().next()? {
            '[' => self.list(']', depth),
            '(' => self.list(')', depth),
            '{' => self.dictionary(depth),
            quote @ ('\'' | '"') => self.quoted(quote).map(Value::String),
            _ => self.number(),
        }
    }

    fn list(&mut self, end: char, depth: usize) -> Option<Value> {
        self.at += 1;
        let mut items = Vec::new();
        loop {
            self.space();
            if self.rest().starts_with(end) {
                self.at += 1;
                return Some(Value::Array(items));
            }
            items.push(self.value(depth + 1)?);
            self.space();
            // NumPy prints lists of objects without commas.
            let objects = self.text[..self.at].trim_end().ends_with('}') && self.rest().starts_with('{');
            if !self.take(",") && !objects && !self.rest().starts_with(end) {
                return None;
            }
        }
    }

    fn dictionary(&mut self, depth: usize) -> Option<Value> {
        self.at += 1;
        let mut fields = serde_json::Map::new();
        loop {
            self.space();
            if self.take("}") {
                return Some(Value::Object(fields));
            }
            let Value::String(key) = self.value(depth + 1)? else { return None };
            self.space();
            self.take(":").then_some(())?;
            let value = self.value(depth + 1)?;
            if fields.insert(key, value).is_some() {
                return None;
            }
            self.space();
            if !self.take(",") && !self.rest().starts_with('}') {
                return None;
            }
        }
    }

    fn number(&mut self) -> Option<Value> {
        let length = self
            .rest()
            .find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '+' | '-'))
            .unwrap_or(self.rest().len());
        let digits = &self.rest()[..length];
        let number: f64 = digits.parse().ok()?;
        self.at += length;
        // Numbers are of no interest here, but that they are numbers.
        Some(serde_json::Number::from_f64(number).map_or(Value::Null, Value::Number))
    }

    /// A text in quotes, with Python's escapes.
    fn quoted(&mut self, quote: char) -> Option<String> {
        self.at += 1;
        let mut out = String::new();
        let mut characters = self.rest().char_indices();
        loop {
            let (at, character) = characters.next()?;
            match character {
                c if c == quote => {
                    self.at += at + 1;
                    return Some(out);
                }
                '\n' => return None,
                '\\' => {
                    let (_, escape) = characters.next()?;
                    out.push(match escape {
                        'n' => '\n',
                        't' => '\t',
                        'r' => '\r',
                        '\\' | '\'' | '"' => escape,
                        'a' => '\u{7}',
                        'b' => '\u{8}',
                        'f' => '\u{c}',
                        'v' => '\u{b}',
                        'x' => code_of(&mut characters, 2)?,
                        'u' => code_of(&mut characters, 4)?,
                        'U' => code_of(&mut characters, 8)?,
                        _ => return None, // octal digits and names: `repr` writes none
                    });
                }
                other => out.push(other),
            }
        }
    }
}

/// The character of so many hexadecimal digits.
fn code_of(characters: &mut std::str::CharIndices, digits: usize) -> Option<char> {
    let hex: String = characters.by_ref().take(digits).map(|(_, c)| c).collect();
    let right = hex.len() == digits && hex.bytes().all(|b| b.is_ascii_hexdigit());
    char::from_u32(u32::from_str_radix(right.then_some(hex.as_str())?, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Option<(Writer, Vec<(String, String)>)> {
        messages(text)
    }

    #[test]
    fn json_and_pythons_lists_are_read() {
        let one = |role: &str, content: &str| (role.to_owned(), content.to_owned());
        let (writer, list) =
            read(r#" [{"role": "user", "content": "a\n\u00e9"}, {"role": "assistant", "content": ""}] "#).unwrap();
        assert_eq!((writer, list), (Writer::Json, vec![one("user", "a\né"), one("assistant", "")]));
        let (writer, list) = read(r#"{"from": "human", "value": "hi", "weight": null}"#).unwrap();
        assert_eq!((writer, list), (Writer::Json, vec![one("human", "hi")]));
        let text = r#"[{'role': 'user', 'content': "it's\t\"so\" \\ \x41\u00e9\U0001f642", 'n': None, 'x': (1, -2.5e3), 't': True}, {'content': 'd\'accord', 'role': 'assistant',},]"#;
        let (writer, list) = read(text).unwrap();
        assert_eq!(
            (writer, list),
            (Writer::Python, vec![one("user", "it's\t\"so\" \\ Aé🙂"), one("assistant", "d'accord")])
        );
        // NumPy's, without commas.
        let (writer, list) =
            read("[{'content': 'a', 'role': 'user'}\n {'content': 'b', 'role': 'assistant'}]").unwrap();
        assert_eq!((writer, list), (Writer::Python, vec![one("user", "a"), one("assistant", "b")]));
    }

    #[test]
    fn other_texts_are_left_alone() {
        for text in [
            "",
            "hello",
            "[1, 2]",
            "[]",
            "{}",
            "[see above]",
            r#"{"a": 1}"#,
            r#"[{"role": "user"}]"#,
            r#"[{"role": "user", "content": null}]"#,
            "[{'role': 'user', 'content': 'cut",
            "[{'role': 'user', 'content': 'a'}] and more]",
            "[{'role': 'user', 'content': '\\ud83d'}]",
            "[{'role': 'user' 'content': 'a'}]",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(read(&format!("{}1{}", "[".repeat(9000), "]".repeat(9000))), None);
    }

    #[test]
    fn what_looks_like_messages_is_found() {
        for text in ["array([{'content': 'a', 'role': 'user'}], dtype=object)", "[{\"role\": \"us", "{'from': 1}"] {
            assert!(looks_like_messages(text), "{text}");
        }
        for text in ["[{x}]", "a list [{'role': 1}]", "{'roles': 1}", "[1]", ""] {
            assert!(!looks_like_messages(text), "{text}");
        }
    }
}
