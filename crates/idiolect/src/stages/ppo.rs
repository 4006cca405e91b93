//! The stage `ppo`: reward models, any of ours, as what policies are trained against.

use std::collections::BTreeMap;

use device::Compute;
use lm::{Lm, Prefix, UserIndex};
use policy::{Method, Policies, PpoConfig, PpoReport, Start, Whose};
use problem::{Result, mistake};
use reward::{Errors, People, RewardModel};
use run::Run;
use serde::Serialize;

use super::artifact::POLICIES;
use super::stage::{as_table, stopped_before};
use super::budget::{Budget, Sizes, product};
use super::pairs::training_prompts;
use super::{Artifact, Inputs, Stage};
use crate::combined::{BASIS, combined, feature_name};
use crate::served::{decided_votes, people_of};

/// What was trained.
#[derive(Debug, Serialize)]
pub(crate) struct Trained {
    #[serde(flatten)]
    report: PpoReport,
    /// Users whose training an earlier stage stopped, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    quarantined_before: BTreeMap<String, String>,
    /// Where policies of users were made from policies of reward features: users, rank of their adapters, features.
    #[serde(skip)]
    combined: Option<(usize, usize, usize)>,
}

impl Stage for PpoConfig {
    const KIND: &'static str = "ppo";
    const FORMAT: u32 = 8;
    const WITHOUT_EFFECT: &'static [&'static str] = &["save_every_steps"];
    const LAST_BITS: &'static [&'static str] = &["micro_batch_tokens", "activations", "rollout_rows", "fixed_shapes"];
    type Report = Trained;

    fn defaults(_: &toml::Table) -> toml::Table {
        as_table(&Self::default())
    }

    fn check(&self) -> Result<()> {
        // Which users there are is known when training begins.
        let named: Vec<String> = self.user.keys().cloned().chain(["a user".to_owned()]).collect();
        PpoConfig::check(self, &named)
    }

    fn reads(&self) -> Vec<Artifact> {
        let mut all = vec![Artifact::Base, Artifact::Votes, Artifact::RewardModel];
        all.extend((self.start == Start::Sft).then_some(Artifact::SftPolicies));
        all
    }

    fn provides(&self) -> Vec<Artifact> {
        vec![Artifact::Policies]
    }

    fn budget(&self, sizes: &Sizes) -> Budget {
        let answers = [self.steps.get(), self.prompts_per_step.get(), self.samples_per_prompt.get(), sizes.users];
        let rows = product(&answers);
        let prompts = sizes.prompts.as_ref().map_or(sizes.training_prompts, |p| p.train.len());
        let scale = product(&[prompts, self.reward.calibration_samples_per_prompt.get()]);
        // Policy and critic.
        let networks = if matches!(self.method, Method::Ppo(_)) { 2 } else { 1 };
        let trained = product(&[rows, self.max_row_tokens, self.epochs.get(), networks]);
        let sampled = product(&[rows.saturating_add(scale), self.max_new_tokens.get()]);
        Budget { sampled, ..Budget::training(trained, &self.lora.blocks, sizes) }
    }

    fn execute(&self, inputs: &Inputs, compute: &Compute, run: &mut Run) -> Result<Trained> {
        let (lm, tokenizer) = inputs.base(compute)?;
        let model = inputs.reward_model(&lm)?;
        let folder = inputs.folder(Artifact::RewardModel)?;
        let people = people_of(folder)?;
        let prompts = training_prompts(&inputs.votes()?);
        let learners = learners(self.whose, &model, people.as_ref())?;
        let start = inputs.start(self.start, &lm)?;
        let wanted = self.reward.caution != 0.0;
        let errors = Errors::of(wanted, &model, people.as_ref(), decided_votes(folder, &model)?)?;
        let mut rewards = |prefix: &Prefix, asked: &[(usize, UserIndex)]| match self.whose {
            Whose::Users => scores(&lm, &model, &errors, prefix, asked),
            Whose::Features(_) => features(&lm, &model, prefix, asked),
        };
        let quarantined_before = stopped_before(folder)?;
        // Settings of a user whom an earlier stage stopped are no mistake.
        let mut own = self.clone();
        own.user.retain(|user, _| !quarantined_before.contains_key(user));
        let (policies, report) =
            policy::train_ppo(&own, &lm, &tokenizer, &prompts, &learners, start, &mut rewards, run)?;
        let (policies, combined) = match (self.whose, &people) {
            (Whose::Features(how), Some(people)) => {
                let users = of_features(&policies, &report, people, how, &lm, run)?;
                let made = (users.users.len(), users.bank.config().lora.rank.get(), learners.len());
                (users, Some(made))
            }
            _ => (policies, None),
        };
        policies.write(&run.path(POLICIES))?;
        let trained = Trained { report, quarantined_before, combined };
        run::write_json(&run.path("report.json"), &trained)?;
        Ok(trained)
    }

    fn text(trained: &Trained) -> String {
        let report = &trained.report;
        let each = report.users.iter().map(|(user, r)| {
            format!(
                "{user}: {} rounds, {} answers, score {:.2} to {:.2}, KL {:.2} nats an answer, {} guarded",
                r.steps, r.episodes, r.first_score, r.final_score, r.final_kl, r.guarded
            )
        });
        let mut text = format!(
            "{} tokens sampled; {}; decoder and training pass differ by {:.1e} of a log-probability on average; prompts {}, {}",
            report.tokens,
            each.collect::<Vec<_>>().join("; "),
            report.rollout_difference,
            report.prompts,
            report.rows
        );
        if let Some((users, rank, features)) = trained.combined {
            text += &format!("\n{users} policies of rank {rank} from those of {features} features, without training");
        }
        text
    }
}

