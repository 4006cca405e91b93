//! `adapter_config.json` as PEFT reads it: what decides which layers an adapter is on and how much it counts. What this code would not
//! compute is refused by the key's name.

use std::path::{Path, PathBuf};

use lm::{Layer, Lm};
use problem::{Problem, Result, invalid};
use regex::Regex;
use serde_json::{Map, Value};

use crate::peft::{CONFIG, list_name};

/// Keys that say nothing about what is computed, or are read below.
const KNOWN: [&str; 26] = [
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "inference_mode",
    "auto_mapping",
    "r",
    "lora_alpha",
    "lora_dropout",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "bias",
    "init_lora_weights",
    "fan_in_fan_out", // how PEFT stores the base's weight; it corrects it by the layer's type
    "megatron_core",  // of no effect without `megatron_config`
    "loftq_config",
    "eva_config",
    "corda_config",
    "qalora_group_size", // of no effect without `use_qalora`
    "ensure_weight_tying",
];

/// Ways to begin that leave the base as it is. Others (PiSSA, OLoRA, CorDA, LoftQ) change its weights.
const HARMLESS_BEGINNINGS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// `adapter_config.json`, checked.
#[derive(Debug)]
pub(crate) struct PeftConfig {
    path: PathBuf,
    value: Map<String, Value>,
    rank: usize,
    alpha: f64,
    pub(crate) use_rslora: bool,
}

