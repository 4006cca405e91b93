//! Chat templates, rendered as transformers renders them: Jinja with `trim_blocks` and `lstrip_blocks`, the functions
//! `raise_exception` and `strftime_now`, its `tojson`, and the tags `{% generation %}` around what the assistant says.

use std::fmt::Write;
use std::ops::Range;

use chrono::{DateTime, Datelike, FixedOffset, Local, NaiveDate};
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, context};
use problem::{Problem, Result, mistake};
use serde::{Deserialize, Serialize};

use crate::chat_json::to_json;
use crate::chat_limits::{self, Program};

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

/// A compiled chat template, which ends in a text or a message: what it may execute and build is limited.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    program: Program,
    source: String,
    now: DateTime<FixedOffset>,
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
    /// `strftime_now` gives the noon of `date`; without one, that of today, or the moment of `SOURCE_DATE_EPOCH` (seconds since
    /// 1970) where it is set. It is the same for as long as the template lives: a run that goes on past midnight keeps its date.
    pub fn new(source: &str, bos_token: &str, eos_token: &str, date: Option<NaiveDate>) -> Result<Self> {
        let epoch =
            || std::env::var("SOURCE_DATE_EPOCH").ok()?.parse().ok().and_then(|t| DateTime::from_timestamp(t, 0));
        let of_epoch =
            || Some(epoch().filter(|t| (1..=9999).contains(&t.year()))?.with_timezone(&Local).fixed_offset());
        let now = match date {
            Some(date) => noon(date),
            None => of_epoch().unwrap_or_else(|| noon(Local::now().date_naive())),
        };
        Self::at(source, bos_token, eos_token, now)
    }

    /// The same at a moment.
    fn at(source: &str, bos_token: &str, eos_token: &str, now: DateTime<FixedOffset>) -> Result<Self> {
        let mut environment = Environment::new();
        environment.add_function("raise_exception", |message: String| -> std::result::Result<String, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function(DATE_FUNCTION, move |format: String| strftime(&now, &format));
        environment.add_filter("tojson", to_json);
        environment.add_filter("generation", |text: String| format!("{}{text}{}", MARKS[0], MARKS[1]));
        let program = chat_limits::compile(&mut environment, generation_tags(source)).map_err(|e| refused(&e))?;
        Ok(Self {
            environment,
            program,
            source: source.to_owned(),
            now,
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
        })
    }

    /// Does its text name the function that reads the date? Then what it renders depends on the day, unless one is pinned.
    pub fn reads_the_date(&self) -> bool {
        self.source.contains(DATE_FUNCTION)
    }

    /// The day that `strftime_now` gives.
    pub fn date(&self) -> NaiveDate {
        self.now.date_naive()
    }

    /// The moment that `strftime_now` gives.
    pub(crate) fn now(&self) -> &DateTime<FixedOffset> {
        &self.now
    }

    /// The Jinja text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The conversation as text, ending where the assistant is to speak.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        Ok(self.render_with(&Value::from_serialize(messages), None, true)?.text)
    }

    /// The conversation as text, without an opening of the assistant's turn after it.
    pub fn render_closed(&self, messages: &[Message]) -> Result<String> {
        Ok(self.render_with(&Value::from_serialize(messages), None, false)?.text)
    }

    /// A conversation (a list of maps), with `tools` if the template knows any, and with or without the assistant's opening
    /// after it.
    pub fn render_with(&self, messages: &Value, tools: Option<&Value>, open: bool) -> Result<Rendered> {
        let root = context! {
            messages => messages,
            tools => tools.cloned().unwrap_or(Value::from(())),
            documents => Value::from(()),
            add_generation_prompt => open,
            bos_token => self.bos_token,
            eos_token => self.eos_token,
        };
        let text = self.program.run(&self.environment, root).map_err(|e| refused(&e))?;
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

/// What templates call to read the date; Jinja has no other way to spell it.
const DATE_FUNCTION: &str = "strftime_now";

pub(crate) fn noon(date: NaiveDate) -> DateTime<FixedOffset> {
    date.and_hms_opt(12, 0, 0).unwrap_or_default().and_utc().fixed_offset()
}

/// A moment in a format of the template's, which may be any text.
fn strftime(now: &DateTime<FixedOffset>, format: &str) -> std::result::Result<String, minijinja::Error> {
    let mut out = String::new();
    match write!(out, "{}", now.format(format)) {
        Ok(()) => Ok(out),
        Err(_) => {
            let text = format!("strftime_now: expected a format of dates such as `%d %b %Y`, found `{format}`");
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
        }
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
        let now = DateTime::parse_from_rfc3339("2026-03-05T12:00:00Z").unwrap().fixed_offset();
        let mut refused = 0;
        for Golden { name, template, cases } in golden {
            let template = ChatTemplate::at(&template, "<s>", "</s>", now).unwrap();
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
        let template = ChatTemplate::new(source, "<s>", "</s>", None).unwrap();
        assert_eq!(template.render(&[Message::user("x")]).unwrap(), "<s>");
        let error = template.render(&[Message::system("x")]).unwrap_err();
        assert!(error.to_string().contains("user first"), "{error}");
    }
}
