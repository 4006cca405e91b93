//! The stages of a pipeline. A stage is one file: a type for its settings that implements [`Stage`]. Adding one adds its file, and its name
//! to the list below.

mod artifact;
mod budget;
mod defaults;
mod stage;

use std::path::Path;

use problem::{Result, mistake};
use serde_json::Value;

pub(crate) use artifact::{Artifact, Inputs};
pub(crate) use budget::{Budget, Sizes};
pub(crate) use defaults::Schema;
use defaults::lay_over;
pub(crate) use stage::{AnyStage, Source, Stage, quarantined};

/// Declares the stages' files, and the list of all kinds.
macro_rules! stages {
    ($($file:ident: $settings:ty),* $(,)?) => {
        $(pub(crate) mod $file;)*

        /// All kinds of stages, in the order in which pipelines usually have them.
        const KINDS: &[Kind] = &[$(Kind::of::<$settings>()),*];
    };
}

stages! {
    import: import::ImportConfig,
    simulate: study::SimulateConfig,
    data: data::DataConfig,
    sft: policy::SftConfig,
    reward: ::reward::RewardConfig,
    pairs: pairs::PairsConfig,
    dpo: policy::DpoConfig,
    ppo: policy::PpoConfig,
    evaluate: study::EvaluateConfig,
    export: ::export::ExportConfig,
}

/// A kind of stage, before its settings are read.
struct Kind {
    name: &'static str,
    paths: &'static [&'static str],
    schema: fn() -> Value,
    defaults: fn(&toml::Table) -> toml::Table,
    read: fn(toml::Table) -> Result<Box<dyn AnyStage>, toml::de::Error>,
    check: fn(&dyn AnyStage) -> Result<()>,
}

impl Kind {
    const fn of<S: Stage>() -> Self {
        let (schema, read, check) = (schema::<S>, read::<S>, check::<S>);
        Self { name: S::KIND, paths: S::PATHS, schema, defaults: S::defaults, read, check }
    }
}

fn schema<S: Stage>() -> Value {
    let draft = schemars::generate::SchemaSettings::draft2020_12();
    draft.into_generator().into_root_schema_for::<S>().to_value()
}

fn read<S: Stage>(table: toml::Table) -> Result<Box<dyn AnyStage>, toml::de::Error> {
    Ok(Box::new(S::deserialize(toml::Value::Table(table))?))
}

fn check<S: Stage>(stage: &dyn AnyStage) -> Result<()> {
    stage.as_any().downcast_ref::<S>().map_or(Ok(()), Stage::check)
}

fn find(kind: &str) -> Result<&'static Kind> {
    KINDS.iter().find(|known| known.name == kind).ok_or_else(|| {
        let names: Vec<&str> = KINDS.iter().map(|known| known.name).collect();
        let message = format!("`kind`: expected one of {}, found `{kind}`", names.join(", "));
        mistake(message, "pipelines/quickstart.toml is an example")
    })
}

/// The settings of this kind that are paths, as dotted keys.
pub(crate) fn path_settings(kind: &str) -> Result<&'static [&'static str]> {
    Ok(find(kind)?.paths)
}

/// The JSON schema of a stage's settings, and their defaults.
pub(crate) fn documented_settings(kind: &str) -> Result<(Value, toml::Table)> {
    let known = find(kind)?;
    Ok(((known.schema)(), (known.defaults)(&toml::Table::new())))
}

/// The names of all kinds.
pub(crate) fn kinds() -> impl Iterator<Item = &'static str> {
    KINDS.iter().map(|known| known.name)
}

/// Reads the settings of a stage: what is given, over the defaults. Unknown keys, and values that mean nothing, are errors; `place` names the file.
pub(crate) fn read_stage(kind: &str, table: toml::Table, place: &Path) -> Result<Box<dyn AnyStage>> {
    let known = find(kind)?;
    let mut whole = (known.defaults)(&table);
    let schema = (known.schema)();
    let schema = Schema::new(&schema).of_kind(&whole);
    lay_over(&mut whole, table, schema);
    let stage = (known.read)(whole).map_err(|error| {
        let message = format!("{}, stage `{kind}`: {}", place.display(), error.to_string().trim());
        mistake(message, format!("the settings are: `idiolect config {kind}`"))
    })?;
    (known.check)(stage.as_ref())?;
    Ok(stage)
}
