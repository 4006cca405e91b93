//! The stage `reward`: a personalised reward model, fitted to everybody's votes and judged on votes that were kept back.

use std::collections::{BTreeMap, BTreeSet};

use data::{Split, Vote};
use device::Compute;
use eval::Evaluation;
use lm::Lm;
use problem::Result;
use reward::{FitReport, Kept, RewardConfig, RewardModel};
use run::Run;
use serde::Serialize;
use text::Tokenizer;

use super::stage::{as_table, say_what_does_not_move};
use super::budget::{Budget, Sizes};
use super::{Artifact, Inputs, Stage};

/// What was fitted, and how well it predicts.
#[derive(Debug, Serialize)]
pub(crate) struct Fitted {
    fit: FitReport,
    newcomers: usize,
    newcomers_fit: Option<FitReport>,
    dev: Evaluation,
    test: Evaluation,
    /// Users whose training was stopped, and why: they are not in the model.
    quarantined: BTreeMap<String, String>,
    /// Reward features: those asked for, those fitted, and users with preference weights.
    #[serde(skip)]
    features: Option<(Option<usize>, usize, usize)>,
}

impl Stage for RewardConfig {
    const KIND: &'static str = "reward";
    const FORMAT: u32 = 8;
    const WITHOUT_EFFECT: &'static [&'static str] = &["save_every_steps", "personal_factors", "frozen_states"];
    const LAST_BITS: &'static [&'static str] = &["micro_batch_tokens", "activations"];
    type Report = Fitted;

    fn defaults(_: &toml::Table) -> toml::Table {
        as_table(&Self::default())
    }

    fn check(&self) -> Result<()> {
        RewardConfig::check(self)
    }

    fn reads(&self) -> Vec<Artifact> {
        vec![Artifact::Base, Artifact::Votes]
    }

    fn provides(&self) -> Vec<Artifact> {
        vec![Artifact::RewardModel]
    }

    fn budget(&self, sizes: &Sizes) -> Budget {
        Budget::training(self.token_budget, &self.lora.blocks, sizes)
    }

    fn execute(&self, inputs: &Inputs, compute: &Compute, run: &mut Run) -> Result<Fitted> {
        say_what_does_not_move(Self::KIND, &[("optimizer", &self.optimizer)], std::iter::empty());
        let (lm, tokenizer) = base(self, inputs, compute, run)?;
        let votes = inputs.votes()?;
        let later = votes.iter().filter(|v| v.split != Split::Train);
        reward::refuse_long(&tokenizer, later, self.max_row_tokens, self.over_long)?;
        let (mut model, fit) = reward::fit(self, &lm, &tokenizer, &votes, &users_of(&votes, Split::Train), run)?;
        // Users with votes for adapting instead come after those with training votes.
        let newcomers = users_of(&votes, Split::Adapt);
        let mut newcomers_fit = None;
        if !newcomers.is_empty() {
            (model, newcomers_fit) = reward::welcome(self, &model, &lm, &tokenizer, &votes, &newcomers, run)?;
        }
        let mut features = None;
        if model.head.features.as_ref().is_some_and(|f| f.size()[0] > 1) {
            let (with_tastes, people) = reward::taste_people(self, model, &lm, &tokenizer, &votes)?;
            people.write(&run.path("people.safetensors"))?;
            let asked = self.features.map(std::num::NonZero::get);
            features = Some((asked, people.population.map.nrows(), people.tastes.len()));
            model = with_tastes;
        }
        model.write(&run.path("reward.safetensors"), &lm)?;
        run::write_json(&run.path("fit.json"), &fit)?;
        let [dev, test] = [Split::Dev, Split::Test].map(|split| judge(self, &model, &lm, &tokenizer, &votes, split, run));
        let (dev, test) = (dev?, test?);
        run::write_atomic(&run.path("reliability.svg"), eval::reliability(&[&dev, &test])?.as_bytes())?;
        let mut quarantined = fit.quarantined.clone();
        quarantined.extend(newcomers_fit.iter().flat_map(|fit| fit.quarantined.clone()));
        let report = Fitted { fit, newcomers: newcomers.len(), newcomers_fit, dev, test, quarantined, features };
        run::write_json(&run.path("report.json"), &report)?;
        Ok(report)
    }

    fn text(report: &Fitted) -> String {
        let Fitted { fit, newcomers, newcomers_fit, dev, test, features, quarantined: _ } = report;
        let accuracy =
            |e: &Evaluation| if e.votes == 0 { "(no votes)".into() } else { format!("{:.3}", e.mean_accuracy) };
        let mut text = format!(
            "{} votes ({} ties) on {} texts; {} steps ({} with one adapter for all), {} tokens, final loss {:.3}; accuracy on dev {}, on test {}; {}",
            fit.votes,
            fit.ties,
            fit.texts,
            fit.steps,
            fit.global_steps,
            fit.tokens,
            fit.final_loss,
            accuracy(dev),
            accuracy(test),
            fit.rows
        );
        if fit.ties_left_out > 0 {
            text += &format!("; {} ties left out of the likelihood", fit.ties_left_out);
        }
        if fit.without_weight > 0 {
            text += &format!("; {} votes of weight 0 left out", fit.without_weight);
        }
        if *newcomers > 0 {
            let votes = newcomers_fit.as_ref().map_or(0, |fit| fit.votes);
            text += &format!("; {newcomers} held-out users, fitted to {votes} votes");
        }
        if let Some((asked, fitted, users)) = features {
            let cut = asked.filter(|asked| asked != fitted);
            let cut = cut.map_or(String::new(), |asked| format!(" ({asked} asked for; never more than users)"));
            text += &format!("; {fitted} reward features{cut}, preference weights of {users} users");
        }
        if let Some(step) = fit.best_step {
            text += &format!("; the parameters of step {step} were best on dev and are kept");
        }
        format!("{text}\n{}", test.markdown(40))
    }
}

