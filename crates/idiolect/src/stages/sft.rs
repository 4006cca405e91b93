//! The stage `sft`: supervised fine-tuning on chosen responses, one adapter for all users or one each.

use device::Compute;
use policy::{Scope, SftConfig, SftReport};
use problem::Result;
use run::Run;

use super::artifact::POLICIES;
use super::stage::{as_table, say_what_does_not_move};
use super::budget::{Budget, Sizes, product};
use super::{Artifact, Inputs, Stage};
use crate::base;

impl Stage for SftConfig {
    const KIND: &'static str = "sft";
    const FORMAT: u32 = 8;
    const WITHOUT_EFFECT: &'static [&'static str] = &["save_every_steps"];
    const LAST_BITS: &'static [&'static str] = &["micro_batch_tokens", "activations"];
    type Report = SftReport;

    fn defaults(_: &toml::Table) -> toml::Table {
        as_table(&Self::default())
    }

    fn check(&self) -> Result<()> {
        SftConfig::check(self, &["a model".to_owned()])
    }

    fn reads(&self) -> Vec<Artifact> {
        vec![Artifact::Base, Artifact::Votes]
    }

    /// A base that was fine-tuned for everyone takes the imported one's place.
    fn provides(&self) -> Vec<Artifact> {
        match self.scope {
            Scope::Global => vec![Artifact::SftPolicies, Artifact::Base],
            Scope::PerUser => vec![Artifact::SftPolicies],
        }
    }

    fn budget(&self, sizes: &Sizes) -> Budget {
        let models = if self.scope == Scope::Global { 1 } else { sizes.users };
        Budget::training(product(&[self.token_budget, models]), &self.lora.blocks, sizes)
    }

    fn execute(&self, inputs: &Inputs, compute: &Compute, run: &mut Run) -> Result<SftReport> {
        say_what_does_not_move(Self::KIND, &[("optimizer", &self.optimizer)], std::iter::empty());
        let (lm, tokenizer) = inputs.base_with_rows(compute)?;
        let votes = inputs.votes()?;
        let users = data::user_ids(&votes);
        let (policies, report) = policy::train_sft(self, &lm, &tokenizer, &votes, &users, run)?;
        policies.write(&run.path(POLICIES))?;
        if self.scope == Scope::Global {
            // The fine-tuned base is a folder like the imported one. Merging is a float32 matter.
            let imported = inputs.folder(Artifact::Base)?;
            let (whole, _) = base::load(imported, &compute.in_float32())?;
            export::write_merged(&run.path(""), imported, &whole, &policies.bank, lm::UserIndex(0))?;
        }
        run::write_json(&run.path("report.json"), &report)?;
        Ok(report)
    }

    fn text(report: &SftReport) -> String {
        let each = report.models.iter().map(|(model, r)| {
            format!(
                "{model}: {} answers, {} steps, loss {:.3} to {:.3} nats a token",
                r.answers, r.steps, r.first_loss, r.final_loss
            )
        });
        let mut text = format!("{}; {}", each.collect::<Vec<_>>().join("; "), report.rows);
        if report.without_weight > 0 {
            text += &format!("; {} votes of weight 0 left out", report.without_weight);
        }
        text
    }
}
