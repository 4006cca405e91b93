//! The assistant's turn as a chat template renders it: where the response begins, and what ends it.
//!
//! A row is what the template renders of the conversation with its response, and not the prompt with the response and `eos_token` after it:
//! Gemma ends a turn in `<end_of_turn>`, Llama 2 puts a space before `</s>`, and Qwen 3 an empty thought before the response. What
//! the template writes after a response is learnt from a probe, and held against every row.

use problem::{Problem, Result, invalid};

use crate::{ChatTemplate, Ending, Message};

/// What a template writes after a response.
#[derive(Debug)]
pub(crate) struct Turn {
    /// All of it.
    closing: String,
    /// Its beginning up to the token that ends the turn; none if it holds no such token.
    end: Option<String>,
}

/// Whether a text comes after a response that another turn follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Between {
    Yes,
    No,
}

/// A conversation with its response, as text.
#[derive(Debug)]
pub(crate) struct RowText {
    /// The whole row.
    pub(crate) text: String,
    /// The bytes of it that are the prompt's.
    pub(crate) prompt: usize,
}

/// The question and the response of the probe.
const PROBE: [&str; 2] = ["probe question", "probe response"];

const HINT: &str = "import the model with another `chat_template`: one that renders a conversation with its response as the prompt, the response \
                    and the token that ends the turn";

fn wrong(expected: &str, found: String) -> Problem {
    invalid("the chat template", expected, found, HINT)
}

/// The end of a text, for messages.
fn tail(text: &str) -> String {
    let from = text.char_indices().rev().nth(59).map_or(0, |(at, _)| at);
    format!("`{}{}`", if from > 0 { "…" } else { "" }, &text[from..])
}

/// Does the template leave it to the model to open the assistant's turn, which it does write for the turns of a conversation?
/// Then a sample would begin with the header of a turn.
///
/// # Errors
/// Such a template.
pub(crate) fn refuse_without_opening(template: &ChatTemplate) -> Result<()> {
    let render = |begin: &[Message]| -> Result<[String; 3]> {
        let question = [begin, &[Message::user(PROBE[0])]].concat();
        let both = [question.as_slice(), &[Message::assistant(PROBE[1])]].concat();
        Ok([template.render(&question)?, template.render_closed(&question)?, template.render_closed(&both)?])
    };
    let rendered = render(&[]).or_else(|_| render(&[Message::system(PROBE[0])]));
    let Ok([open, closed, whole]) = rendered else { return Ok(()) };
    let opening = whole.strip_prefix(&open).and_then(|rest| rest.split(PROBE[1]).next()).unwrap_or_default();
    if open == closed && !opening.trim().is_empty() {
        let found = format!("that {} is left to the model to write", tail(opening));
        return Err(wrong("to open the assistant's turn where `add_generation_prompt` is true", found));
    }
    Ok(())
}

impl Turn {
    /// Learns the closing of a turn from a probe; `end` says of a text where the token that ends a turn has its end. A template that writes this token
    /// between turns only, before the next one, is asked for one turn more.
    ///
    /// # Errors
    /// A template that refuses a question with a response, or does not render the response.
    pub(crate) fn learn(template: &ChatTemplate, end: impl Fn(&str, Between) -> Result<Option<usize>>) -> Result<Self> {
        let turns = [Message::user(PROBE[0]), Message::assistant(PROBE[1])];
        // Some templates want a system message.
        let with_system = [&[Message::system(PROBE[0])], turns.as_slice()].concat();
        let (turns, whole) = match template.render_closed(&turns) {
            Ok(whole) => (turns.to_vec(), whole),
            Err(error) => (with_system.clone(), template.render_closed(&with_system).map_err(|_| error)?),
        };
        let Some((_, closing)) = whole.rsplit_once(PROBE[1]) else {
            return Err(wrong("to render the assistant's response", tail(&whole)));
        };
        let mut ends = end(closing, Between::No)?.map(|at| closing[..at].to_owned());
        if ends.is_none() && closing.trim().is_empty() {
            let longer = template.render_closed(&[turns.as_slice(), &[Message::user(PROBE[0])]].concat());
            let after = longer.ok().and_then(|text| Some(text.rsplit_once(PROBE[1])?.1.to_owned()));
            if let Some(after) = after {
                ends = end(&after, Between::Yes)?.map(|at| after[..at].to_owned());
            }
        }
        Ok(Self { closing: closing.to_owned(), end: ends })
    }