/// Whose policies are trained: users, or reward features.
fn learners(whose: Whose, model: &RewardModel, people: Option<&People>) -> Result<Vec<String>> {
    match (whose, model.head.features.as_ref()) {
        (Whose::Users, _) => Ok(model.users.clone()),
        (Whose::Features(_), Some(features)) if people.is_some() => {
            Ok((1..=features.size()[0] as usize).map(feature_name).collect())
        }
        (Whose::Features(_), _) => {
            let message = "ppo, `whose`: expected a reward model with at least two reward features, found one without";
            Err(mistake(message, "fit it with `variant = \"rfm\"`, or leave `whose` out"))
        }
    }
}

/// Users' policies as sums of those of reward features, which are kept with the responses that their training sampled.
fn of_features(
    basis: &Policies,
    report: &PpoReport,
    people: &People,
    how: policy::Combination,
    lm: &Lm,
    run: &Run,
) -> Result<Policies> {
    basis.write(&run.path(BASIS))?;
    fs_err::rename(run.path("rollouts.parquet"), run.path("basis-rollouts.parquet"))?;
    let (users, weights) = combined(basis, report, &people.tastes, how, lm)?;
    run::write_json(&run.path("weights.json"), &weights)?;
    Ok(users)
}

/// Reward features of (row, feature); they have no user, and no standard error.
fn features(
    lm: &Lm,
    model: &RewardModel,
    prefix: &Prefix,
    asked: &[(usize, UserIndex)],
) -> Result<Vec<(f32, f32)>> {
    let prefix = prefix.moved(lm, model.bank.first_block()..model.depth)?;
    let all: Vec<usize> = (0..prefix.rows().len()).collect();
    let features = model.features(lm, &prefix, &all).expect("a head with features");
    Ok(asked.iter().map(|(row, feature)| (features[*row][feature.0], 0.0)).collect())
}

/// Rewards of (row, user), each user's rows together.
fn scores(
    lm: &Lm,
    model: &RewardModel,
    errors: &Errors,
    prefix: &Prefix,
    asked: &[(usize, UserIndex)],
) -> Result<Vec<(f32, f32)>> {
    let prefix = prefix.moved(lm, model.bank.first_block()..model.depth)?;
    let mut numbers: BTreeMap<UserIndex, Vec<usize>> = BTreeMap::new();
    asked.iter().enumerate().for_each(|(n, (_, user))| numbers.entry(*user).or_default().push(n));
    let mut out = vec![(0.0, 0.0); asked.len()];
    for (user, numbers) in numbers {
        let rows: Vec<usize> = numbers.iter().map(|n| asked[*n].0).collect();
        let scored = errors.rated(lm, model, &prefix, &rows, user)?;
        numbers.into_iter().zip(scored).for_each(|(n, score)| out[n] = score);
    }
    Ok(out)
}