impl PeftConfig {
    /// Reads the file in `folder`.
    ///
    /// # Errors
    /// A key whose value this code does not compute, by its name.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        let value: Map<String, Value> = run::read_json(&path)?;
        let mut config = Self { path, value, rank: 0, alpha: 0.0, use_rslora: false };
        if config.at("peft_type") != "LORA" {
            return Err(config.wrong("peft_type", "`LORA`"));
        }
        if !config.at("task_type").is_null() && config.at("task_type") != "CAUSAL_LM" {
            return Err(config.wrong("task_type", "`CAUSAL_LM`"));
        }
        if !config.at("bias").is_null() && config.at("bias") != "none" {
            return Err(config.wrong("bias", "`none`"));
        }
        match config.at("init_lora_weights") {
            Value::Null | Value::Bool(_) => {}
            Value::String(how) if HARMLESS_BEGINNINGS.contains(&how.as_str()) => {}
            _ => {
                return Err(config.wrong("init_lora_weights", "a beginning that leaves the base's weights as they are"));
            }
        }
        let others = config.value.iter().filter(|(key, value)| !KNOWN.contains(&key.as_str()) && !is_nothing(value));
        if let Some((key, _)) = others.min_by_key(|(key, _)| key.as_str()) {
            return Err(config.wrong(key, "null, false or nothing"));
        }
        config.use_rslora = match config.at("use_rslora") {
            Value::Null => false,
            Value::Bool(on) => *on,
            _ => return Err(config.wrong("use_rslora", "true or false")),
        };
        let positive = |value: &Value| value.as_u64().filter(|n| (1..=1 << 20).contains(n));
        config.rank = positive(config.at("r")).ok_or_else(|| config.wrong("r", "a positive rank"))? as usize;
        config.alpha = config.at("lora_alpha").as_f64().ok_or_else(|| config.wrong("lora_alpha", "a number"))?;
        Ok(config)
    }

    fn at(&self, key: &str) -> &Value {
        self.value.get(key).unwrap_or(&Value::Null)
    }

    fn wrong(&self, key: &str, expected: impl Into<String>) -> Problem {
        let found: String = self.at(key).to_string().chars().take(160).collect();
        invalid(format!("{}, `{key}`", self.path.display()), expected, found, "this kind of adapter is not supported")
    }

    /// Do ranks or alphas differ by layer?
    pub(crate) fn has_patterns(&self) -> bool {
        !is_nothing(self.at("rank_pattern")) || !is_nothing(self.at("alpha_pattern"))
    }

    /// A layer's rank and alpha.
    ///
    /// # Errors
    /// A pattern that is no name, or a value that is no number.
    pub(crate) fn of_layer(&self, layer: &Layer) -> Result<(usize, f64)> {
        let rank = match self.matching("rank_pattern", layer)? {
            None => self.rank,
            Some(value) => match value.as_u64().filter(|n| (1..=1 << 20).contains(n)) {
                Some(rank) => rank as usize,
                None => return Err(self.wrong("rank_pattern", "positive ranks")),
            },
        };
        let alpha = match self.matching("alpha_pattern", layer)? {
            None => self.alpha,
            Some(value) => value.as_f64().ok_or_else(|| self.wrong("alpha_pattern", "numbers"))?,
        };
        Ok((rank, alpha))
    }

    /// What an adapter's product is multiplied by.
    pub(crate) fn scale(&self, rank: usize, alpha: f64) -> f64 {
        if self.use_rslora { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 }
    }

    /// The value of the first key of a table of patterns that fits a layer, as PEFT looks it up: `(.*\.)?(KEY)$`.
    fn matching(&self, table: &str, layer: &Layer) -> Result<Option<&Value>> {
        let entries = match self.at(table) {
            Value::Object(entries) => entries,
            other if is_nothing(other) => return Ok(None),
            _ => return Err(self.wrong(table, "a table")),
        };
        for (key, value) in entries {
            if self.pattern(table, &format!(r"^(?:.*\.)?(?:{key})$"))?.is_match(&layer.path) {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    fn pattern(&self, key: &str, pattern: &str) -> Result<Regex> {
        Regex::new(pattern).map_err(|_| self.wrong(key, "regular expressions without look-around or references"))
    }

    /// The layers of `lm` that the adapter is on, as PEFT chooses them.
    ///
    /// # Errors
    /// A key of another form; names that no layer has.
    pub(crate) fn layers<'a>(&self, lm: &'a Lm) -> Result<Vec<&'a Layer>> {
        let blocks = self.blocks(lm)?;
        let mut out = Vec::new();
        for layer in lm.layers() {
            let targeted = match self.at("target_modules") {
                Value::String(all) if all == "all-linear" => true,
                _ => self.names("target_modules", layer)?,
            };
            let excluded = !is_nothing(self.at("exclude_modules")) && self.names("exclude_modules", layer)?;
            if targeted && !excluded && blocks.as_ref().is_none_or(|blocks| blocks.contains(&(layer.block as u64))) {
                out.push(layer);
            }
        }
        if out.is_empty() {
            return Err(self.wrong("target_modules", "names of this base's layers"));
        }
        Ok(out)
    }

    /// Is a layer among the names (ends of paths), or does its whole path fit the regular expression?
    fn names(&self, key: &str, layer: &Layer) -> Result<bool> {
        match self.at(key) {
            Value::String(pattern) => Ok(self.pattern(key, &format!("^(?:{pattern})$"))?.is_match(&layer.path)),
            Value::Array(names) => {
                let mut found = false;
                for name in names {
                    let name = name.as_str().ok_or_else(|| self.wrong(key, "names of layers"))?;
                    found |= layer.path == name || layer.path.ends_with(&format!(".{name}"));
                }
                Ok(found)
            }
            _ => Err(self.wrong(key, "names of layers")),
        }
    }

    /// The blocks that `layers_to_transform` names; none for all.
    fn blocks(&self, lm: &Lm) -> Result<Option<Vec<u64>>> {
        let own = lm.layers().first().map_or("layers", |layer| list_name(&layer.path));
        let pattern = self.at("layers_pattern");
        let fits = match pattern {
            Value::String(name) => name == own || name.is_empty(),
            Value::Array(names) => names.is_empty() || names.iter().any(|name| name == own),
            other => other.is_null(),
        };
        if !fits {
            return Err(self.wrong("layers_pattern", format!("`{own}`, which this base calls its blocks")));
        }
        let wrong = || self.wrong("layers_to_transform", format!("numbers of blocks below {}", lm.depth()));
        let within = |n: &Value| n.as_u64().filter(|n| *n < lm.depth() as u64).ok_or_else(wrong);
        match self.at("layers_to_transform") {
            Value::Null => Ok(None),
            Value::Array(numbers) => numbers.iter().map(within).collect::<Result<Vec<_>>>().map(Some),
            number => Ok(Some(vec![within(number)?])),
        }
    }
}

/// Null, false and what is empty.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}
