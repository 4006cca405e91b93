//! The stage `dpo`: every user's policy, learnt from the user's pairs.

use std::collections::BTreeMap;

use device::Compute;
use policy::{DpoConfig, DpoReport, Start};
use problem::Result;
use run::Run;
use serde::Serialize;

use super::artifact::POLICIES;
use super::stage::as_table;
use super::budget::{Budget, Sizes, product};
use super::pairs::Made;
use super::{Artifact, Inputs, Stage};

/// What was trained.
#[derive(Debug, Serialize)]
pub(crate) struct Trained {
    #[serde(flatten)]
    report: DpoReport,
    /// Users whose training an earlier stage stopped, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    quarantined_before: BTreeMap<String, String>,
}

impl Stage for DpoConfig {
    const KIND: &'static str = "dpo";
    const FORMAT: u32 = 8;
    const WITHOUT_EFFECT: &'static [&'static str] = &["save_every_steps"];
    const LAST_BITS: &'static [&'static str] = &["micro_batch_tokens", "activations"];
    type Report = Trained;

    fn defaults(_: &toml::Table) -> toml::Table {
        as_table(&Self::default())
    }

    fn check(&self) -> Result<()> {
        // Which users there are is known when training begins.
        let named: Vec<String> = self.user.keys().cloned().chain(["a user".to_owned()]).collect();
        DpoConfig::check(self, &named)
    }

    fn reads(&self) -> Vec<Artifact> {
        match self.start {
            Start::Base => vec![Artifact::Base, Artifact::Pairs],
            Start::Sft => vec![Artifact::Base, Artifact::Pairs, Artifact::SftPolicies],
        }
    }

    fn provides(&self) -> Vec<Artifact> {
        vec![Artifact::Policies]
    }

    fn budget(&self, sizes: &Sizes) -> Budget {
        let most = product(&[self.token_budget_per_user, sizes.users]);
        // Pairs that are there already are counted.
        let planned = sizes.pair_tokens.map(|pass| product(&[pass, self.max_epochs.get()]));
        Budget::training(planned.map_or(most, |planned| planned.min(most)), &self.lora.blocks, sizes)
    }

    fn execute(&self, inputs: &Inputs, compute: &Compute, run: &mut Run) -> Result<Trained> {
        let (lm, tokenizer) = inputs.base(compute)?;
        let folder = inputs.folder(Artifact::Pairs)?;
        let pairs = policy::read_pairs(&folder.join("pairs.parquet"))?;
        let made: Made = run::read_json(&folder.join("report.json"))?;
        let start = inputs.start(self.start, &lm)?;
        let quarantined_before = made.quarantined_before;
        // Settings of a user whom an earlier stage stopped are no mistake.
        let mut own = self.clone();
        own.user.retain(|user, _| !quarantined_before.contains_key(user));
        let (policies, report) = policy::train_dpo(&own, &lm, &tokenizer, &pairs, &made.users, start, run)?;
        policies.write(&run.path(POLICIES))?;
        let trained = Trained { report, quarantined_before };
        run::write_json(&run.path("report.json"), &trained)?;
        Ok(trained)
    }

    fn text(trained: &Trained) -> String {
        let report = &trained.report;
        let each = report.users.iter().map(|(user, r)| {
            format!(
                "{user}: {} pairs, {} steps, loss {:.3}, accuracy {:.2}",
                r.pairs, r.steps, r.final_loss, r.final_accuracy
            )
        });
        let worst = report.worst_decile;
        format!(
            "{} tokens; {}; the {} worst: loss {:.3}, accuracy {:.2}; {}",
            report.tokens,
            each.collect::<Vec<_>>().join("; "),
            worst.users,
            worst.final_loss,
            worst.final_accuracy,
            report.rows
        )
    }
}
