//! A pipeline file: which stages, with which settings, over which matrix of variants.

use std::collections::BTreeMap;
use std::path::Path;

use problem::{Result, mistake};
use serde::Deserialize;
use toml::{Table, Value};

use crate::stages::Stage;

/// As written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PipelineFile {
    name: String,
    seed: u64,
    stage: Vec<StageEntry>,
    /// Names that `--set NAME=VALUE` gives a value: the setting `stage.key` that each stands for. All must be given.
    #[serde(default)]
    variables: BTreeMap<String, String>,
    #[serde(default)]
    matrix: Table,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StageEntry {
    kind: String,
    config: String,
}

/// As meant: the stages of one cell of the matrix.
pub(crate) struct Cell {
    /// `key=value` of every axis of the matrix.
    pub(crate) label: String,
    /// The values of all axes but those of seeds and of data (folds): what is compared.
    pub(crate) method: String,
    /// The axes of seeds: fits of one method.
    pub(crate) fit: String,
    pub(crate) stages: Vec<StagePlan>,
}

/// A stage with its resolved settings.
pub(crate) struct StagePlan {
    pub(crate) stage: Stage,
    pub(crate) seed: u64,
    /// The folder's name below the pipeline's: the kind, and the axes of the matrix that reach it.
    pub(crate) folder: String,
}

/// A pipeline, resolved.
pub(crate) struct Pipeline {
    pub(crate) name: String,
    pub(crate) seed: u64,
    /// One cell without a matrix.
    pub(crate) cells: Vec<Cell>,
}

/// `stage.key.path` or `seed`, and the value.
#[derive(Clone)]
struct Setting {
    key: String,
    value: Value,
}

impl Setting {
    fn parse(text: &str) -> Result<Self> {
        let (key, value) = text.split_once('=').ok_or_else(|| {
            mistake(format!("--set {text}: expected `key=value`, found no `=`"), "such as --set reward.max_epochs=1")
        })?;
        // A bare word is a text, as on any command line.
        let parsed = toml::from_str::<Table>(&format!("v = {value}")).ok().and_then(|mut t| t.remove("v"));
        Ok(Self { key: key.trim().to_owned(), value: parsed.unwrap_or_else(|| Value::String(value.to_owned())) })
    }

    /// Does it speak of this stage, and of which of its keys?
    fn key_in(&self, kind: &str) -> Option<&str> {
        self.key.strip_prefix(kind)?.strip_prefix('.')
    }
}

/// Sets `a.b.c` in a table whose tables `a` and `a.b` exist; the key itself is judged when the config is read.
fn assign(table: &mut Table, path: &str, setting: &Setting) -> Result<()> {
    let (head, rest) = path.split_once('.').map_or((path, None), |(h, r)| (h, Some(r)));
    match rest {
        None => {
            table.insert(head.to_owned(), setting.value.clone());
            Ok(())
        }
        Some(rest) => match table.get_mut(head) {
            Some(Value::Table(inner)) => assign(inner, rest, setting),
            _ => Err(mistake(
                format!("--set {}: expected a table `{head}`, found none", setting.key),
                format!("the keys here are: {}", table.keys().cloned().collect::<Vec<_>>().join(", ")),
            )),
        },
    }
}

/// One step along an axis of the matrix: a value of one setting, or a name for several.
#[derive(Clone)]
struct Step {
    /// `key=value` or `axis=name`.
    word: String,
    axis: String,
    settings: Vec<Setting>,
}

/// A named step, as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedStep {
    name: String,
    set: Table,
}

impl Step {
    fn new(axis: &str, value: &Value) -> Result<Self> {
        let axis = axis.to_owned();
        if !value.is_table() {
            let setting = Setting { key: axis.clone(), value: value.clone() };
            return Ok(Self { word: word(&setting), axis, settings: vec![setting] });
        }
        let NamedStep { name, set } = value.clone().try_into().map_err(|e| {
            mistake(format!("[matrix], `{axis}`: {}", e.to_string().trim()), "write { name = \"..\", set = { .. } }")
        })?;
        let safe = |c: char| c.is_ascii_alphanumeric() || "-_ +.".contains(c);
        if name.is_empty() || !name.chars().all(safe) {
            let message =
                format!("[matrix], `{axis}`: expected a name of letters, digits, blanks, - _ + ., found `{name}`");
            return Err(mistake(message, "it becomes part of a folder's name"));
        }
        let settings = set.into_iter().map(|(key, value)| Setting { key, value }).collect();
        Ok(Self { word: format!("{axis}={name}"), axis, settings })
    }
}

/// All combinations of the axes, the first axis slowest.
fn combinations(matrix: &Table) -> Result<Vec<Vec<Step>>> {
    let mut cells: Vec<Vec<Step>> = vec![vec![]];
    for (key, values) in matrix {
        let Value::Array(values) = values else {
            return Err(mistake(format!("[matrix], `{key}`: expected a list, found {values}"), "write `key = [..]`"));
        };
        let steps = values.iter().map(|value| Step::new(key, value)).collect::<Result<Vec<Step>>>()?;
        let longer = |cell: &Vec<Step>| -> Vec<Vec<Step>> {
            steps.iter().map(|step| cell.iter().cloned().chain([step.clone()]).collect()).collect()
        };
        cells = cells.iter().flat_map(longer).collect();
    }
    Ok(cells)
}

fn word(setting: &Setting) -> String {
    let value = setting.value.as_str().map_or_else(|| setting.value.to_string(), str::to_owned);
    format!("{}={value}", setting.key)
}

