//! Values that the command line or a matrix gives to settings of a pipeline's stages.

use std::path::Path;

use problem::{Result, mistake};
use toml::{Table, Value};

use super::project::Project;
use crate::stages::path_settings;

/// `stage.key.path` or `seed`, and the value.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) key: String,
    pub(crate) value: Value,
    /// Who gives it, for messages: `--set`, `--seed`, or an axis of the matrix.
    pub(crate) giver: String,
}

impl Setting {
    /// `key=value` of the command line. A bare word is a text, as on any command line.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let (key, value) = text.split_once('=').ok_or_else(|| {
            mistake(format!("--set {text}: expected `key=value`, found no `=`"), "such as --set reward.max_epochs=1")
        })?;
        let parsed = toml::from_str::<Table>(&format!("v = {value}")).ok().filter(|t| t.len() == 1);
        let value = parsed.and_then(|mut t| t.remove("v")).unwrap_or_else(|| Value::String(value.to_owned()));
        let key = key.trim().to_owned();
        Ok(Self { giver: format!("--set {key}"), key, value })
    }

    /// Does it speak of this stage, and of which of its keys?
    pub(crate) fn key_in(&self, kind: &str) -> Option<&str> {
        self.key.strip_prefix(kind)?.strip_prefix('.')
    }

    /// The value as a seed.
    pub(crate) fn seed(&self) -> Result<u64> {
        self.value.as_integer().and_then(|seed| u64::try_from(seed).ok()).ok_or_else(|| {
            let message =
                format!("setting `{}`: expected a whole number of at least 0, found {}", self.key, self.value);
            mistake(message, "such as seed=7")
        })
    }

    /// Do both give a value to one key, or one to a table that holds the other's key?
    fn conflicts(&self, other: &Self) -> bool {
        let holds = |a: &str, b: &str| b.strip_prefix(a).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        holds(&self.key, &other.key) || holds(&other.key, &self.key)
    }

    /// The setting whose paths mean what they mean from the folder `from`.
    pub(crate) fn resolved(mut self, project: &Project, from: &Path) -> Self {
        if let Some((kind, key)) = self.key.split_once('.')
            && path_settings(kind).is_ok_and(|paths| paths.contains(&key))
        {
            resolve_value(&mut self.value, project, from, &self.giver);
        }
        self
    }

    /// Puts the value at `path`, `a.b.c`, in a table; the tables `a` and `a.b` are made where they are missing, and the key itself is judged
    /// when the settings are read.
    pub(crate) fn assign(&self, table: &mut Table, path: &str) -> Result<()> {
        let (head, rest) = path.split_once('.').map_or((path, None), |(h, r)| (h, Some(r)));
        let Some(rest) = rest else {
            table.insert(head.to_owned(), self.value.clone());
            return Ok(());
        };
        match table.entry(head).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(inner) => self.assign(inner, rest),
            other => Err(mistake(
                format!("{}: expected a table `{head}`, found {other}", self.giver),
                "give the whole value, or another key",
            )),
        }
    }
}

/// Refuses two values for one key, whoever gives them.
pub(crate) fn refuse_conflicts<'a>(settings: impl Iterator<Item = &'a Setting>) -> Result<()> {
    let mut seen: Vec<&Setting> = Vec::new();
    for setting in settings {
        if let Some(other) = seen.iter().find(|other| other.conflicts(setting)) {
            let what = if other.key == setting.key { "a value" } else { "a value of its own or of its table" };
            return Err(mistake(
                format!(
                    "setting `{}`: expected {what} once, found it in {} and in {}",
                    setting.key, other.giver, setting.giver
                ),
                "leave one of them out",
            ));
        }
        seen.push(setting);
    }
    Ok(())
}

/// Gives the path settings of a stage's table the meaning that they have in the folder `from`.
pub(crate) fn resolve_paths(table: &mut Table, kind: &str, project: &Project, from: &Path, place: &str) -> Result<()> {
    for key in path_settings(kind)? {
        if let Some(value) = table.get_mut(*key) {
            resolve_value(value, project, from, place);
        }
    }
    Ok(())
}

fn resolve_value(value: &mut Value, project: &Project, from: &Path, place: &str) {
    match value {
        Value::String(path) => *path = project.resolve(path, from, place).display().to_string(),
        Value::Array(all) => all.iter_mut().for_each(|one| resolve_value(one, project, from, place)),
        _ => {} // read as settings, it is refused there
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setting(key: &str, giver: &str) -> Setting {
        Setting { key: key.into(), value: Value::Integer(1), giver: giver.into() }
    }

    #[test]
    fn one_key_has_one_giver() {
        let refuse = |keys: &[&str]| {
            let all: Vec<Setting> = keys.iter().enumerate().map(|(n, k)| setting(k, &format!("giver {n}"))).collect();
            refuse_conflicts(all.iter()).map_err(|e| e.to_string())
        };
        assert!(refuse(&["dpo.beta", "dpo.betas", "seed", "reward.seed"]).is_ok());
        assert!(refuse(&["dpo.beta", "seed", "dpo.beta"]).unwrap_err().contains("found it in giver 0 and in giver 2"));
        assert!(refuse(&["dpo.lora.rank", "dpo.lora"]).is_err());
        assert!(refuse(&["seed", "seed"]).is_err());
    }

    #[test]
    fn a_bare_word_is_a_text_and_a_line_end_hides_nothing() {
        let value = |text: &str| Setting::parse(text).unwrap().value;
        assert_eq!(value("a.b=3"), Value::Integer(3));
        assert_eq!(value("a.b=word"), Value::String("word".into()));
        assert_eq!(value("a.b=1\nc=2"), Value::String("1\nc=2".into()));
        assert!(Setting::parse("a.b").is_err());
    }

    #[test]
    fn a_value_makes_the_tables_that_it_needs() {
        let mut table: Table = toml::from_str("a = 1\n[b]\nc = 2").unwrap();
        setting("x.b.d", "--set").assign(&mut table, "b.d").unwrap();
        setting("x.e.f", "--set").assign(&mut table, "e.f").unwrap();
        assert_eq!(table, toml::from_str::<Table>("a = 1\n[b]\nc = 2\nd = 1\n[e]\nf = 1").unwrap());
        assert!(setting("x.a.b", "--set").assign(&mut table, "a.b").is_err());
    }
}
