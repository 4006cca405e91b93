//! The stage `ppo`: reward models, any of ours, as what policies are trained against.

use std::collections::BTreeMap;

use device::Compute;
use lm::{Lm, Prefix};
use policy::Whose;
use problem::{Result, mistake};
use reward::{Errors, RewardModel};
use run::Run;
use serde_json::{Value, json};

use crate::base;
use crate::combine::{BASIS, combined, feature_name};
use crate::pairs_stage::training_prompts;
use crate::served::{decided_votes, people_of};
use crate::stages::Inputs;

pub(crate) fn execute(
    config: &policy::PpoConfig,
    inputs: &Inputs,
    compute: &Compute,
    run: &mut Run,
) -> Result<(Value, String)> {
    let (lm, tokenizer) = base::load(&inputs["import"], compute)?;
    let model = RewardModel::read(&inputs["reward"].join("reward.safetensors"), &lm)?;
    let people = people_of(&inputs["reward"])?;
    let votes = data::read_votes(&inputs["data"].join("votes.parquet"))?;
    let prompts = training_prompts(&votes);
    let users = match (config.whose, model.head.features.as_ref()) {
        (Whose::Users, _) => model.users.clone(),
        (Whose::Features(_), Some(features)) if people.is_some() => {
            (1..=features.size()[0] as usize).map(feature_name).collect()
        }
        (Whose::Features(_), _) => {
            let message = "ppo, `whose`: expected a reward model with at least two reward features, found one without";
            return Err(mistake(message, "fit it with `variant = \"rfm\"`, or leave `whose` out"));
        }
    };
    let start = match config.start {
        policy::Start::Base => None,
        policy::Start::Sft => Some(policy::Policies::read(&inputs["sft"].join("policies.safetensors"), &lm)?),
    };
    let wanted = config.reward.caution != 0.0;
    let errors = Errors::of(wanted, &model, people.as_ref(), decided_votes(&inputs["reward"], &model)?)?;
    let mut rewards = |prefix: &Prefix, asked: &[(usize, usize)]| match config.whose {
        Whose::Users => scores(&lm, &model, &errors, prefix, asked),
        Whose::Features(_) => features(&lm, &model, prefix, asked),
    };
    let (mut policies, report) =
        policy::train_ppo(config, &lm, &tokenizer, &prompts, &users, start, &mut rewards, run)?;
    run::write_json(&run.path("report.json"), &report)?;
    if let (Whose::Features(how), Some(people)) = (config.whose, &people) {
        // What was said in training is the features'; the stages behind ask for users'.
        policies.write(&run.path(BASIS))?;
        fs_err::rename(run.path("rollouts.parquet"), run.path("basis-rollouts.parquet"))?;
        let (users, weights) = combined(&policies, &report, &people.tastes, how, &lm)?;
        run::write_json(&run.path("weights.json"), &weights)?;
        policies = users;
    }
    policies.write(&run.path("policies.safetensors"))?;
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
    if let Whose::Features(_) = config.whose {
        text += &format!(
            "\n{} policies of rank {} from those of {} features, without training",
            policies.users.len(),
            policies.bank.config().lora.rank,
            users.len()
        );
    }
    for (user, why) in &report.quarantined {
        text += &format!("\nquarantined: {user}: {why}");
    }
    Ok((json!(report), text))
}

/// Reward features of (row, feature); nobody's votes stand behind them, and no error.
fn features(
    lm: &Lm,
    model: &RewardModel,
    prefix: &Prefix,
    asked: &[(usize, usize)],
) -> problem::Result<Vec<(f32, f32)>> {
    let prefix = prefix.moved(lm, model.bank.first_block()..model.depth)?;
    let all: Vec<usize> = (0..prefix.rows().len()).collect();
    let features = model.features(lm, &prefix, &all).expect("a head with features");
    Ok(asked.iter().map(|(row, feature)| (features[*row][*feature], 0.0)).collect())
}

/// Rewards of (row, user), each user's rows together.
fn scores(
    lm: &Lm,
    model: &RewardModel,
    errors: &Errors,
    prefix: &Prefix,
    asked: &[(usize, usize)],
) -> problem::Result<Vec<(f32, f32)>> {
    let prefix = prefix.moved(lm, model.bank.first_block()..model.depth)?;
    let mut places: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    asked.iter().enumerate().for_each(|(place, (_, user))| places.entry(*user).or_default().push(place));
    let mut out = vec![(0.0, 0.0); asked.len()];
    for (user, places) in places {
        let rows: Vec<usize> = places.iter().map(|p| asked[*p].0).collect();
        let scored = errors.rated(lm, model, &prefix, &rows, user)?;
        places.into_iter().zip(scored).for_each(|(place, score)| out[place] = score);
    }
    Ok(out)
}