impl Pipeline {
    /// Reads a pipeline and every config that it names. Unknown keys anywhere are errors.
    pub(crate) fn read(path: &Path, set: &[String], seed: Option<u64>) -> Result<Self> {
        let text = fs_err::read_to_string(path)?;
        let file: PipelineFile = toml::from_str(&text).map_err(|e| {
            mistake(format!("{}: {}", path.display(), e.to_string().trim()), "pipelines/quickstart.toml is an example")
        })?;
        let safe = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if file.name.is_empty() || !file.name.chars().all(safe) {
            let message =
                format!("{}, `name`: expected letters, digits, - and _, found `{}`", path.display(), file.name);
            return Err(mistake(message, "it names a folder below checkpoints/"));
        }
        let mut settings = set.iter().map(|s| Setting::parse(s)).collect::<Result<Vec<_>>>()?;
        // Variables mean what they stand for; one that was not given is asked for.
        for (name, key) in &file.variables {
            let given =
                settings.iter_mut().filter(|s| s.key == *name || s.key == *key).map(|s| s.key.clone_from(key)).count();
            if given == 0 {
                let message = format!("{}: expected a value for the variable `{name}`, found none", path.display());
                return Err(mistake(message, format!("--set {name}=VALUE (it stands for `{key}`)")));
            }
        }
        settings.extend(seed.map(|s| Setting { key: "seed".into(), value: Value::Integer(s as i64) }));
        let steps: Vec<Step> = combinations(&file.matrix)?.into_iter().flatten().collect();
        for setting in settings.iter().chain(steps.iter().flat_map(|s| &s.settings)) {
            if setting.key != "seed" && !file.stage.iter().any(|s| setting.key_in(&s.kind).is_some()) {
                let kinds: Vec<&str> = file.stage.iter().map(|s| s.kind.as_str()).collect();
                return Err(mistake(
                    format!(
                        "setting `{}`: expected `seed` or `<stage>.<key>`, found no such stage in {}",
                        setting.key,
                        path.display()
                    ),
                    format!("the stages are: {}", kinds.join(", ")),
                ));
            }
        }
        let cells = combinations(&file.matrix)?
            .into_iter()
            .map(|axes| Cell::resolve(&file, &settings, &axes))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { name: file.name, seed: seed.unwrap_or(file.seed), cells })
    }
}

impl Cell {
    fn resolve(file: &PipelineFile, settings: &[Setting], axes: &[Step]) -> Result<Self> {
        let mut stages: Vec<StagePlan> = Vec::new();
        let mut reached: Vec<Vec<String>> = Vec::new(); // of each stage: the axes that its result depends on
        for entry in &file.stage {
            let path = Path::new(&entry.config);
            let text = fs_err::read_to_string(path)?;
            let mut table: Table = toml::from_str(&text)
                .map_err(|e| mistake(format!("{}: {}", path.display(), e.to_string().trim()), "this is not TOML"))?;
            let mut seed = file.seed;
            let mut own: Vec<String> = Vec::new();
            let along = axes.iter().flat_map(|step| step.settings.iter().map(move |s| (s, Some(&step.word))));
            for (setting, axis) in settings.iter().map(|s| (s, None)).chain(along) {
                let key = if setting.key == "seed" { Some("seed") } else { setting.key_in(&entry.kind) };
                match key {
                    None => continue,
                    Some("seed") => {
                        seed = setting.value.as_integer().and_then(|s| u64::try_from(s).ok()).ok_or_else(|| {
                            mistake(
                                format!("setting `{}`: expected a whole number, found {}", setting.key, setting.value),
                                "such as seed=7",
                            )
                        })?;
                    }
                    Some(key) => assign(&mut table, key, setting)?,
                }
                own.extend(axis.cloned());
            }
            let stage = Stage::parse(&entry.kind, table, path)?;
            for (upstream, theirs) in stages.iter().zip(&reached) {
                if upstream.stage.provides().iter().any(|name| stage.reads().contains(name)) {
                    own.extend(theirs.iter().cloned());
                }
            }
            own.sort();
            own.dedup();
            if stages.iter().any(|s| s.stage.kind() == stage.kind()) {
                return Err(mistake(
                    format!("stage `{}`: expected once, found twice", stage.kind()),
                    "make a second pipeline",
                ));
            }
            for needed in stage.reads() {
                if !stages.iter().any(|s| s.stage.provides().contains(needed)) {
                    let (wanted, example) = match *needed {
                        "policies" => ("dpo` or `ppo", "dpo"),
                        other => (other, other),
                    };
                    return Err(mistake(
                        format!("stage `{}`: expected a stage `{wanted}` before it, found none", stage.kind()),
                        format!("add a [[stage]] with kind = \"{example}\""),
                    ));
                }
            }
            let folder = if own.is_empty() { entry.kind.clone() } else { format!("{}@{}", entry.kind, own.join(",")) };
            reached.push(own);
            stages.push(StagePlan { stage, seed, folder });
        }
        let fit = |step: &&Step| step.settings.iter().all(|s| s.key.rsplit('.').next() == Some("seed"));
        let fold = |step: &&Step| step.settings.iter().all(|s| s.key.starts_with("data."));
        let words = |some: Vec<&Step>| some.into_iter().map(|s| s.word.clone()).collect::<Vec<_>>().join(" ");
        Ok(Self {
            label: words(axes.iter().collect()),
            method: axes
                .iter()
                .filter(|s| !fit(s) && !fold(s))
                .map(|s| s.word.strip_prefix(&format!("{}=", s.axis)).unwrap_or(&s.word).to_owned())
                .collect::<Vec<_>>()
                .join(", "),
            fit: words(axes.iter().filter(fit).collect()),
            stages,
        })
    }
}