/// The base; its frozen states lie on disk where the settings ask for it.
fn base(config: &RewardConfig, inputs: &Inputs, compute: &Compute, run: &Run) -> Result<(Lm, Tokenizer)> {
    let (lm, tokenizer) = inputs.base_with_rows(compute)?;
    let lm = match config.frozen_states {
        Kept::Memory => lm,
        Kept::Disk => {
            let base = &run.identity().inputs[Artifact::Base.name()];
            lm.keeping_prefixes(run.beside("frozen-states"), format!("{base} {:?}", run.environment()))
        }
    };
    Ok((lm, tokenizer))
}

/// Users with votes of a split, in order.
fn users_of(votes: &[Vote], split: Split) -> Vec<String> {
    let ids: BTreeSet<&String> = votes.iter().filter(|v| v.split == split).map(|v| &v.user_id).collect();
    ids.into_iter().cloned().collect()
}

/// Predicts the votes of a split, writes the predictions, and says how good they are.
fn judge(
    config: &RewardConfig,
    model: &RewardModel,
    lm: &Lm,
    tokenizer: &Tokenizer,
    votes: &[Vote],
    split: Split,
    run: &Run,
) -> Result<Evaluation> {
    let mut bar = run::Progress::new(&format!("reward: scoring {}", split.name()), 0, 0);
    let scored = config.scored(split);
    let said = reward::predict(model, lm, tokenizer, votes, &scored, |done, all| bar.reach(done, all))?;
    eval::write_predictions(&run.path(&format!("predictions-{}.parquet", split.name())), &said.votes)?;
    if !said.swap.is_empty() {
        said.write_swap(&run.path(&format!("swap-{}.parquet", split.name())), &model.users)?;
    }
    Ok(eval::evaluate(&said, split.name(), &model.users, run.seed()))
}
