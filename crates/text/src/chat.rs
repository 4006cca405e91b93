//! Chat templates, rendered as transformers renders them: Jinja with `trim_blocks` and `lstrip_blocks`, the functions
//! `raise_exception` and `strftime_now`, its `tojson`, and the tags `{% generation %}` around what the assistant says.

use std::ops::Range;

use chrono::{DateTime, Local};
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, ErrorKind, context};
use problem::{Problem, Result, mistake};
use serde::{Deserialize, Serialize};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A user's turn.
    pub fn user(content: impl Into<String>) -> Self {
        Self { role: "user".into(), content: content.into() }
    }

    /// A system instruction.
    pub fn system(content: impl Into<String>) -> Self {
        Self { role: "system".into(), content: content.into() }
    }

    /// From the assistant.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self { role: "assistant".into(), content: content.into() }
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    bos_token: String,
    eos_token: String,
}

/// A conversation as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Bytes of the text that the assistant says, where the template marks them with `{% generation %}`.
    pub generations: Vec<Range<usize>>,
}

/// Around what the template marks: noncharacters, which no text may hold.
const MARKS: [char; 2] = ['\u{fdd0}', '\u{fdd1}'];

/// The chat template refused the conversation, or is not valid.
fn refused(error: &minijinja::Error) -> Problem {
    let hint = "check the roles of the messages against the model's chat_template.jinja";
    mistake(format!("chat template: {error:#}"), hint)
}

impl ChatTemplate {
    /// Compiles `source`; `bos_token` and `eos_token` are what the template may insert under these names.
    ///
    /// `strftime_now` gives the local time, or that of `SOURCE_DATE_EPOCH` (seconds since 1970) where it is set.
    pub fn new(source: &str, bos_token: &str, eos_token: &str) -> Result<Self> {
        let epoch = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|t| t.parse().ok());
        let fixed = epoch.and_then(|t| DateTime::from_timestamp(t, 0)).map(|t| t.with_timezone(&Local));
        Self::at(source, bos_token, eos_token, move || fixed.unwrap_or_else(Local::now))
    }

    /// The same with a clock.
    pub fn at(
        source: &str,
        bos_token: &str,
        eos_token: &str,
        now: impl Fn() -> DateTime<Local> + Send + Sync + 'static,
    ) -> Result<Self> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> std::result::Result<String, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", move |format: String| now().format(&format).to_string());
        environment.add_filter("tojson", to_json);
        environment.add_filter("generation", |text: String| format!("{}{text}{}", MARKS[0], MARKS[1]));
        environment.add_template_owned("chat", generation_tags(source)).map_err(|e| refused(&e))?;
        Ok(Self {
            environment,
            source: source.to_owned(),
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
        })
    }

    /// The Jinja text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The conversation as text, ending where the assistant is to speak.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        Ok(self.render_with(&Value::from_serialize(messages), None, true)?.text)
    }

    /// A conversation (a list of maps), with `tools` if the template knows any, and with or without the assistant's opening
    /// behind it.
    pub fn render_with(&self, messages: &Value, tools: Option<&Value>, open: bool) -> Result<Rendered> {
        let text = self
            .environment
            .get_template("chat")
            .and_then(|t| {
                t.render(context! {
                    messages => messages,
                    tools => tools.cloned().unwrap_or(Value::from(())),
                    documents => Value::from(()),
                    add_generation_prompt => open,
                    bos_token => self.bos_token,
                    eos_token => self.eos_token,
                })
            })
            .map_err(|e| refused(&e))?;
        let mut out = Rendered { text: String::with_capacity(text.len()), generations: Vec::new() };
        let mut start = None;
        for c in text.chars() {
            match c {
                c if c == MARKS[0] => start = Some(out.text.len()),
                c if c == MARKS[1] => out.generations.extend(start.take().map(|s| s..out.text.len())),
                c => out.text.push(c),
            }
        }
        Ok(out)
    }
}

