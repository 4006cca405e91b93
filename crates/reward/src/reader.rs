//! Reward features of texts, read once: what a person's taste is applied to needs the language model only for texts that nobody has asked
//! about yet.

use std::collections::BTreeMap;
use std::path::PathBuf;

use device::Checked;
use lm::{Lm, RowCounts, Tensor, TokenRow};
use problem::{Result, invalid};
use serde::{Deserialize, Serialize};
use text::{Ending, Message, Tokenizer};

use crate::RewardModel;

/// A model's features of texts, and the file that keeps them.
#[derive(Debug)]
pub struct Reader<'a> {
    model: &'a RewardModel,
    lm: &'a Lm,
    tokenizer: &'a Tokenizer,
    max_row_tokens: usize,
    file: Option<PathBuf>,
    of_model: String,
    known: BTreeMap<String, Vec<f32>>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    /// Of this file; a file of another one is not used.
    #[serde(default)]
    format: u32,
    /// The model's content: another model reads other features.
    model: String,
    /// Hashes of the token rows, in the order of the tensor's rows.
    texts: Vec<String>,
}

/// Raised whenever the code changes what the features in a file mean.
const FORMAT: u32 = 1;
const HEADER: &str = "idiolect.features";
const FEATURES: &str = "features";

/// A prompt and an answer.
pub type Text<'t> = (&'t [Message], &'t str, Ending);

impl<'a> Reader<'a> {
    /// A reader whose features are kept in `file`, if one is given. `of_model` is what tells this model from others, such as the hash of
    /// its file; what was kept of another one is not used.
    ///
    /// # Errors
    /// A model without reward features; a damaged file.
    pub fn open(
        model: &'a RewardModel,
        lm: &'a Lm,
        tokenizer: &'a Tokenizer,
        max_row_tokens: usize,
        kept: Option<(PathBuf, String)>,
    ) -> Result<Self> {
        let Some(d) = model.head.features.as_ref().map(|f| f.size()[0]) else {
            return Err(invalid(
                "reward model",
                "reward features",
                "a head without features",
                "fit one with `variant = \"rfm\"` and `features = 8`, as pipelines/rfm.toml does",
            ));
        };
        let (file, of_model) = kept.map_or((None, String::new()), |(file, model)| (Some(file), model));
        let mut known = BTreeMap::new();
        if let Some(file) = file.as_ref().filter(|f| f.exists()) {
            let mut tensors = lm::read_tensors(file, tch::Device::Cpu, None)?;
            let header = tensors.metadata.get(HEADER).and_then(|t| serde_json::from_str::<Header>(t).ok());
            if let Some(Header { texts, .. }) = header.filter(|h| h.format == FORMAT && h.model == of_model) {
                let rows = tensors.take(FEATURES, &[texts.len() as i64, d])?;
                for (i, text) in texts.into_iter().enumerate() {
                    known.insert(text, Vec::try_from(rows.get(i as i64)).checked()?);
                }
            }
        }
        Ok(Self { model, lm, tokenizer, max_row_tokens, file, of_model, known })
    }

    /// Texts that are known already.
    pub fn known(&self) -> usize {
        self.known.len()
    }

    /// Features `[d]` of each text; none where its row is over the limit. New texts are read, and kept.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn features(
        &mut self,
        texts: &[Text],
        mut progress: impl FnMut(usize, usize),
    ) -> Result<(Vec<Option<Vec<f64>>>, RowCounts)> {
        let mut counts = RowCounts::default();
        let mut keys = Vec::with_capacity(texts.len());
        let mut new: BTreeMap<String, TokenRow> = BTreeMap::new();
        for (prompt, answer, ending) in texts {
            let row: TokenRow = self.tokenizer.row(prompt, answer, *ending)?.into();
            if row.ids.len() > self.tokenizer.most_tokens(self.max_row_tokens) {
                counts.dropped += 1;
                keys.push(None);
                continue;
            }
            let numbers = std::iter::once(row.answer_start as i64).chain(row.ids.iter().copied());
            let key = run::hash_bytes(&numbers.flat_map(i64::to_le_bytes).collect::<Vec<u8>>());
            if !self.known.contains_key(&key) {
                new.insert(key.clone(), row);
            }
            keys.push(Some(key));
        }
        if !new.is_empty() {
            let (names, rows): (Vec<String>, Vec<TokenRow>) = new.into_iter().unzip();
            let (mut done, all) = (0, rows.len());
            let prefix = self.model.prefix(self.lm, rows, |n| {
                done += n;
                progress(done, all);
            })?;
            let every: Vec<usize> = (0..all).collect();
            let features = self.model.features(self.lm, &prefix, &every).expect("a model with features");
            self.known.extend(names.into_iter().zip(features));
            self.write()?;
        }
        let feature = |key: Option<String>| key.map(|key| self.known[&key].iter().map(|x| f64::from(*x)).collect());
        Ok((keys.into_iter().map(feature).collect(), counts))
    }

    fn write(&self) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let header =
            Header { format: FORMAT, model: self.of_model.clone(), texts: self.known.keys().cloned().collect() };
        let rows: Vec<f32> = self.known.values().flatten().copied().collect();
        let tensor = Tensor::from_slice(&rows).view([self.known.len() as i64, -1]);
        let header = serde_json::to_string(&header).expect("plain data");
        lm::write_tensors(file, &[(FEATURES.to_owned(), tensor)], Some((HEADER, header)))
    }
}
