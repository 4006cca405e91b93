//! A published tokenizer with its chat template, and the rows it makes.

use std::path::{Path, PathBuf};

use problem::{Problem, Result, invalid, mistake, unless_it_panics};
use serde_json::Value;
use tokenizers::Encoding;

use crate::added::add_tokens;
use crate::chat::noon;
use crate::sentencepiece::as_its_class_reads;
use crate::turn::{Between, Turn, refuse_without_opening};
use crate::{ChatTemplate, Ending, Fitted, Message, NaiveDate, OverLong, Row};

/// `tokenizer.json`, the chat template and the stop tokens of one model folder.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    template: Option<ChatTemplate>,
    folder: PathBuf,
    bos_id: Option<u32>,
    eos_id: u32,
    /// How the template ends a turn; none if it has no turn of the assistant that rows can be made of.
    turn: Option<Turn>,
    stop_ids: Vec<i64>,
    identity: String,
    known: Option<Box<dyn KnownRows>>,
    context: Option<usize>,
    /// The model has embeddings for ids below this.
    embeddings: Option<i64>,
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

/// The Jinja text: a file of its own, or in the config, or (of models with images) in `chat_template.json`.
fn template_source(folder: &Path, config: &Value) -> Result<Option<String>> {
    let [jinja, json] = ["chat_template.jinja", "chat_template.json"].map(|name| folder.join(name));
    if jinja.exists() {
        return Ok(Some(fs_err::read_to_string(&jinja)?));
    }
    if let Some(source) = template_in(&config["chat_template"]) {
        return Ok(Some(source));
    }
    if json.exists() { Ok(template_in(&read_json(&json)?["chat_template"])) } else { Ok(None) }
}

