//! The stage `export`: every user's adapter as files that other software loads, read back and scored again.

use device::Compute;
use export::{ExportConfig, ExportReport};
use problem::Result;
use run::{Environment, Run};
use serde::Serialize;

use super::stage::{as_table, stopped_before};
use super::{Artifact, Inputs, Stage};

/// What was written, and for whom nothing was.
#[derive(Debug, Serialize)]
pub(crate) struct Exported {
    #[serde(flatten)]
    written: ExportReport,
    /// Users named in `merged` whose training was stopped: they have no policy to merge.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_merged: Vec<String>,
}

impl Stage for ExportConfig {
    const KIND: &'static str = "export";
    const FORMAT: u32 = 8;
    type Report = Exported;

    fn defaults(_: &toml::Table) -> toml::Table {
        as_table(&Self::default())
    }

    fn check(&self) -> Result<()> {
        ExportConfig::check(self)
    }

    fn reads(&self) -> Vec<Artifact> {
        vec![Artifact::Base, Artifact::Policies]
    }

    fn provides(&self) -> Vec<Artifact> {
        vec![Artifact::Exports]
    }

    /// Merging and parity are float32 matters, whatever the pipeline computes in.
    fn environment(&self, compute: &Compute) -> Environment {
        compute.in_float32().environment()
    }

    fn execute(&self, inputs: &Inputs, compute: &Compute, run: &mut Run) -> Result<Exported> {
        let (lm, tokenizer) = inputs.base(&compute.in_float32())?;
        let policies = inputs.policies(Artifact::Policies, &lm)?;
        let stopped = stopped_before(inputs.folder(Artifact::Policies)?)?;
        let (not_merged, merged) =
            self.merged.iter().cloned().partition(|user| !policies.users.contains(user) && stopped.contains_key(user));
        let config = Self { merged, ..self.clone() };
        let base = inputs.folder(Artifact::Base)?;
        let written = export::write(&config, base, &lm, &tokenizer, &policies.bank, &policies.users, run)?;
        Ok(Exported { written, not_merged })
    }

    fn text(report: &Exported) -> String {
        let users = &report.written.users;
        let worst = users.values().map(|u| u.adapter_max_logit_difference).fold(0.0, f64::max);
        let mut parts = vec![format!("{} adapters, read back within {worst:.1e} of a logit", users.len())];
        for (user, own) in users {
            parts.extend(own.merged_max_logit_difference.map(|d| format!("{user} merged, {d:.1e}")));
        }
        parts.extend(report.not_merged.iter().map(|user| format!("{user} not merged, since training was stopped")));
        parts.join("; ")
    }
}
