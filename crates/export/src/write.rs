//! The export stage: write, read back, re-score.

use std::collections::BTreeMap;
use std::path::Path;

use device::Compute;
use lm::{Bank, Lm, Place, UserIndex, full_logits};
use problem::{Result, bug, invalid};
use run::{Progress, Run};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use text::{Message, Tokenizer};

use crate::merged::write_merged;
use crate::peft::write_adapter;
use crate::{folder_name, read_adapter};

/// The settings of an export: `idiolect config export` shows them with their defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExportConfig {
    /// Users who also get a merged Hugging Face folder (float32: about the size of the base each).
    pub merged: Vec<String>,
    /// What is scored before writing and after reading back.
    pub probe: String,
    /// The largest difference of a logit that is accepted, in float32.
    pub tolerance: f64,
}

impl Default for ExportConfig {
    fn default() -> Self {
        let probe = "What should I cook for a friend who is coming to dinner tonight?".into();
        Self { merged: vec![], probe, tolerance: 1e-3 }
    }
}

impl ExportConfig {
    /// Refuses settings that mean nothing.
    ///
    /// # Errors
    /// An empty probe, or a tolerance that no difference can be held against.
    pub fn check(&self) -> Result<()> {
        let Self { merged: _, probe, tolerance } = self;
        let wrong = |key: &str, expected: &str, found: String| {
            Err(invalid(
                format!("export, `{key}`"),
                expected,
                found,
                "`idiolect config export` shows all settings and their defaults",
            ))
        };
        if probe.trim().is_empty() {
            return wrong("probe", "a text", "an empty one".into());
        }
        if !(*tolerance >= 0.0 && tolerance.is_finite()) {
            return wrong("tolerance", "a number from 0", tolerance.to_string());
        }
        Ok(())
    }
}

/// One user's files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UserExport {
    /// Folder of the adapter, below the stage's folder.
    pub adapter: String,
    /// Largest difference of a logit between the trained factors and the adapter read back.
    pub adapter_max_logit_difference: f64,
    /// Largest difference of a logit from the base: 0 for an adapter that does nothing, as after training with a learning rate of 0.
    pub max_logit_difference_from_base: f64,
    /// Folder of the merged model, if one was asked for.
    pub merged: Option<String>,
    /// Largest difference of a logit between the trained factors and the merged model read back.
    pub merged_max_logit_difference: Option<f64>,
}

/// All users' files, by user id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExportReport {
    /// By user id.
    pub users: BTreeMap<String, UserExport>,
    /// Users whose adapter changes no logit of the probe: their policies did not move from the base.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub equal_to_base: Vec<String>,
}

/// Writes `adapters/<name>/` for every user, `merged/<name>/` for those asked for, and `users.json`. `lm` must hold the
/// base in float32.
pub fn write(
    config: &ExportConfig,
    base: &Path,
    lm: &Lm,
    tokenizer: &Tokenizer,
    bank: &Bank,
    users: &[String],
    run: &mut Run,
) -> Result<ExportReport> {
    config.check()?;
    let ExportConfig { merged, probe, tolerance } = config;
    if let Some(unknown) = merged.iter().find(|m| !users.contains(m)) {
        let found = format!("`{unknown}`");
        return Err(invalid(
            "export, `merged`",
            format!("users among {}", users.join(", ")),
            found,
            "name a user of this pipeline",
        ));
    }
    let ids = tokenizer.prompt(&[Message::user(probe)])?;
    lm.refuse_longer(ids.len(), "export, `probe`")?;
    let plain = full_logits(lm, &ids, None);
    let mut report = ExportReport { users: BTreeMap::new(), equal_to_base: vec![] };
    let mut folders: BTreeMap<String, &str> = BTreeMap::new();
    let mut bar = Progress::new("export", users.len() + merged.len(), 0);
    for (u, user) in UserIndex::all(users.len()).zip(users) {
        let name = folder_name(user);
        if let Some(other) = folders.insert(name.clone(), user) {
            let found = format!("`{name}` for `{other}` and `{user}`");
            return Err(invalid("export", "a folder for each user", found, "rename one of the users"));
        }
        let wanted = full_logits(lm, &ids, Some((bank, u.in_whole_bank())));
        let check = |what: &str, logits: &lm::Tensor| -> Result<f64> {
            let difference = (logits - &wanted).abs().max().double_value(&[]);
            if difference <= *tolerance {
                return Ok(difference);
            }
            Err(bug(
                format!("export, {what} of `{user}`"),
                format!("logits within {tolerance} of the trained factors'"),
                difference.to_string(),
            ))
        };

        let adapter = format!("adapters/{name}");
        let folder = run.path(&adapter);
        write_adapter(&folder, lm, bank, u, &base.display().to_string(), &card(user, base))?;
        let back = read_adapter(&folder, lm)?;
        let adapted = full_logits(lm, &ids, Some((&back, Place(0))));
        let moved = (&adapted - &plain).abs().max().double_value(&[]);
        if moved == 0.0 {
            report.equal_to_base.push(user.clone());
        }
        let mut entry = UserExport {
            adapter_max_logit_difference: check("adapter", &adapted)?,
            max_logit_difference_from_base: moved,
            adapter,
            merged: None,
            merged_max_logit_difference: None,
        };
        bar.advance(1, "");
        if merged.contains(user) {
            let place = format!("merged/{name}");
            let folder = run.path(&place);
            write_merged(&folder, base, lm, bank, u)?;
            let compute = Compute { device: lm.device, kind: lm.kind, threads: 0 };
            let model = Lm::load(&folder, &compute)?;
            let ids_back = Tokenizer::from_folder(&folder)?.prompt(&[Message::user(probe)])?;
            entry.merged_max_logit_difference = Some(check("merged model", &full_logits(&model, &ids_back, None))?);
            entry.merged = Some(place);
            bar.advance(1, "");
        }
        report.users.insert(user.clone(), entry);
    }
    let names: BTreeMap<&String, String> = users.iter().map(|user| (user, folder_name(user))).collect();
    run::write_json(&run.path("users.json"), &names)?;
    run::write_json(&run.path("report.json"), &report)?;
    Ok(report)
}

fn card(user: &str, base: &Path) -> String {
    format!(
        "---\nlibrary_name: peft\nbase_model: {base}\npipeline_tag: text-generation\ntags: [lora, dpo, idiolect]\n---\n\n\
         # A language model for one person\n\nA LoRA adapter for the user `{}`, trained by Idiolect with DPO on the base \
         in `{base}`. Load it with PEFT, or serve it beside other users' adapters on one base.\n\n```python\n\
         from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\
         model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(\"{base}\"), \"path/to/this/folder\")\n```\n",
        user.escape_debug(),
        base = base.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_without_words_and_a_tolerance_of_no_number_are_refused_by_their_key() {
        let config = |probe: &str, tolerance| ExportConfig { merged: vec![], probe: probe.into(), tolerance };
        config("What is rain?", 0.0).check().unwrap();
        for (key, config) in [
            ("probe", config(" ", 1e-3)),
            ("tolerance", config("What is rain?", f64::NAN)),
            ("tolerance", config("What is rain?", -1e-3)),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(&format!("export, `{key}`: expected")), "{error}");
        }
    }
}
