//! A published tokenizer with its chat template, and the rows it makes.

use std::path::{Path, PathBuf};

use problem::{Problem, Result, invalid, mistake, unless_it_panics};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokenizers::Encoding;

use crate::chat::noon;
use crate::{ChatTemplate, Message, NaiveDate};

/// Did the speaker stop by itself? Only then does the row end with the end-of-turn token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// The answer is complete.
    Finished,
    /// The answer was cut at a token limit.
    Cut,
}

/// What was said to a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Answer {
    /// The words.
    pub text: String,
    /// Did the speaker stop by itself? An answer that was cut does not teach where to stop.
    pub finished: bool,
}

impl Answer {
    /// How a row of this answer ends.
    pub fn ending(&self) -> Ending {
        if self.finished { Ending::Finished } else { Ending::Cut }
    }
}

/// One tokenised prompt with its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Token ids of prompt and answer, `[T]`.
    pub ids: Vec<i64>,
    /// Index of the answer's first token. A token that straddles the boundary belongs to the answer.
    pub answer_start: usize,
    /// Does the answer's first token begin inside the prompt?
    pub straddles: bool,
}

/// What becomes of a row that is longer than the limit. An answer is never cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OverLong {
    /// An error that names it.
    Error,
    /// It is left out, and counted.
    Drop,
    /// The prompt loses its first tokens, and the row is counted; an answer that alone is too long is an error.
    TruncatePromptLeft,
}

/// A row held against a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fitted {
    /// Within the limit.
    Whole(Row),
    /// Without the prompt's first tokens.
    Truncated(Row),
    /// Left out.
    Dropped,
}

impl Row {
    fn over_long(&self, max_tokens: usize) -> Problem {
        let (tokens, answer) = (self.ids.len(), self.ids.len() - self.answer_start);
        invalid(
            "the row",
            format!("at most {max_tokens} tokens of prompt and answer"),
            format!("{tokens} ({answer} of them the answer's)"),
            "raise `max_row_tokens`, or set `over_long` to \"drop\" or \"truncate-prompt-left\"",
        )
    }

    /// Holds the row against a limit of tokens.
    ///
    /// # Errors
    /// A row that is too long where that is an error.
    pub fn fit(mut self, max_tokens: usize, over_long: OverLong) -> Result<Fitted> {
        let surplus = self.ids.len().saturating_sub(max_tokens);
        match over_long {
            _ if surplus == 0 => Ok(Fitted::Whole(self)),
            OverLong::Drop => Ok(Fitted::Dropped),
            // A prompt keeps at least the token that the answer's first is predicted from.
            OverLong::TruncatePromptLeft if surplus < self.answer_start => {
                self.ids.drain(..surplus);
                self.answer_start -= surplus;
                Ok(Fitted::Truncated(self))
            }
            OverLong::Error | OverLong::TruncatePromptLeft => Err(self.over_long(max_tokens)),
        }
    }
}

/// `tokenizer.json`, the chat template and the stop tokens of one model folder.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    template: Option<ChatTemplate>,
    folder: PathBuf,
    bos_id: Option<u32>,
    eos_token: String,
    stop_ids: Vec<i64>,
    identity: String,
    known: Option<Box<dyn KnownRows>>,
    context: Option<usize>,
}

/// What to do about a row that is longer than the model has positions for.
pub fn context_hint(context: usize) -> String {
    format!(
        "the base has positions for {context} tokens (`max_position_embeddings` or `n_positions` of its config.json): shorten or leave out \
         the text, set `over_long` to \"drop\" or \"truncate-prompt-left\" where a stage has it, or take another base"
    )
}

fn bad(path: &Path, expected: impl Into<String>, found: impl Into<String>) -> Problem {
    invalid(path.display(), expected, found, "import or download the model again")
}