/// `{% generation %}` as a block that minijinja knows; whitespace control stays with the tags.
fn generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let end = tag.find("%}").map_or(tag.len(), |e| e + 2);
        let (tag, behind) = tag.split_at(end);
        let word = tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag.replacen("generation", "filter generation", 1)),
            "endgeneration" => out.push_str(&tag.replacen("endgeneration", "endfilter", 1)),
            _ => out.push_str(tag),
        }
        rest = behind;
    }
    out + rest
}

#[expect(clippy::needless_pass_by_value, reason = "the shape of a minijinja filter")]
/// Python's `json.dumps(value, ensure_ascii=False)`, as transformers gives templates: a space behind commas and colons,
/// nothing escaped for HTML.
fn to_json(value: &Value, options: Kwargs) -> std::result::Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = String::new();
    write_json(value, indent, sort_keys.unwrap_or(false), 0, &mut out)?;
    Ok(out)
}

fn write_json(
    value: &Value,
    indent: Option<usize>,
    sort_keys: bool,
    depth: usize,
    out: &mut String,
) -> std::result::Result<(), minijinja::Error> {
    let line = |depth: usize, out: &mut String| {
        if let Some(width) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if sort_keys {
                keys.sort();
            }
            out.push('{');
            for (i, key) in keys.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(depth + 1, out);
                out.push_str(&plain_json(&Value::from(key.to_string()))?);
                out.push_str(": ");
                write_json(&value.get_item(key)?, indent, sort_keys, depth + 1, out)?;
            }
            if !keys.is_empty() {
                line(depth, out);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(depth + 1, out);
                write_json(item, indent, sort_keys, depth + 1, out)?;
            }
            if !items.is_empty() {
                line(depth, out);
            }
            out.push(']');
        }
        _ => out.push_str(&plain_json(value)?),
    }
    Ok(())
}

fn plain_json(value: &Value) -> std::result::Result<String, minijinja::Error> {
    serde_json::to_string(value).map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        name: String,
        template: String,
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        messages: serde_json::Value,
        tools: Option<serde_json::Value>,
        open: bool,
        /// None where the template refuses.
        text: Option<String>,
        generations: Vec<(usize, usize)>, // in characters, as Python counts
    }

    #[test]
    fn templates_render_as_in_transformers() {
        let folder = std::env::var_os("IDIOLECT_GOLDEN").map_or_else(
            || std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden"),
            std::path::PathBuf::from,
        );
        let golden: Vec<Golden> =
            serde_json::from_slice(&fs_err::read(folder.join("templates.json")).unwrap()).unwrap();
        assert!(golden.len() >= 10);
        let now = DateTime::parse_from_rfc3339("2026-03-05T12:00:00Z").unwrap().with_timezone(&Local);
        let mut refused = 0;
        for Golden { name, template, cases } in golden {
            let template = ChatTemplate::at(&template, "<s>", "</s>", move || now).unwrap();
            for Case { messages, tools, open, text, generations } in cases {
                let tools = tools.map(Value::from_serialize);
                let ours = template.render_with(&Value::from_serialize(&messages), tools.as_ref(), open);
                refused += usize::from(text.is_none());
                let Some(text) = text else {
                    assert!(ours.is_err(), "{name}: {messages} is refused by transformers");
                    continue;
                };
                let ours = ours.unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(ours.text, text, "{name}");
                let characters = |byte: usize| ours.text[..byte].chars().count();
                let marked: Vec<(usize, usize)> =
                    ours.generations.iter().map(|r| (characters(r.start), characters(r.end))).collect();
                assert_eq!(marked, generations, "{name}");
            }
        }
        assert!(refused >= 2, "some conversations are refused");
    }

    #[test]
    fn a_template_can_refuse_a_conversation() {
        let source = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}{{ bos_token }}";
        let template = ChatTemplate::new(source, "<s>", "</s>").unwrap();
        assert_eq!(template.render(&[Message::user("x")]).unwrap(), "<s>");
        let error = template.render(&[Message::system("x")]).unwrap_err();
        assert!(error.to_string().contains("user first"), "{error}");
    }
}
