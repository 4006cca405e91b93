//! A pipeline file, as written: stages with their settings, variables, a matrix.
//!
//! A stage's settings stand in the file itself; `include` names a variant whose settings come first. (Older files say `config` for it.)

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use problem::{Result, invalid, mistake};
use serde::Deserialize;
use toml::{Table, Value};

use super::matrix::{Step, axes};
use super::project::{Project, from_here};
use super::setting::{Setting, refuse_conflicts, resolve_paths};

const EXAMPLE: &str = "pipelines/quickstart.toml is an example";

/// As written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    seed: u64,
    stage: Vec<Table>,
    /// Names that `--set NAME=VALUE` gives a value: the setting `stage.key` that each stands for. All must be given.
    #[serde(default)]
    variables: BTreeMap<String, String>,
    #[serde(default)]
    matrix: Table,
}

/// One stage with its settings.
pub(crate) struct Entry {
    pub(crate) kind: String,
    pub(crate) settings: Table,
    /// The file to blame for wrong settings.
    pub(crate) place: PathBuf,
}

/// A pipeline file whose includes and paths are resolved, with what the command line gives.
pub(crate) struct PipelineFile {
    pub(crate) name: String,
    pub(crate) seed: u64,
    pub(crate) stages: Vec<Entry>,
    pub(crate) given: Vec<Setting>,
    pub(crate) axes: Vec<Vec<Step>>,
}

impl PipelineFile {
    /// Reads a pipeline and every variant that it includes; `set` and `seed` are the command line's.
    pub(crate) fn read(path: &Path, project: &Project, set: &[String], seed: Option<u64>) -> Result<Self> {
        let text = fs_err::read_to_string(path)?;
        let Written { name, seed: own_seed, stage, variables, matrix } = toml::from_str(&text)
            .map_err(|e| mistake(format!("{}: {}", path.display(), e.to_string().trim()), EXAMPLE))?;
        check_name(&name, path)?;
        if stage.is_empty() {
            return Err(invalid(path.display(), "at least one [[stage]]", "none", EXAMPLE));
        }
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let stages = stage.into_iter().map(|own| entry(own, path, &folder, project)).collect::<Result<Vec<_>>>()?;
        let here = Path::new("");
        let mut given = set.iter().map(|text| Setting::parse(text)).collect::<Result<Vec<_>>>()?;
        name_variables(&mut given, &variables, path)?;
        if let Some(seed) = seed {
            let value =
                i64::try_from(seed).map_err(|_| mistake("--seed: expected at most 2^63 - 1", "such as --seed 7"))?;
            given.push(Setting { key: "seed".into(), value: Value::Integer(value), giver: "--seed".into() });
        }
        let given: Vec<Setting> = given.into_iter().map(|s| s.resolved(project, here)).collect();
        let mut axes = axes(&matrix)?;
        for step in axes.iter_mut().flatten() {
            step.settings =
                std::mem::take(&mut step.settings).into_iter().map(|s| s.resolved(project, &folder)).collect();
        }
        let file = Self { name, seed: seed.unwrap_or(own_seed), stages, given, axes };
        file.check_settings(path)?;
        Ok(file)
    }

    /// Every setting speaks of a stage that is there, and no key has two values in one cell.
    fn check_settings(&self, path: &Path) -> Result<()> {
        let steps = || self.axes.iter().flatten().flat_map(|step| &step.settings);
        for setting in self.given.iter().chain(steps()) {
            if setting.key != "seed" && !self.stages.iter().any(|s| setting.key_in(&s.kind).is_some()) {
                let kinds: Vec<&str> = self.stages.iter().map(|s| s.kind.as_str()).collect();
                let message = format!(
                    "setting `{}`: expected `seed` or `<stage>.<key>`, found no such stage in {}",
                    setting.key,
                    path.display()
                );
                return Err(mistake(message, format!("the stages are: {}", kinds.join(", "))));
            }
        }
        // In a cell every axis has one of its steps: each is compared with the command line and with the steps of other axes.
        refuse_conflicts(self.given.iter())?;
        for (n, axis) in self.axes.iter().enumerate() {
            for step in axis {
                refuse_conflicts(self.given.iter().chain(&step.settings))?;
                for other in self.axes[..n].iter().flatten() {
                    refuse_conflicts(other.settings.iter().chain(&step.settings))?;
                }
            }
        }
        Ok(())
    }
}

fn check_name(name: &str, path: &Path) -> Result<()> {
    let safe = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || !name.chars().all(safe) {
        let place = format!("{}, `name`", path.display());
        let hint = "it names a folder below checkpoints/";
        return Err(invalid(place, "letters, digits, - and _", format!("`{name}`"), hint));
    }
    Ok(())
}

/// Variables mean what they stand for; one that was not given is asked for.
fn name_variables(given: &mut [Setting], variables: &BTreeMap<String, String>, path: &Path) -> Result<()> {
    for (name, key) in variables {
        let own = given.iter_mut().filter(|s| s.key == *name || s.key == *key);
        if own.map(|s| s.key.clone_from(key)).count() == 0 {
            let message = format!("{}: expected a value for the variable `{name}`, found none", path.display());
            return Err(mistake(message, format!("--set {name}=VALUE (it stands for `{key}`)")));
        }
    }
    Ok(())
}

/// A stage's settings: those of the variant that it includes, then its own.
fn entry(mut own: Table, path: &Path, folder: &Path, project: &Project) -> Result<Entry> {
    let place = path.display().to_string();
    let kind = text(own.remove("kind"), "kind", &place)?
        .ok_or_else(|| invalid(format!("{place}, [[stage]]"), "a key `kind`", "none", EXAMPLE))?;
    let (include, older) =
        (text(own.remove("include"), "include", &place)?, text(own.remove("config"), "config", &place)?);
    if include.is_some() && older.is_some() {
        let hint = "`config` is the older word for `include`";
        return Err(invalid(format!("{place}, stage `{kind}`"), "`include` or `config`", "both", hint));
    }
    resolve_paths(&mut own, &kind, project, folder, &place)?;
    let Some(variant) = include.or(older) else {
        return Ok(Entry { kind, settings: own, place: path.to_owned() });
    };
    let variant = from_here(&project.resolve(&variant, folder, &place));
    let mut settings: Table = toml::from_str(&fs_err::read_to_string(&variant)?)
        .map_err(|e| mistake(format!("{}: {}", variant.display(), e.to_string().trim()), "this is not TOML"))?;
    let of_variant = variant.parent().unwrap_or(Path::new("")).to_owned();
    resolve_paths(&mut settings, &kind, project, &of_variant, &variant.display().to_string())?;
    let place = if own.is_empty() { variant } else { path.to_owned() };
    lay_over(&mut settings, own);
    Ok(Entry { kind, settings, place })
}

fn text(value: Option<Value>, key: &str, place: &str) -> Result<Option<String>> {
    match value {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(invalid(format!("{place}, [[stage]], `{key}`"), "a text", other.to_string(), EXAMPLE)),
    }
}

/// Puts `upper` over `lower`: tables key by key, all else whole.
fn lay_over(lower: &mut Table, upper: Table) {
    for (key, value) in upper {
        match (lower.get_mut(&key), value) {
            (Some(Value::Table(lower)), Value::Table(upper)) => lay_over(lower, upper),
            (_, value) => _ = lower.insert(key, value),
        }
    }
}
