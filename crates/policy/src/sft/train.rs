//! Supervised fine-tuning on what users prefer: raise the log-probability of the chosen responses, for all users or for each
//! user. The stage before DPO that a base without manners needs.
//!
//! Left out on purpose: packing, loss on the prompt.

use data::Vote;
use lm::{AdamW, Lm, Storage};
use problem::Result;
use run::{Progress, Run};
use text::Tokenizer;

use crate::learners::Learners;
use crate::model::{Personal, Policies, frozen_blocks, starting_bank};
use crate::sft::config::SftConfig;
use crate::sft::record::{SftReport, record, report};
use crate::sft::rows::planned;
use crate::sft::update::{Inputs, update};

const NO_BATCH: &str = "no batch of chosen responses within the token budget";

/// Fine-tunes on the chosen responses of the decided training votes, resuming where an earlier run stopped. A model whose numbers leave the
/// finite ones is put in quarantine, and the others go on.
///
/// # Errors
/// Settings that mean nothing; rows over the limit, if they are an error; all models in quarantine.
pub fn train(
    config: &SftConfig,
    lm: &Lm,
    tokenizer: &Tokenizer,
    votes: &[Vote],
    users: &[String],
    run: &mut Run,
) -> Result<(Policies, SftReport)> {
    let models = config.models(users);
    config.check(&models)?;
    let planned = planned(config, tokenizer, votes, &models, run)?;
    let plans = &planned.plans;
    let (bank, _) = starting_bank("sft", (&config.lora, Personal::Both), lm, &models, None, run)?;
    let count = models.len().try_into().expect("at least one model");
    let mut adam = AdamW::new(config.optimizer.clone(), bank.parameters(), count, &Storage::memory())?;
    let mut learners = Learners::open(run, models.len(), &mut [("adam", &mut adam)])?;
    learners.refuse_empty(plans, NO_BATCH);
    let prefix = frozen_blocks("sft", lm, &bank, planned.rows)?;
    let weights = &planned.weights;
    let inputs = Inputs { config, lm, bank: &bank, prefix: &prefix, plans, weights, models: &models };

    let _phase = run::phase("training");
    let steps = plans.iter().map(|plan| plan.batches.len()).max().unwrap_or(0);
    let mut bar = Progress::new("sft: training", steps, learners.tick);
    while let Some(turn) = learners.ask(plans, None) {
        let _step = run::step(learners.tick);
        let place = turn.place("sft", learners.tick, &models);
        match update(&inputs, &turn, &mut adam, &place, run)? {
            // Nothing was changed; the others take this step without that model.
            Err(fault) => learners.stop(&turn, fault),
            Ok(taken) => {
                let loss = record(&turn, &taken, &models, &mut learners, run)?;
                bar.advance(1, &format!("loss {loss:.3}"));
                learners.tick += 1;
                if learners.is_due(config.save_every_steps, plans) {
                    learners.save(run, &[("adam", &adam)])?;
                }
            }
        }
    }
    drop(bar);

    let policies = Policies::of_survivors("sft", &bank, &models, &learners.quarantine)?;
    Ok((policies, report(&models, plans, &planned.answers, &learners, (planned.counts, planned.without_weight))))
}
