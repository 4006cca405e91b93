//! PPO for many users at once (Schulman et al. 2017, after the checklist of Huang et al. 2024), and RLOO and GRPO on the same rounds.
//!
//! A round: every user's policy responds to prompts of the user's; the user's reward model scores the responses; a token's reward is its
//! divergence from the reference times the KL coefficient, and the last token's also the score; a few clipped updates follow. Users share the
//! base, the batches and nothing else: each has factors, a critic, step counts, schedules and a KL coefficient of their own.
//!
//! Left out on purpose: an entropy bonus, one value head for all.

use lm::{Lm, UserIndex};
use problem::Result;
use run::{Progress, Run};
use text::{Message, Tokenizer};

use crate::learners::Learners;
use crate::model::{NO_START, Policies};
use crate::ppo::advantages::advantages;
use crate::ppo::ask::{ask, tokenised};
use crate::ppo::begin::begin;
use crate::ppo::config::PpoConfig;
use crate::ppo::models::Models;
use crate::ppo::observe::{observe, record, stop_unscored};
use crate::ppo::passes::{Round, Rows};
use crate::ppo::record::{PpoReport, RoundRecord, report, write_responses};
use crate::ppo::rollouts::roll_out;
use crate::ppo::scale::MaybeScale;
use crate::ppo::score::{Rewards, scales, score};
use crate::ppo::setup::{Setup, Turn};
use crate::ppo::update::update;

/// Trains a policy for every user in `users`, resuming where an earlier run stopped. All are asked all `prompts`. Writes
/// `rollouts.parquet` into the run's folder. A user whose numbers leave the finite ones, or whose policy goes too far, is put in quarantine, and
/// the others go on.
///
/// # Errors
/// Settings that mean nothing; prompts over the limit, if they are an error; rewards that cannot be computed; all users in quarantine.
pub fn train(
    config: &PpoConfig,
    lm: &Lm,
    tokenizer: &Tokenizer,
    prompts: &[Vec<Message>],
    users: &[String],
    start: Option<Policies>,
    rewards: &mut Rewards,
    run: &mut Run,
) -> Result<(Policies, PpoReport)> {
    config.check(users)?;
    let ((questions, prompts), rows) = tokenised(config, tokenizer, prompts)?;
    let setup = Setup::new(config, lm, tokenizer, users)?;
    let mut models = Models::new(config, lm, users, start, run)?;
    let reference = (models.reference.as_ref(), models.without.as_slice());
    let scales = scales(&setup, tokenizer, &questions, reference, rewards, run)?;
    let mut learners = Learners::<RoundRecord>::open(run, users.len(), &mut models.optimizers_mut())?;
    refuse(&models, &scales, &mut learners);

    let _phase = run::phase("training");
    let total = setup.own.iter().map(|own| own.steps).sum();
    let mut bar = Progress::new("ppo: rounds", total, learners.taken());
    while let Some(turn) = Turn::next(&setup, &learners) {
        let _step = run::step(learners.tick);
        let asks = ask(config, run, users, &turn.active, &turn.steps, &questions);
        let rolling_out = run::phase("roll out");
        let rollouts = roll_out(lm, tokenizer, Some(&models.bank), &asks, &setup.sampling, config.rollout_rows.get())?;
        drop(rolling_out);
        let scored = score(&setup, &models.bank, &scales, rollouts, rewards)?;
        stop_unscored(&scored, &turn.place, &mut learners.quarantine);

        let mut begun = begin(&setup, &models, &turn, &scored, run);
        let (advantages, returns) =
            advantages(config, &scored.rollouts, &begun.kl, &scored.scores, &turn.betas, &begun.values);
        let observed = observe(&setup, &turn, &scored, &begun, &returns, &mut learners.quarantine);

        let kept = std::mem::take(&mut begun.kept);
        let rows = Rows { rollouts: &scored.rollouts, prefix: &scored.prefix };
        let round = Round { rows, old: &begun.old, values: &begun.values, advantages: &advantages, returns: &returns };
        let updates = update(&setup, &mut models, &turn, &round, &begun.first, kept, &mut learners.quarantine, run)?;
        let score = record(&setup, &turn, observed, &updates, &mut learners, run)?;
        bar.advance(turn.active.len(), &format!("score {score:.3}"));

        learners.tick += 1;
        if learners.tick.is_multiple_of(config.save_every_steps.get()) && Turn::next(&setup, &learners).is_some() {
            learners.save(run, &models.optimizers())?;
        }
    }
    drop(bar);

    write_responses(run, &learners.past, &prompts, users)?;
    let policies = Policies::of_survivors("ppo", &models.bank, users, &learners.quarantine)?;
    Ok((policies, report(users, &learners.past, &learners.quarantine, &scales, questions.len(), rows)))
}

/// Puts users who cannot begin in quarantine.
fn refuse(models: &Models, scales: &[MaybeScale], learners: &mut Learners<RoundRecord>) {
    models.without.iter().for_each(|user| learners.quarantine.put(*user, NO_START));
    for (user, scale) in UserIndex::all(scales.len()).zip(scales) {
        if let Err(why) = scale {
            learners.quarantine.put(user, why.clone());
        }
    }
}
