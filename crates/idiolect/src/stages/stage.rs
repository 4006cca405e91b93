//! What a stage is.

use std::any::Any;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use device::Compute;
use lm::AdamWConfig;
use problem::Result;
use run::{Environment, Run};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::artifact::{Artifact, Inputs};
use super::budget::{Budget, Sizes};

/// One kind of stage: its settings are the type that implements this, as read from TOML.
pub(crate) trait Stage: Serialize + DeserializeOwned + JsonSchema + 'static {
    /// As `kind` in a pipeline names it.
    const KIND: &'static str;
    /// Raised whenever the code changes what this stage writes.
    const FORMAT: u32;
    /// Settings that change no byte of the result, as dotted keys.
    const WITHOUT_EFFECT: &'static [&'static str] = &[];
    /// Settings that move the last bits of the result and nothing else: part of the environment.
    const LAST_BITS: &'static [&'static str] = &[];
    /// Settings that are paths or lists of paths. Their contents decide the result, not their names.
    const PATHS: &'static [&'static str] = &[];
    /// What it says of its work: the manifest's summary.
    type Report: Serialize;

    /// The settings that a pipeline need not give. Some depend on which others are `given`.
    fn defaults(given: &toml::Table) -> toml::Table;

    /// Refuses settings that mean nothing.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// What it reads of the stages before it.
    fn reads(&self) -> Vec<Artifact>;

    /// What it is to the stages after it.
    fn provides(&self) -> Vec<Artifact>;

    /// What it reads besides.
    ///
    /// # Errors
    /// A file that is not there.
    fn files(&self) -> Result<Vec<Source>> {
        Ok(vec![])
    }

    /// Does libtorch compute its result? The last bits of others do not depend on device, dtype and threads.
    fn computes(&self) -> bool {
        true
    }

    /// What moves the last bits of its result.
    fn environment(&self, compute: &Compute) -> Environment {
        if self.computes() { compute.environment() } else { Environment::new() }
    }

    /// The most tokens that it may take.
    fn budget(&self, _: &Sizes) -> Budget {
        Budget::default()
    }

    /// Does the work: files into the run's folder.
    fn execute(&self, inputs: &Inputs, compute: &Compute, run: &mut Run) -> Result<Self::Report>;

    /// The report for a reader.
    fn text(report: &Self::Report) -> String;
}

/// A file or an address that a stage reads.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A local file: its content decides, with what it is to the stage.
    File { name: String, path: PathBuf },
    /// An address, or a model's name on the hub: what it stands for now decides (a commit, an entity tag, a time).
    Pinned { name: String, identity: String },
}

impl Source {
    /// The one file that has this role.
    pub(crate) fn file(role: &str, path: &Path) -> Self {
        Self::File { name: role.to_owned(), path: path.to_owned() }
    }
}

/// A stage of any kind with its settings.
pub(crate) trait AnyStage {
    fn kind(&self) -> &'static str;
    fn format(&self) -> u32;
    fn reads(&self) -> Vec<Artifact>;
    fn provides(&self) -> Vec<Artifact>;
    fn files(&self) -> Result<Vec<Source>>;
    fn budget(&self, sizes: &Sizes) -> Budget;
    /// All settings, as they are kept in the stage's folder.
    fn settings(&self) -> Value;
    /// The settings that decide the result.
    fn deciding_settings(&self) -> Value;
    /// What moves the last bits of the result: the machine's part, and the settings that do.
    fn environment(&self, compute: &Compute) -> Environment;
    /// Does the work; gives the manifest's summary, and the text for a reader.
    fn execute(&self, inputs: &Inputs, compute: &Compute, run: &mut Run) -> Result<(Value, String)>;
    /// The settings' own type.
    fn as_any(&self) -> &dyn Any;
}

impl<S: Stage> AnyStage for S {
    fn kind(&self) -> &'static str {
        S::KIND
    }

    fn format(&self) -> u32 {
        S::FORMAT
    }

    fn reads(&self) -> Vec<Artifact> {
        Stage::reads(self)
    }

    fn provides(&self) -> Vec<Artifact> {
        Stage::provides(self)
    }

    fn files(&self) -> Result<Vec<Source>> {
        Stage::files(self)
    }

    fn budget(&self, sizes: &Sizes) -> Budget {
        Stage::budget(self, sizes)
    }

    fn settings(&self) -> Value {
        without_nulls(json!(self))
    }

    fn deciding_settings(&self) -> Value {
        let mut settings = json!(self);
        for key in S::WITHOUT_EFFECT.iter().chain(S::LAST_BITS).chain(S::PATHS) {
            take(&mut settings, key);
        }
        settings
    }

    fn environment(&self, compute: &Compute) -> Environment {
        let mut environment = Stage::environment(self, compute);
        let mut settings = json!(self);
        if self.computes() {
            for key in S::LAST_BITS {
                environment.extend(take(&mut settings, key).map(|value| ((*key).to_owned(), value.to_string())));
            }
        }
        environment
    }

    fn execute(&self, inputs: &Inputs, compute: &Compute, run: &mut Run) -> Result<(Value, String)> {
        let report = Stage::execute(self, inputs, compute, run)?;
        Ok((json!(report), S::text(&report)))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// TOML has no null: an option that is off is left out.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            Value::Object(map.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect())
        }
        other => other,
    }
}

/// Takes the value of a dotted key out of a table of settings.
fn take(settings: &mut Value, key: &str) -> Option<Value> {
    match key.split_once('.') {
        None => settings.as_object_mut()?.shift_remove(key).filter(|value| !value.is_null()),
        Some((table, rest)) => take(settings.get_mut(table)?, rest),
    }
}

/// Says which learning rates of a stage are 0, since nothing moves then: those of an optimiser's `place`, and those of users.
pub(crate) fn say_what_does_not_move<'a>(
    stage: &str,
    optimizers: &[(&str, &AdamWConfig)],
    users: impl Iterator<Item = (&'a String, Option<f64>)>,
) {
    for (place, _) in optimizers.iter().filter(|(_, optimizer)| optimizer.learning_rate == 0.0) {
        tracing::warn!(
            "{stage}: `{place}.learning_rate` is 0, so nothing moves: what is written is what training begins with"
        );
    }
    let still: Vec<&str> = users.filter(|(_, rate)| *rate == Some(0.0)).map(|(user, _)| user.as_str()).collect();
    if !still.is_empty() {
        tracing::warn!("{stage}: the own `learning_rate` of {} is 0, so their policies do not move", still.join(", "));
    }
}

/// The users whose training a stage stopped, with the reason, by its summary in the manifest.
pub(crate) fn quarantined(summary: &Value) -> BTreeMap<String, String> {
    serde_json::from_value(summary["quarantined"].clone()).unwrap_or_default()
}

/// The users whose training the stage in `folder` stopped, or one before it, by its `report.json`.
pub(crate) fn stopped_before(folder: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Report {
        #[serde(default)]
        quarantined: BTreeMap<String, String>,
        #[serde(default)]
        quarantined_before: BTreeMap<String, String>,
    }
    let Report { quarantined, mut quarantined_before } = run::read_json(&folder.join("report.json"))?;
    quarantined_before.extend(quarantined);
    Ok(quarantined_before)
}

/// Settings as a table; options that are off are left out.
pub(crate) fn as_table(settings: &impl Serialize) -> toml::Table {
    toml::Table::try_from(settings).expect("settings are plain tables")
}
