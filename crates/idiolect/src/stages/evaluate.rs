//! The stage `evaluate`: every user's policy compared with the base, by the ground-truth rewards of simulated annotators.

use device::Compute;
use problem::Result;
use run::Run;
use study::{EvaluateConfig, EvaluationSplit, Own, Report};

use super::stage::as_table;
use super::budget::{Budget, Sizes, product};
use super::{Artifact, Inputs, Source, Stage};

impl Stage for EvaluateConfig {
    const KIND: &'static str = "evaluate";
    const FORMAT: u32 = 8;
    const PATHS: &'static [&'static str] = &["neutral"];
    const LAST_BITS: &'static [&'static str] = &["sampling.batch_rows"];
    type Report = Report;

    fn defaults(_: &toml::Table) -> toml::Table {
        as_table(&Self::default())
    }

    fn check(&self) -> Result<()> {
        EvaluateConfig::check(self)
    }

    fn reads(&self) -> Vec<Artifact> {
        vec![Artifact::Base, Artifact::Truth, Artifact::Policies]
    }

    fn provides(&self) -> Vec<Artifact> {
        vec![]
    }

    fn files(&self) -> Result<Vec<Source>> {
        Ok(self.neutral.iter().map(|file| Source::file("neutral", file)).collect())
    }

    fn budget(&self, sizes: &Sizes) -> Budget {
        let prompts = match self.split {
            EvaluationSplit::Dev => sizes.simulated(|p| &p.dev),
            EvaluationSplit::HeldOut => sizes.simulated(|p| &p.held_out),
        };
        Budget::sampling(product(&[self.sampling.budget(prompts), sizes.users.saturating_add(1)]))
    }

    fn execute(&self, inputs: &Inputs, compute: &Compute, run: &mut Run) -> Result<Report> {
        let (lm, tokenizer) = inputs.base(compute)?;
        let policies = inputs.policies(Artifact::Policies, &lm)?;
        let truth = inputs.truth()?;
        let rollouts = inputs.folder(Artifact::Policies)?.join("rollouts.parquet");
        let rollouts = rollouts.exists().then_some(rollouts.as_path());
        let own = Own { bank: &policies.bank, users: &policies.users };
        study::evaluate(self, &lm, &tokenizer, own, &truth, rollouts, run)
    }

    fn text(report: &Report) -> String {
        report.markdown()
    }
}
