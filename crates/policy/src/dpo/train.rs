//! DPO for many users at once: raise the chosen response's log-probability over the rejected one's, measured against the
//! frozen base. Rafailov et al. 2023, eq. 7, and its kin ([`crate::PairLoss`]).

use lm::{AdamW, Lm, Storage, UserIndex};
use problem::Result;
use run::{Progress, Run};
use text::Tokenizer;

use crate::dpo::config::DpoConfig;
use crate::dpo::record::{DpoReport, record, report};
use crate::dpo::reference::reference;
use crate::dpo::rows::planned;
use crate::dpo::update::{Inputs, update};
use crate::learners::Learners;
use crate::model::{NO_START, Policies, frozen_blocks, starting_bank};
use crate::pairs::Pair;

const NO_BATCH: &str = "no batch of pairs within the token budget";

/// Trains a policy for every user in `users`, side by side, resuming where an earlier run stopped. A user whose numbers leave the finite ones
/// is put in quarantine, and the others go on.
///
/// # Errors
/// Settings that mean nothing; rows over the limit, if they are an error; all users in quarantine.
pub fn train(
    config: &DpoConfig,
    lm: &Lm,
    tokenizer: &Tokenizer,
    pairs: &[Pair],
    users: &[String],
    start: Option<Policies>,
    run: &mut Run,
) -> Result<(Policies, DpoReport)> {
    config.check(users)?;
    let started = start.is_some();
    let (bank, without) = starting_bank("dpo", (&config.lora, config.personal), lm, users, start, run)?;
    let planned = planned(config, tokenizer, pairs, users, &without, run)?;
    let plans = &planned.plans;
    let prefix = frozen_blocks("dpo", lm, &bank, planned.rows.clone())?;
    let reference = reference(config, lm, &prefix, &planned, started.then_some(&bank), run)?;
    let count = users.len().try_into().expect("at least one user");
    let mut adam = AdamW::new(config.optimizer.clone(), bank.parameters(), count, &Storage::memory())?;
    let mut learners = Learners::open(run, users.len(), &mut [("adam", &mut adam)])?;
    without.iter().for_each(|user| learners.quarantine.put(*user, NO_START));
    for (user, (own, without_weight)) in
        UserIndex::all(users.len()).zip(planned.own.iter().zip(&planned.without_weight))
    {
        if *own == 0 && *without_weight > 0 {
            learners.quarantine.put(user, format!("all {without_weight} of the user's pairs weigh 0"));
        }
    }
    learners.refuse_empty(plans, NO_BATCH);
    let inputs = Inputs { config, lm, bank: &bank, prefix: &prefix, planned: &planned, reference: &reference, users };

    let _phase = run::phase("training");
    let total = plans.iter().map(|plan| plan.batches.len()).sum();
    let mut bar = Progress::new("dpo: steps of users", total, learners.taken());
    while let Some(turn) = learners.ask(plans, config.users_at_once) {
        let _step = run::step(learners.tick);
        let place = turn.place("dpo", learners.tick, users);
        match update(&inputs, &turn, &mut adam, &place, run)? {
            // Nothing was changed; the others take this step without that user.
            Err(fault) => learners.stop(&turn, fault),
            Ok(taken) => {
                let loss = record(&turn, &taken, users, &mut learners, run)?;
                bar.advance(turn.present.len(), &format!("loss {loss:.3}"));
                learners.tick += 1;
                if learners.is_due(config.save_every_steps, plans) {
                    learners.save(run, &[("adam", &adam)])?;
                }
            }
        }
    }
    drop(bar);

    let policies = Policies::of_survivors("dpo", &bank, users, &learners.quarantine)?;
    Ok((policies, report(users, &planned, &learners)))
}