    /// The text that ends a finished response; none if the template writes no token that ends it.
    pub(crate) fn end(&self) -> Option<&str> {
        self.end.as_deref()
    }

    /// The conversation up to where the response is to begin. If it ends in a message of the assistant, the response continues that message.
    ///
    /// # Errors
    /// A template that refuses the conversation, or changes the end of the message that is to be continued.
    pub(crate) fn prompt(&self, template: &ChatTemplate, messages: &[Message]) -> Result<String> {
        let Some(begun) = messages.last().filter(|m| m.role == "assistant") else { return template.render(messages) };
        let whole = template.render_closed(messages)?;
        let text = self.without_closing(&whole)?;
        if !text.ends_with(&begun.content) {
            let expected =
                format!("to leave the end of a response that is to be continued as it is, {}", tail(&begun.content));
            return Err(wrong(&expected, tail(text)));
        }
        Ok(text.to_owned())
    }

    /// The conversation with its response. The end of the turn is only there if the response has ended. What a template adds before a response, such as an
    /// empty thought, is not added before one that was cut: its thought may be what was cut.
    ///
    /// # Errors
    /// A template that refuses the conversation, whose rendering does not begin with the rendered prompt, that loses parts of the response, or
    /// that writes no token which ends it.
    pub(crate) fn row(
        &self,
        template: &ChatTemplate,
        messages: &[Message],
        response: &str,
        ending: Ending,
    ) -> Result<RowText> {
        let prompt = self.prompt(template, messages)?;
        let mut conversation = messages.to_vec();
        match conversation.last_mut().filter(|m| m.role == "assistant") {
            Some(begun) => begun.content.push_str(response),
            None => conversation.push(Message::assistant(response)),
        }
        let whole = template.render_closed(&conversation)?;
        if ending == Ending::Cut {
            let body = whole.strip_prefix(&prompt).and_then(|rest| rest.strip_suffix(&self.closing));
            let body = body.filter(|body| body.trim_start().starts_with(response.trim())).unwrap_or(response);
            return Ok(RowText { text: format!("{prompt}{body}"), prompt: prompt.len() });
        }
        let Some(rest) = whole.strip_prefix(&prompt) else { return Err(not_after_the_prompt(&prompt, &whole)) };
        let body = self.without_closing(rest)?;
        if !holds(body, response) {
            let expected = "to render all of a response (it may only change the spaces around it)";
            return Err(wrong(expected, format!("{} for the response {}", tail(body), tail(response))));
        }
        let end = self.end().ok_or_else(|| {
            wrong("a special token, or one of the model's stop tokens, after a response", tail(&self.closing))
        })?;
        Ok(RowText { text: format!("{prompt}{body}{end}"), prompt: prompt.len() })
    }

    fn without_closing<'t>(&self, text: &'t str) -> Result<&'t str> {
        text.strip_suffix(&self.closing).ok_or_else(|| {
            let expected = format!("to end every response in {}", tail(&self.closing));
            wrong(&expected, tail(text))
        })
    }
}

/// The rendering of a conversation with its response that goes on otherwise than the rendered prompt.
fn not_after_the_prompt(prompt: &str, whole: &str) -> Problem {
    let same = prompt.chars().zip(whole.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum::<usize>();
    let (ours, theirs) = (&prompt[same..], &whole[same..]);
    let start = |text: &str| format!("`{}`", text.chars().take(60).collect::<String>());
    let expected = "to render a conversation with its response as the rendered prompt and what comes after it";
    let found = format!("that the prompt goes on with {} and the conversation with {}", start(ours), start(theirs));
    let problem = wrong(expected, found);
    if ours.contains("<think>") {
        return problem.with_hint(
            "this template opens a thought that finished turns do not have, so no row can be made of a response alone: import the \
             model with a `chat_template` that does not write `<think>` after the prompt",
        );
    }
    problem
}

/// Does `body` hold the whole response, but for spaces around it? Of one with a thought (`<think>...</think>`), the thought and what comes after it
/// are looked for apart: templates change the spaces between them, and may have opened the thought before.
fn holds(body: &str, response: &str) -> bool {
    let within = |part: &str| body.contains(part.trim());
    match response.split_once("</think>") {
        _ if within(response) => true,
        Some((thought, said)) => within(said) && within(thought.trim().trim_start_matches("<think>")),
        None => false,
    }
}
