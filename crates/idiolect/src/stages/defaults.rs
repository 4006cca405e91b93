//! The defaults of a stage's settings under what a pipeline gives.

use serde_json::Value;
use toml::Table;

/// A part of a JSON schema, with the whole that it refers to.
#[derive(Clone, Copy)]
pub(crate) struct Schema<'a> {
    whole: &'a Value,
    part: &'a Value,
}

impl<'a> Schema<'a> {
    pub(crate) fn new(whole: &'a Value) -> Self {
        Self { whole, part: whole }
    }

    /// Of several kinds of tables told apart by a word in them, such as `from = "reward"`: the kind that `table` is.
    pub(crate) fn of_kind(self, table: &Table) -> Self {
        let alternatives = self.resolved()["oneOf"].as_array().map_or(&[][..], Vec::as_slice);
        let fits = |schema: &Self| {
            let words = schema.resolved()["properties"].as_object().into_iter().flatten();
            let mut words = words.filter_map(|(key, part)| Some((key, part.get("const")?.as_str()?))).peekable();
            words.peek().is_some()
                && words.all(|(key, word)| table.get(key).and_then(toml::Value::as_str) == Some(word))
        };
        alternatives.iter().map(|part| Self { part, ..self }).find(fits).unwrap_or(self)
    }

    /// The part, or what it refers to.
    fn resolved(self) -> &'a Value {
        let pointer = self.part["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
        pointer.and_then(|pointer| self.whole.pointer(pointer)).unwrap_or(self.part)
    }

    /// The part without what an option adds: the other alternative is null.
    fn without_null(self) -> &'a Value {
        let part = self.resolved();
        let Some(alternatives) = part["anyOf"].as_array() else { return part };
        let others: Vec<&Value> = alternatives.iter().filter(|a| a["type"] != "null").collect();
        match others[..] {
            [one] => Self { part: one, ..self }.resolved(),
            _ => part,
        }
    }

    /// What the documentation says of the part itself, else of its type.
    pub(crate) fn description(self) -> Option<&'a str> {
        self.part["description"].as_str().or_else(|| self.without_null()["description"].as_str())
    }

    /// The value of a setting that is left out, where it is one that can be written.
    pub(crate) fn default(self) -> Option<toml::Value> {
        self.part.get("default").filter(|value| !value.is_null()).and_then(|value| toml::Value::try_from(value).ok())
    }

    /// The settings of a table with fixed keys, in order; none for anything else, such as one of several kinds of tables.
    pub(crate) fn properties(self) -> Option<Vec<(&'a str, Self)>> {
        let part = self.resolved();
        let alternatives = ["oneOf", "anyOf"].iter().any(|key| part.get(*key).is_some());
        let properties = part["properties"].as_object().filter(|_| !alternatives)?;
        Some(properties.iter().map(|(name, part)| (name.as_str(), Self { whole: self.whole, part })).collect())
    }

    /// Words that the setting can be, and tables with one key, each with what is said of it.
    pub(crate) fn alternatives(self) -> Vec<(String, Option<&'a str>)> {
        let part = self.without_null();
        if let Some(words) = part["enum"].as_array() {
            return words.iter().map(|word| (word.to_string(), None)).collect();
        }
        let all = ["oneOf", "anyOf"].iter().find_map(|key| part[*key].as_array()).map_or(&[][..], Vec::as_slice);
        let mut out = Vec::new();
        for one in all {
            let one = Self { part: one, ..self };
            let (found, said) = (one.resolved(), one.description());
            if let Some(word) = found.get("const") {
                out.push((word.to_string(), said));
            } else if let Some(keys) = found["properties"].as_object() {
                let shown = |(key, value): (&String, &Value)| match value.get("const") {
                    Some(word) => format!("{key} = {word}"),
                    None => format!("{key} = .."),
                };
                let keys: Vec<String> = keys.iter().map(shown).collect();
                out.push((format!("{{ {} }}", keys.join(", ")), said));
            } else if found.get("enum").is_some() {
                out.extend(one.alternatives());
            } else if let Some(kind) = found["type"].as_str().filter(|kind| *kind != "null") {
                out.push((format!("a {kind}"), said));
            }
        }
        out
    }

    /// What a value is, in a word or two.
    pub(crate) fn kind(self) -> String {
        let part = self.without_null();
        match part["type"].as_str() {
            Some("string") => "\"..\"".into(),
            Some("array") => "[..]".into(),
            Some("object") => "{ .. }".into(),
            Some(kind) => kind.to_owned(),
            None => match &part["type"] {
                Value::Array(kinds) => {
                    let kinds: Vec<&str> = kinds.iter().filter_map(Value::as_str).filter(|k| *k != "null").collect();
                    if kinds == ["string"] { "\"..\"".into() } else { kinds.join(" or ") }
                }
                _ => "..".into(),
            },
        }
    }
}

