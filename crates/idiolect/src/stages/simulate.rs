//! The stage `simulate`: the base answers prompts, and annotators whose ground-truth reward is known vote on its responses.

use std::collections::BTreeMap;

use device::Compute;
use problem::Result;
use run::Run;
use study::{SimulateConfig, SimulationReport};

use super::budget::{Budget, Sizes};
use super::{Artifact, Inputs, Source, Stage};

impl Stage for SimulateConfig {
    const KIND: &'static str = "simulate";
    const FORMAT: u32 = 8;
    const PATHS: &'static [&'static str] = &["prompts"];
    const LAST_BITS: &'static [&'static str] = &["sampling.batch_rows"];
    type Report = SimulationReport;

    fn defaults(_: &toml::Table) -> toml::Table {
        toml::toml! {
            agreement = 0.8
            tie_width = 0.05
            gate = 0.8
            sampling = { samples_per_prompt = 8, max_new_tokens = 128, temperature = 1.0, batch_rows = 64 }
            votes_per_user = { train = 500, dev = 60, test = 200 }
        }
    }

    fn check(&self) -> Result<()> {
        SimulateConfig::check(self)
    }

    fn reads(&self) -> Vec<Artifact> {
        vec![Artifact::Base]
    }

    fn provides(&self) -> Vec<Artifact> {
        vec![Artifact::SimulatedVotes, Artifact::Truth]
    }

    fn files(&self) -> Result<Vec<Source>> {
        Ok(vec![Source::file("prompts", &self.prompts)])
    }

    fn budget(&self, sizes: &Sizes) -> Budget {
        let lists = [sizes.simulated(|p| &p.train), sizes.simulated(|p| &p.dev), sizes.simulated(|p| &p.held_out)];
        let opponents = lists[2].saturating_mul(self.sampling.max_new_tokens.get());
        Budget::sampling(self.sampling.budget(lists.iter().sum()).saturating_add(opponents))
    }

    fn execute(&self, inputs: &Inputs, compute: &Compute, run: &mut Run) -> Result<SimulationReport> {
        let (lm, tokenizer) = inputs.base(compute)?;
        let report = study::simulate(self, &lm, &tokenizer, run)?;
        run::write_json(&run.path("report.json"), &report)?;
        Ok(report)
    }

    fn text(report: &SimulationReport) -> String {
        format!(
            "{} samples, {:.0}% ended by themselves; {} votes, {} ties; agreement with own truth {}; best of n beats another sample {}",
            report.samples,
            report.finished * 100.0,
            report.votes,
            report.ties,
            shares(&report.agreement),
            shares(&report.best_of_n)
        )
    }
}

fn shares(map: &BTreeMap<String, f64>) -> String {
    map.iter().map(|(k, v)| format!("{k} {v:.2}")).collect::<Vec<_>>().join(", ")
}