/// `eos_token`, and what `generation_config.json` says, or `config.json` where there is no such file.
fn stop_ids(folder: &Path, eos_id: u32) -> Result<Vec<i64>> {
    let mut ids = vec![i64::from(eos_id)];
    let files = ["generation_config.json", "config.json"].map(|name| folder.join(name));
    if let Some(path) = files.iter().find(|path| path.exists()) {
        let value = read_json(path)?["eos_token_id"].clone();
        let listed = value.as_array().cloned().unwrap_or_else(|| vec![value]);
        for id in listed.iter().filter(|id| !id.is_null()) {
            let wrong = || bad(path, "`eos_token_id` as one token's id or a list of them", id.to_string());
            ids.push(id.as_i64().filter(|id| *id >= 0).ok_or_else(wrong)?);
        }
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
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
        let dated = Self::on(&self.folder, Some(date))?.with_context(self.context);
        Ok(Self { embeddings: self.embeddings, ..dated })
    }

    /// The same tokenizer for a model that has embeddings for so many ids: a text that has a token without one is an error. Gemma 3's tokenizer, for
    /// example, has a token for images beyond the embeddings of the models that read text alone.
    ///
    /// # Errors
    /// A token of the vocabulary itself, and not an added one, without an embedding: the two are of different models.
    pub fn with_embeddings(self, embeddings: i64) -> Result<Self> {
        let largest = self.inner.get_vocab(false).values().max().map_or(0, |id| i64::from(*id));
        if largest >= embeddings {
            return Err(invalid(
                self.folder.display(),
                format!("token ids below `vocab_size` {embeddings}"),
                format!("a tokenizer that yields {largest}"),
                "tokenizer.json and config.json must belong to the same model",
            ));
        }
        Ok(Self { embeddings: Some(embeddings), ..self })
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
        let config_path = folder.join("tokenizer_config.json");
        let config = read_json(&config_path)?;
        let bytes = as_its_class_reads(bytes, &config);
        let read = unless_it_panics(|| tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| e.to_string()));
        let mut inner = read
            .unwrap_or_else(|| Err("one that its reader cannot make sense of".into()))
            .map_err(|found| bad(&path, "a tokenizer of the `tokenizers` library", found))?;
        let optional = |name: &str| -> Result<Value> {
            let path = folder.join(name);
            if path.exists() { read_json(&path) } else { Ok(Value::Null) }
        };
        // What the file's author last did with the tokenizer is no property of the model.
        inner.with_padding(None);
        guarded(folder, || inner.with_truncation(None).map(|_| ()))?;
        let older = optional("added_tokens.json")?;
        let (map, model) = (optional("special_tokens_map.json")?, optional("config.json")?);
        match unless_it_panics(|| add_tokens(&mut inner, folder, &config, [&older, &map])) {
            Some(added) => added?,
            None => return Err(bad(&config_path, "tokens that the tokenizer can add", "ones that it cannot")),
        }
        inner.set_encode_special_tokens(config["split_special_tokens"] == true);
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
        let source = template_source(folder, &config)?;
        let template = source.as_deref().map(|s| ChatTemplate::new(s, &bos_token, &eos_token, date)).transpose()?;
        let mut tokenizer = Self {
            identity: String::new(),
            known: None,
            context: None,
            embeddings: None,
            bos_id: inner.token_to_id(&bos_token),
            template,
            folder: folder.to_owned(),
            stop_ids: stop_ids(folder, eos_id)?,
            inner,
            eos_id,
            turn: None,
        };
        tokenizer.turn = tokenizer.learn_turn().ok();
        if let Some(id) = tokenizer.turn_end_id()? {
            tokenizer.stop_ids.push(id);
            tokenizer.stop_ids.sort_unstable();
            tokenizer.stop_ids.dedup();
        }
        tokenizer.identity = tokenizer.identity_of([&bos_token, &eos_token])?;
        Ok(tokenizer)
    }

    fn identity_of(&self, special: [&str; 2]) -> Result<String> {
        let whole = guarded(&self.folder, || self.inner.to_string(false))?; // with the tokens that were added
        let split = if self.inner.get_encode_special_tokens() { "split" } else { "" };
        let template = self.template.as_ref();
        // A probe shows what a template takes from elsewhere. It may not come to where the date is read: that is added.
        let probe = template.and_then(|t| t.render(&[Message::user("probe")]).ok()).unwrap_or_default();
        let source = template.map(ChatTemplate::source).unwrap_or_default();
        let end = self.turn.as_ref().and_then(Turn::end).unwrap_or_default();
        let mut identity = xxhash_rust::xxh3::Xxh3::new();
        for part in [source, &probe, special[0], special[1], end, split, &whole] {
            identity.update(&(part.len() as u64).to_le_bytes());
            identity.update(part.as_bytes());
        }
        if let Some(template) = template.filter(|t| t.reads_the_date()) {
            identity.update(template.now().to_rfc3339().as_bytes());
        }
        Ok(format!("{:032x}", identity.digest128()))
    }

    fn learn_turn(&self) -> Result<Turn> {
        let template = self.template()?;
        refuse_without_opening(template)?;
        Turn::learn(template, |closing, between| self.end_of_turn(closing, between))
    }

    /// Where in the text after a response the token ends that ends the turn: the first that is special or stops generation, or, where special tokens
    /// alone stand between, a later one that stops generation. Between turns it is one that stops generation.
    fn end_of_turn(&self, text: &str, between: Between) -> Result<Option<usize>> {
        let encoding = self.encoding(text, false)?;
        let ids = encoding.get_ids();
        let stops = |id: u32| self.stop_ids.contains(&i64::from(id));
        let ends = |id: &u32| stops(*id) || (between == Between::No && self.is_special(*id));
        let token = ids.iter().position(ends).map(|first| {
            let mut run = ids[first..].iter().take_while(|id| self.is_special(**id) || stops(**id)).enumerate();
            first + run.find(|(_, id)| stops(**id)).map_or(0, |(n, _)| n)
        });
        Ok(token.map(|at| encoding.get_offsets()[at].1).filter(|end| text.is_char_boundary(*end)))
    }

    /// The token that ends a turn.
    fn turn_end_id(&self) -> Result<Option<i64>> {
        let Some(end) = self.turn.as_ref().and_then(Turn::end) else { return Ok(None) };
        Ok(self.encoding(end, false)?.get_ids().last().map(|id| i64::from(*id)))
    }

    fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary();
        added.simple_id_to_token(id).is_some_and(|token| added.is_special_token(&token))
    }

    /// How the template renders the assistant's turn.
    ///
    /// # Errors
    /// A model without a template, and a template that rows cannot be made of.
    fn turn(&self) -> Result<&Turn> {
        match &self.turn {
            Some(turn) => Ok(turn),
            None => Err(self.learn_turn().err().unwrap_or_else(|| {
                problem::bug(
                    self.folder.display(),
                    "a template that fails to render a turn",
                    "one that does not fail again",
                )
            })),
        }
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
        let encoding = guarded(&self.folder, || self.inner.encode(text, special))?;
        let without = |id: &&u32| self.embeddings.is_some_and(|all| i64::from(**id) >= all);
        match encoding.get_ids().iter().find(without) {
            None => Ok(encoding),
            Some(id) => Err(invalid(
                "a text",
                "tokens that the model has embeddings for",
                format!("`{}`, whose id {id} has none", self.inner.id_to_token(*id).unwrap_or_default()),
                "the token is of another model, such as one that sees images: take it out of the text",
            )),
        }
    }

    /// Ids of a plain text as transformers' `tokenizer(text)` gives them: the special tokens of the post-processor are around it, and
    /// `add_bos_token` of `tokenizer_config.json` changes nothing, as in transformers 5.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = self.encoding(text, true)?;
        Ok(encoding.get_ids().iter().map(|id| i64::from(*id)).collect())
    }

    /// Ids of a conversation up to where the assistant is to speak, or to go on where the conversation ends in a message of the assistant.
    pub fn prompt(&self, messages: &[Message]) -> Result<Vec<i64>> {
        let template = self.template()?;
        let continues = messages.last().is_some_and(|m| m.role == "assistant");
        let text = if continues { self.turn()?.prompt(template, messages)? } else { template.render(messages)? };
        if self.turn.is_none() {
            refuse_without_opening(template)?;
        }
        let encoding = self.encoding(text, false)?;
        self.refuse_double_bos(encoding.get_ids())?;
        Ok(encoding.get_ids().iter().map(|id| i64::from(*id)).collect())
    }

    /// The special tokens that are spelled inside a text, each once, in the order of their ids. In a row they are these tokens.
    pub fn special_tokens_in(&self, text: &str) -> Result<Vec<String>> {
        let encoding = self.encoding(text, false)?;
        let ids: std::collections::BTreeSet<u32> =
            encoding.get_ids().iter().copied().filter(|id| self.is_special(*id)).collect();
        Ok(ids.into_iter().filter_map(|id| self.inner.id_to_token(id)).collect())
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

    /// Prompt and answer as one row: what the template renders of both, up to the token that ends the turn, which is there only if the answer has
    /// ended. The text is tokenised once, as a whole; the boundary is found by offsets.
    ///
    /// # Errors
    /// A template that rows cannot be made of, an answer without tokens, a BOS that is there twice.
    pub fn row(&self, messages: &[Message], answer: &str, ending: Ending) -> Result<Row> {
        if let Some(row) = self.known.as_ref().and_then(|known| known.row(messages, answer, ending)) {
            return Ok(row);
        }
        let whole = self.turn()?.row(self.template()?, messages, answer, ending)?;
        let boundary = whole.prompt;
        let encoding = self.encoding(whole.text.as_str(), false)?;
        self.refuse_double_bos(encoding.get_ids())?;
        let offsets = encoding.get_offsets(); // bytes of the text, end exclusive
        // A special token that takes spaces after it along stays the prompt's.
        let of_prompt = |(id, (start, end)): (&u32, &(usize, usize))| {
            *end <= boundary || (*start < boundary && self.is_special(*id))
        };
        let answer_start = encoding.get_ids().iter().zip(offsets).take_while(|both| of_prompt(*both)).count();
        if answer.is_empty() || answer_start == offsets.len() {
            let prompt = &whole.text[..boundary];
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

    /// Tokens after which generation stops: `eos_token`, those of the generation config, and the one that ends a turn of the template.
    pub fn stop_ids(&self) -> &[i64] {
        &self.stop_ids
    }

    /// The token that ends a finished answer's row: the one that the template ends a turn with, else `eos_token`.
    pub fn end_id(&self) -> i64 {
        self.turn_end_id().ok().flatten().unwrap_or(i64::from(self.eos_id))
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