/// Lays what is given over the defaults: tables with fixed keys key by key, all else whole.
pub(crate) fn lay_over(defaults: &mut Table, given: Table, schema: Schema) {
    let properties = schema.properties().unwrap_or_default();
    for (key, value) in given {
        let own = properties.iter().find(|(name, _)| *name == key).map(|(_, schema)| *schema);
        match (defaults.get_mut(&key), value, own.filter(|own| own.properties().is_some())) {
            (Some(toml::Value::Table(lower)), toml::Value::Table(upper), Some(own)) => lay_over(lower, upper, own),
            (_, value, _) => _ = defaults.insert(key, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lay(defaults: &str, given: &str) -> Table {
        let schema = serde_json::to_value(schemars::schema_for!(policy::PpoConfig)).unwrap();
        let mut table: Table = toml::from_str(defaults).unwrap();
        lay_over(&mut table, toml::from_str(given).unwrap(), Schema::new(&schema));
        table
    }

    #[test]
    fn a_kind_of_table_is_told_by_its_word() {
        let read = |text: &str| crate::stages::read_stage("pairs", toml::from_str(text).unwrap(), "x.toml".as_ref());
        let settings = read("sampling = { max_new_tokens = 36 }").unwrap().settings();
        assert_eq!((&settings["from"], &settings["pairs_per_prompt"]), (&"reward".into(), &3.into()));
        assert_eq!(
            (&settings["sampling"]["max_new_tokens"], &settings["sampling"]["samples_per_prompt"]),
            (&36.into(), &16.into())
        );
        assert_eq!(read("from = \"both\"").unwrap().settings()["from"], "both");
        assert_eq!(read("from = \"votes\"").unwrap().settings().as_object().unwrap().len(), 1);
        let error = read("from = \"votes\"\npairs_per_prompt = 2").map(drop).unwrap_err().to_string();
        assert!(error.contains("pairs_per_prompt"), "{error}");
    }

    #[test]
    fn a_table_of_settings_is_laid_over_key_by_key_and_one_of_several_kinds_as_a_whole() {
        let found = lay(
            "[lora]\nrank = 8\nalpha = 16\nblocks = { last = 6 }",
            "[lora]\nrank = 4\nblocks = { from = 1, to = 3 }",
        );
        let wanted = toml::from_str::<Table>("[lora]\nrank = 4\nalpha = 16\nblocks = { from = 1, to = 3 }").unwrap();
        assert_eq!(found, wanted);
        let found = lay(
            "[kl]\nestimator = \"k1\"\ncontrol = { fixed = { beta = 0.1 } }",
            "kl.control.adaptive = { beta = 0.2 }",
        );
        let wanted = toml::from_str::<Table>("[kl]\nestimator = \"k1\"\ncontrol.adaptive = { beta = 0.2 }").unwrap();
        assert_eq!(found, wanted);
        assert_eq!(lay("max_kl = 1.0", "steps = 3").len(), 2);
    }
}
