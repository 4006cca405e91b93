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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use toml::{Table, Value as Toml};

    use super::*;

    /// What a stage's defaults do not give.
    fn required(kind: &str) -> Table {
        let text = match kind {
            "import" => "folder = \"model\"",
            "simulate" => "prompts = \"p.toml\"\nfeatures = [\"and\"]\nraters = { ann = [1.0] }",
            "data" => "card = \"card.toml\"",
            _ => "",
        };
        toml::from_str(text).unwrap()
    }

    /// The dotted keys of all values that are no tables, and of all tables.
    fn keys(table: &Table, above: &str, out: &mut Vec<String>) {
        for (name, value) in table {
            let path = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
            if let Toml::Table(below) = value {
                keys(below, &path, out);
            }
            out.push(path);
        }
    }

    fn assign(table: &mut Table, path: &str, value: Toml) {
        match path.split_once('.') {
            None => _ = table.insert(path.to_owned(), value),
            Some((head, rest)) => {
                if let Some(Toml::Table(below)) = table.get_mut(head) {
                    assign(below, rest, value);
                }
            }
        }
    }

    /// Values that somebody might write by mistake.
    fn odd() -> impl Strategy<Value = Toml> {
        let numbers = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, -1.0, 1e-320, 1e308, 0.5];
        prop_oneof![
            prop::sample::select(vec![i64::MIN, -1, 0, 1, 2, 1 << 20, i64::MAX]).prop_map(Toml::Integer),
            prop::sample::select(numbers.to_vec()).prop_map(Toml::Float),
            prop::sample::select(vec!["", "x", "all", "sft", "rfm", "rloo", "\u{0}", "../..", "users"])
                .prop_map(Toml::from),
            any::<bool>().prop_map(Toml::Boolean),
            Just(Toml::Array(vec![])),
            Just(Toml::Array(vec![Toml::Float(f64::NAN), Toml::Integer(-1)])),
            Just(Toml::Table(Table::new())),
            Just(Toml::Table(toml::from_str("last = 0\nby = \"folds\"\nof = 0").unwrap())),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3000))]

        /// Whatever stands where, a stage is read or refused with a message, and what is read can be planned.
        #[test]
        fn issue_22_9_no_value_of_a_setting_panics(
            kind in prop::sample::select(KINDS.iter().map(|k| k.name).collect::<Vec<_>>()),
            changes in prop::collection::vec((any::<prop::sample::Index>(), odd()), 1..4),
        ) {
            let known = find(kind).unwrap();
            let mut table = (known.defaults)(&Table::new());
            table.extend(required(kind));
            let mut all = Vec::new();
            keys(&table, "", &mut all);
            for (at, value) in changes {
                assign(&mut table, &all[at.index(all.len())], value);
            }
            match read_stage(kind, table, Path::new("x.toml")) {
                Err(problem) => prop_assert!(problem.hint().is_some(), "{problem}"),
                Ok(stage) => {
                    let compute = device::Compute { device: device::Device::Cpu, kind: tch::Kind::Float, threads: 1 };
                    for users in [0, 1, usize::MAX] {
                        let sizes = Sizes { users, training_prompts: users, blocks: 4, ..Sizes::default() };
                        let Budget { weighted, .. } = stage.budget(&sizes);
                        prop_assert!(weighted >= 0.0);
                    }
                    prop_assert!(stage.deciding_settings().is_object());
                    stage.environment(&compute);
                    stage.reads();
                }
            }
        }
    }

    #[test]
    fn every_kinds_defaults_are_settings_of_it() {
        for known in KINDS {
            let stage = read_stage(known.name, required(known.name), Path::new("x.toml")).unwrap();
            let written = toml::Table::try_from(stage.settings()).unwrap();
            assert!(read_stage(known.name, written, Path::new("x.toml")).is_ok(), "{}", known.name);
            for key in known.paths {
                assert!(
                    (known.schema)().pointer(&format!("/properties/{key}")).is_some(),
                    "{} has no `{key}`",
                    known.name
                );
            }
        }
    }
}