/// What the tokenizer library says of a text, or of ids. On damaged files it also panics.
fn guarded<T>(folder: &Path, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let wrong =
        |found: String| bad(&folder.join("tokenizer.json"), "a tokenizer that can encode and decode any text", found);
    match unless_it_panics(call) {
        Some(result) => result.map_err(|e| wrong(e.to_string())),
        None => Err(wrong("one that its library cannot run".into())),
    }
}

fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_slice(&fs_err::read(path)?).map_err(|e| bad(path, "JSON", e.to_string()))
}

/// A special token is published either as text or as an object with `content`.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// A template under `chat_template`: a text, or (transformers 4) a list of named ones, of which `default` is meant.
fn template_in(value: &Value) -> Option<String> {
    let named = |v: &Value| v["name"] == "default";
    let listed = || value.as_array()?.iter().find(|v| named(v))?["template"].as_str();
    value.as_str().or_else(listed).map(str::to_owned)
}

/// Rows that were made before, such as those of a file.
pub trait KnownRows: std::fmt::Debug + Send + Sync {
    /// The row of this text, as [`Tokenizer::row`] makes it; none if it is not known.
    fn row(&self, prompt: &[Message], answer: &str, ending: Ending) -> Option<Row>;
}

impl Tokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json`, `chat_template.jinja` (or the template in the config) and the
    /// stop ids of `generation_config.json`. A template that reads the date is given today's: see [`Self::with_date`].
    pub fn from_folder(folder: &Path) -> Result<Self> {
        Self::on(folder, None)
    }

    /// The same tokenizer whose template is given this date, whenever it runs. Rows that were made before are forgotten.
    ///
    /// # Errors
    /// The folder is read again.
    pub fn with_date(self, date: NaiveDate) -> Result<Self> {
        let dated = self.template.as_ref().filter(|t| t.reads_the_date());
        if dated.is_none_or(|t| *t.now() == noon(date)) {
            return Ok(self);
        }
        Ok(Self::on(&self.folder, Some(date))?.with_context(self.context))
    }

    /// The same tokenizer for a model that has positions for so many tokens: [`Self::fit`] lets no longer row pass.
    #[must_use]
    pub fn with_context(self, context: Option<usize>) -> Self {
        Self { context, ..self }
    }

    /// The most tokens that a row can have: those of a setting, or the positions of the model where these are fewer.
    pub fn most_tokens(&self, max_tokens: usize) -> usize {
        self.context.map_or(max_tokens, |context| context.min(max_tokens))
    }

    /// Holds a row against a setting's limit and against the positions of the model, whichever is smaller.
    ///
    /// # Errors
    /// A row that is too long where that is an error.
    pub fn fit(&self, row: Row, max_tokens: usize, over_long: OverLong) -> Result<Fitted> {
        let most = self.most_tokens(max_tokens);
        row.fit(most, over_long).map_err(|e| if most < max_tokens { e.with_hint(context_hint(most)) } else { e })
    }

    /// Does the template read the date? Then equal rows need an equal [`Self::date`], which belongs into the identity of what is made of
    /// them.
    pub fn reads_the_date(&self) -> bool {
        self.template.as_ref().is_some_and(ChatTemplate::reads_the_date)
    }

    /// The date that the template is given; none if it reads none.
    pub fn date(&self) -> Option<NaiveDate> {
        self.template.as_ref().filter(|t| t.reads_the_date()).map(ChatTemplate::date)
    }

    fn on(folder: &Path, date: Option<NaiveDate>) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        fs_err::metadata(&path)?;
        let bytes = fs_err::read(&path)?;
        let read = unless_it_panics(|| tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| e.to_string()));
        let inner = read
            .unwrap_or_else(|| Err("one that its reader cannot make sense of".into()))
            .map_err(|found| bad(&path, "a tokenizer of the `tokenizers` library", found))?;
        let config_path = folder.join("tokenizer_config.json");
        let config = read_json(&config_path)?;
        let optional = |name: &str| -> Result<Value> {
            let path = folder.join(name);
            if path.exists() { read_json(&path) } else { Ok(Value::Null) }
        };
        let (map, model) = (optional("special_tokens_map.json")?, optional("config.json")?);
        let by_id = |key: &str| model[key].as_u64().and_then(|id| inner.id_to_token(u32::try_from(id).ok()?));
        // Old checkpoints name their special tokens elsewhere, or give an id alone.
        let special = |key: &str| {
            token_text(&config[key]).or_else(|| token_text(&map[key])).or_else(|| by_id(&format!("{key}_id")))
        };
        let eos_token =
            special("eos_token").ok_or_else(|| bad(&config_path, "an `eos_token`", config["eos_token"].to_string()))?;
        let eos_id = inner
            .token_to_id(&eos_token)
            .ok_or_else(|| bad(&config_path, format!("`eos_token` to be in {}", path.display()), eos_token.clone()))?;
        let bos_token = special("bos_token").unwrap_or_default();
        let template_path = folder.join("chat_template.jinja");
        let source = if template_path.exists() {
            Some(fs_err::read_to_string(&template_path)?)
        } else {
            template_in(&config["chat_template"])
        };
        let mut stop_ids = vec![i64::from(eos_id)];
        let generation_path = folder.join("generation_config.json");
        if generation_path.exists() {
            match &read_json(&generation_path)?["eos_token_id"] {
                Value::Array(ids) => stop_ids.extend(ids.iter().filter_map(Value::as_i64)),
                other => stop_ids.extend(other.as_i64()),
            }
            stop_ids.sort_unstable();
            stop_ids.dedup();
        }
        let template = source.as_deref().map(|s| ChatTemplate::new(s, &bos_token, &eos_token, date)).transpose()?;
        // A probe shows what a template takes from elsewhere. It may not come to where the date is read: that is added.
        let probe = template.as_ref().and_then(|t| t.render(&[Message::user("probe")]).ok());
        let mut identity = xxhash_rust::xxh3::Xxh3::new();
        let texts = [source.as_deref(), probe.as_deref(), Some(bos_token.as_str()), Some(eos_token.as_str())];
        for part in texts.iter().map(|t| t.unwrap_or_default().as_bytes()).chain([bytes.as_slice()]) {
            identity.update(&(part.len() as u64).to_le_bytes());
            identity.update(part);
        }
        if let Some(template) = template.as_ref().filter(|t| t.reads_the_date()) {
            identity.update(template.now().to_rfc3339().as_bytes());
        }
        Ok(Self {
            identity: format!("{:032x}", identity.digest128()),
            known: None,
            context: None,
            bos_id: inner.token_to_id(&bos_token),
            template,
            folder: folder.to_owned(),
            inner,
            eos_token,
            stop_ids,
        })
    }

    /// The chat template.
    ///
    /// # Errors
    /// A model without one.
    pub fn template(&self) -> Result<&ChatTemplate> {
        self.template.as_ref().ok_or_else(|| {
            invalid(
                self.folder.display(),
                "a chat template in chat_template.jinja or tokenizer_config.json",
                "none",
                "name a Jinja file under `chat_template` in the import stage's config, and fine-tune on it (stage `sft`)",
            )
        })
    }

    fn encoding<'t>(&self, text: impl Into<tokenizers::EncodeInput<'t>>, special: bool) -> Result<Encoding> {
        guarded(&self.folder, || self.inner.encode(text, special))
    }

    /// Ids of a plain text as transformers' `tokenizer(text)` gives them, special tokens of the post-processor included.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = self.encoding(text, true)?;
        Ok(encoding.get_ids().iter().map(|id| i64::from(*id)).collect())
    }

    /// Ids of a conversation up to where the assistant is to speak.
    pub fn prompt(&self, messages: &[Message]) -> Result<Vec<i64>> {
        let text = self.template()?.render(messages)?;
        let encoding = self.encoding(text, false)?;
        self.refuse_double_bos(encoding.get_ids())?;
        Ok(encoding.get_ids().iter().map(|id| i64::from(*id)).collect())
    }

    /// A hash of the vocabulary, the chat template with the date that it reads, and the special tokens: equal ones make equal rows.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Takes rows from here where it has them.
    pub fn with_known(mut self, rows: impl KnownRows + 'static) -> Self {
        self.known = Some(Box::new(rows));
        self
    }

    /// Prompt and answer as one row. The text is tokenised once, as a whole; the boundary is found by offsets.
    pub fn row(&self, messages: &[Message], answer: &str, ending: Ending) -> Result<Row> {
        if let Some(row) = self.known.as_ref().and_then(|known| known.row(messages, answer, ending)) {
            return Ok(row);
        }
        let prompt = self.template()?.render(messages)?;
        let boundary = prompt.len();
        let eos = if ending == Ending::Finished { self.eos_token.as_str() } else { "" };
        let text = format!("{prompt}{answer}{eos}");
        let encoding = self.encoding(text, false)?;
        self.refuse_double_bos(encoding.get_ids())?;
        let offsets = encoding.get_offsets(); // bytes of the text, end exclusive
        let answer_start = offsets.iter().take_while(|(_, end)| *end <= boundary).count();
        if answer.is_empty() || answer_start == offsets.len() {
            let text = format!("an answer is empty after tokenisation (prompt: `{prompt}`)");
            return Err(mistake(text, "drop the row"));
        }
        Ok(Row {
            ids: encoding.get_ids().iter().map(|id| i64::from(*id)).collect(),
            answer_start,
            straddles: offsets[answer_start].0 < boundary,
        })
    }

    /// The text of `ids`, special tokens left out.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let ids: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
        guarded(&self.folder, || self.inner.decode(&ids, true))
    }

    /// The text of `ids`, special tokens written out.
    pub fn decode_all(&self, ids: &[i64]) -> Result<String> {
        let ids: Vec<u32> = ids.iter().map(|id| *id as u32).collect();
        guarded(&self.folder, || self.inner.decode(&ids, false))
    }

    /// Tokens after which generation stops.
    pub fn stop_ids(&self) -> &[i64] {
        &self.stop_ids
    }

    /// The token that ends a finished answer's row.
    pub fn end_id(&self) -> i64 {
        self.inner.token_to_id(&self.eos_token).map_or(0, i64::from) // checked when the folder was read
    }

    /// The largest id that this tokenizer can yield.
    pub fn largest_id(&self) -> i64 {
        self.inner.get_vocab(true).values().max().map_or(0, |id| i64::from(*id))
    }

    fn refuse_double_bos(&self, ids: &[u32]) -> Result<()> {
        match (self.bos_id, ids) {
            // ChatML names `<|im_start|>` as BOS; only a BOS right behind a BOS is a mistake.
            (Some(bos), [first, second, ..]) if *first == bos && *second == bos => {
                let token = self.inner.id_to_token(bos).unwrap_or_default();
                let text = format!("a prompt starts with the token `{token}` twice");
                Err(mistake(text, "remove the BOS from the chat template or from the prompt"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_over_long_row_follows_its_policy_and_keeps_its_answer() {
        let row = || Row { ids: (0..10).collect(), answer_start: 6, straddles: false };
        assert_eq!(row().fit(10, OverLong::Error).unwrap(), Fitted::Whole(row()));
        assert_eq!(row().fit(9, OverLong::Drop).unwrap(), Fitted::Dropped);
        let error = row().fit(9, OverLong::Error).unwrap_err().to_string();
        assert_eq!(error, "the row: expected at most 9 tokens of prompt and answer, found 10 (4 of them the answer's)");
        let Fitted::Truncated(cut) = row().fit(5, OverLong::TruncatePromptLeft).unwrap() else { panic!("not cut") };
        assert_eq!((cut.ids.as_slice(), cut.answer_start), (&[5, 6, 7, 8, 9][..], 1));
        assert!(row().fit(4, OverLong::TruncatePromptLeft).is_err(), "no prompt would be left");
    }
}
