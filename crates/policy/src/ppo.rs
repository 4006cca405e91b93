//! PPO for many users at once (Schulman et al. 2017, after the checklist of Huang et al. 2024), and RLOO and GRPO on the same rounds.
//!
//! A round: every user's policy answers prompts of the user's; the user's reward model scores the answers; a token's reward is its
//! divergence from the reference, weighted, and the last token's also the score; a few clipped updates follow. Users share the base, the
//! batches and nothing else: each has factors, a critic, step counts, schedules and a weight of the divergence of their own.
//!
//! Left out on purpose: an entropy bonus, one value head for all.

use std::collections::BTreeMap;

use lm::{AdamW, Bank, BankConfig, Lm, Middle, Prefix, Sampling, ScalarHead, Sharing, Storage, Tensor, TokenRow};
use problem::Result;
use run::{Progress, Run};
use serde_json::json;
use tch::Kind;
use text::{Message, Tokenizer};

use crate::Policies;
use crate::model::{nobody_left, shared_rate, starting_bank};
use crate::ppo_config::{Own, PpoConfig, wrong};
use crate::ppo_plan::{minibatches, questions_of, seeds, tokenised};
use crate::ppo_record::{Learner, Past, PpoReport, Said, Standing, Updates, quarantine, report, write_said};
use crate::ppo_rewards::{Rewards, advantages, calibrate, explained, score};
use crate::ppo_update::{Ahead, Critic, Fault, Passes, Round, Rows, present_of};
use crate::rollouts::{Ask, Rollout, reference_logp, roll_out};

const STANDING: &str = "standing";

/// Trains a policy for every user in `users`, resuming where an earlier run stopped. All are asked all `prompts`. Writes
/// `rollouts.parquet` into the run's folder.
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
    let own: Vec<Own> = users.iter().map(|u| config.own(u)).collect::<Result<_>>()?;
    let ((questions, prompts), rows) = tokenised(config, tokenizer, prompts)?;
    let everyone: Vec<usize> = (0..users.len()).collect();

    let started = start.is_some();
    let bank = starting_bank("ppo", &config.lora, config.personal, lm, users, start, run)?;
    let reference = started.then(|| bank.present(&everyone)); // as it was
    let critic = config.critic().map(|_| new_critic(config, lm, users, run)).transpose()?;
    let count = users.len().try_into().expect("at least one user");
    let mut adam = AdamW::new(config.optimizer.clone(), bank.parameters(), count, &Storage::memory())?;
    let mut critic_adam = match (&critic, config.critic()) {
        (Some(Critic { bank, head }), Some(settings)) => {
            let parameters = bank.parameters().into_iter().chain(head.parameters()).collect();
            Some(AdamW::new(settings.optimizer.clone(), parameters, count, &Storage::memory())?)
        }
        _ => None,
    };
    let passes = Passes {
        lm,
        temperature: config.temperature,
        budget: config.micro_batch_tokens.get(),
        activations: config.activations,
    };
    let blocks = bank.first_block()..lm.depth();
    let sampling = Sampling {
        fixed_shapes: config.fixed_shapes,
        ..Sampling::at(config.temperature, config.max_new_tokens.get(), tokenizer.stop_ids().to_vec())
    };
    let scales = match run.finished_part("scales")? {
        Some(saved) => saved,
        None => {
            let scales = calibrate(config, lm, tokenizer, &questions, users, &sampling, rewards, run)?;
            run.save_part("scales", scales)?
        }
    };

    let fresh = |o: &Own| Learner { beta: o.control.start(), past: vec![], quarantined: None };
    let mut standing = Standing { tick: 0, learners: own.iter().map(fresh).collect(), first_update_difference: 0.0 };
    if let Some(saved) = run.finished_part::<Standing>(STANDING)? {
        standing = saved;
        for (name, adam) in [("policy", Some(&mut adam)), ("critic", critic_adam.as_mut())] {
            if let Some(adam) = adam {
                let path = run.state(&format!("{name}-{}.safetensors", standing.tick));
                adam.load_state(&mut lm::read_tensors(&path, tch::Device::Cpu, None)?)?;
            }
        }
    }
    run.rewind_log(standing.tick)?;
    let mut said: Vec<Said> = Vec::new(); // since the last checkpoint
    let mut parts: Vec<usize> = run.finished_part("parts")?.unwrap_or_default(); // ticks at which earlier ones were written
    parts.retain(|tick| *tick <= standing.tick);

    let total: usize = own.iter().map(|o| o.steps).sum();
    let done = standing.learners.iter().map(|l| l.past.len()).sum();
    let _phase = run::phase("training");
    let mut bar = Progress::new("ppo: rounds", total, done);
    loop {
        // The first users who are not through; a user's own round number decides all that is drawn.
        let busy = |u: &usize| {
            let Learner { past, quarantined, .. } = &standing.learners[*u];
            quarantined.is_none() && past.len() < own[*u].steps
        };
        let at_once = config.users_at_once.map_or(users.len(), std::num::NonZero::get);
        let active: Vec<usize> = everyone.iter().copied().filter(busy).take(at_once).collect();
        if active.is_empty() {
            break;
        }
        let steps: Vec<usize> = standing.learners.iter().map(|l| l.past.len()).collect();
        let _step = run::step(standing.tick);
        let place = format!("ppo, round {}", standing.tick);

        // Answers and scores.
        let asks: Vec<Ask> = active
            .iter()
            .flat_map(|u| {
                questions_of(config, run, &users[*u], steps[*u], &questions).into_iter().map(move |q| (*u, q))
            })
            .map(|(user, (turn, prompt))| Ask {
                user,
                prompt,
                turn,
                ids: questions[prompt].clone(),
                seeds: seeds(config, run, &users[user], turn),
            })
            .collect();
        let rolling_out = run::phase("roll out");
        let rollouts = roll_out(lm, tokenizer, Some(&bank), &asks, &sampling, config.rollout_rows.get())?;
        drop(rolling_out);
        let rows: Vec<TokenRow> = rollouts.iter().map(|r| r.row.clone()).collect();
        let prefix = Prefix::new(lm, rows, blocks.clone(), |_| ())?;
        let owners: Vec<(usize, usize)> = rollouts.iter().enumerate().map(|(row, r)| (row, r.user)).collect();
        let raw = rewards(&prefix, &owners)?;
        let passes_guard: Vec<bool> = rollouts.iter().map(|r| config.guard.passes(&r.text)).collect();
        let scores: Vec<f32> = (0..rollouts.len())
            .map(|r| score(config, scales[rollouts[r].user], raw[r], rollouts[r].finished, passes_guard[r]))
            .collect();
        for (r, score) in scores.iter().enumerate().filter(|(_, s)| !s.is_finite()) {
            quarantine(&mut standing.learners[rollouts[r].user], format!("{place}: a reward of {score}"));
        }

        // Reference, policy and critic as the round begins. The passes are those of the first updates.
        let logp_ref = reference_logp(lm, &prefix, &rollouts, reference.as_ref(), config.temperature, passes.budget);
        let warmup = config.critic().map_or(0, |c| c.warmup_steps);
        let trains = |u: usize| steps[u] >= warmup;
        let first = minibatches(config, run, users, &steps, &rollouts, 0);
        let mut old = vec![Vec::new(); rollouts.len()];
        let mut values: Vec<Vec<f32>> = rollouts.iter().map(|r| vec![0.0; r.row.answer_tokens()]).collect();
        let of = Rows { rollouts: &rollouts, prefix: &prefix };
        let mut ahead = (None, None); // passes of the first update, of the policies and of the critics
        for (number, rows) in first.iter().enumerate() {
            let (now, later): (Vec<usize>, Vec<usize>) = rows.iter().partition(|r| trains(rollouts[**r].user));
            let keep = number == 0;
            passes.begin(&bank, of, &later, false, &mut old);
            let of_policy = passes.begin(&bank, of, &now, keep, &mut old);
            let of_critic = critic.as_ref().and_then(|critic| passes.begin(critic, of, rows, keep, &mut values));
            if keep {
                ahead = (of_policy, of_critic);
            }
        }
        let kl: Vec<Vec<f32>> = (0..rollouts.len())
            .map(|r| {
                let token = |t: usize| config.kl.estimator.of(old[r][t], logp_ref[r][t]);
                (0..rollouts[r].sampled).map(token).collect()
            })
            .collect();

        // What was better than expected.
        let betas: Vec<f64> = standing.learners.iter().map(|l| l.beta).collect();
        let (advantages, returns) = advantages(config, &rollouts, &kl, &scores, &betas, &values);
        let mut lines: BTreeMap<usize, serde_json::Value> = BTreeMap::new();
        for u in &active {
            let of_user: Vec<usize> = (0..rollouts.len()).filter(|r| rollouts[*r].user == *u).collect();
            let n = of_user.len() as f64;
            let mean = |f: &dyn Fn(usize) -> f64| of_user.iter().map(|r| f(*r)).sum::<f64>() / n;
            let sum =
                |values: &[f32], r: usize| values[..rollouts[r].sampled].iter().map(|v| f64::from(*v)).sum::<f64>();
            let tokens: usize = of_user.iter().map(|r| rollouts[*r].sampled).sum();
            let apart = |r: usize| -> f64 {
                let each = rollouts[r].logp.iter().zip(&old[r]).map(|(a, b)| f64::from((a - b).abs()));
                each.sum::<f64>() * n / tokens.max(1) as f64
            };
            let past = Past {
                episodes: of_user.len(),
                tokens,
                score: mean(&|r| f64::from(scores[r])),
                kl: mean(&|r| sum(&kl[r], r)),
                guarded: of_user.iter().filter(|r| !passes_guard[**r]).count(),
                rollout_difference: mean(&apart),
            };
            if !past.kl.is_finite() || config.max_kl.is_some_and(|limit| past.kl > limit) {
                let what = format!("{place}: a divergence of {:.1} nats an answer", past.kl);
                quarantine(&mut standing.learners[*u], what);
            }
            let entropy = mean(&|r| -sum(&old[r], r));
            let non_score = -betas[*u] * past.kl;
            lines.insert(*u, json!({
                "round": steps[*u], "objective/scores": past.score, "objective/kl": past.kl, "objective/entropy": entropy,
                "objective/non_score_reward": non_score, "objective/rlhf_reward": past.score + non_score,
                "objective/kl_coef": betas[*u], "reward/raw": mean(&|r| f64::from(raw[r].0)),
                "reward/standard_error": mean(&|r| f64::from(raw[r].1)), "reward/guarded": past.guarded,
                "val/num_eos_tokens": of_user.iter().filter(|r| rollouts[**r].finished).count(),
                "rollout/tokens": tokens as f64 / n, "rollout/logp_difference": past.rollout_difference,
                "val/explained_variance": explained(&of_user, &rollouts, &values, &returns),
            }));
            // What is kept is finite: JSON knows no other numbers.
            if standing.learners[*u].quarantined.is_none() {
                standing.learners[*u].past.push(past);
            }
        }
        let healthy = |r: &Rollout| standing.learners[r.user].quarantined.is_none();
        for (r, rollout) in rollouts.iter().enumerate().filter(|(_, r)| healthy(r)) {
            said.push(Said {
                user: rollout.user,
                step: steps[rollout.user],
                prompt: rollout.prompt,
                text: rollout.text.clone(),
                finished: rollout.finished,
                score: scores[r],
                kl: kl[r].iter().sum(),
            });
        }

        // Updates.
        let round = Round { rollouts, prefix, old, values, advantages, returns };
        let mut through: Vec<usize> = Vec::new(); // users whose round has moved far enough
        let mut updates: BTreeMap<usize, Updates> = BTreeMap::new();
        for epoch in 0..config.epochs.get() {
            let batches = match epoch {
                0 => first.clone(),
                _ => minibatches(config, run, users, &steps, &round.rollouts, epoch),
            };
            for (number, rows) in batches.iter().enumerate() {
                loop {
                    let learners = &standing.learners;
                    let here = |r: &usize| {
                        let user = round.rollouts[*r].user;
                        learners[user].quarantined.is_none() && !through.contains(&user)
                    };
                    let rows: Vec<usize> = rows.iter().copied().filter(here).collect();
                    let of_policy: Vec<usize> =
                        rows.iter().copied().filter(|r| trains(round.rollouts[*r].user)).collect();
                    let inputs = Inputs {
                        config,
                        passes: &passes,
                        own: &own,
                        steps: &steps,
                        bank: &bank,
                        critic: critic.as_ref(),
                        place: &place,
                    };
                    let critic_adam = critic_adam.as_mut();
                    let ahead = std::mem::take(&mut ahead);
                    let fault =
                        update(&inputs, &round, &rows, &of_policy, ahead, &mut adam, critic_adam, &mut updates)?;
                    match fault {
                        None => break,
                        Some(Fault { user, what }) => {
                            quarantine(&mut standing.learners[user], format!("{place}: {what} is not finite"));
                        }
                    }
                }
                for (user, seen) in &updates {
                    let last = seen.policy.last().copied().unwrap_or_default();
                    // The round in which the user's policy learns for the first time.
                    if epoch == 0 && number == 0 && steps[*user] == warmup {
                        standing.first_update_difference = standing.first_update_difference.max(last.moved);
                    }
                    if config.kl_stop.is_some_and(|limit| last.approx_kl > limit) && !through.contains(user) {
                        through.push(*user);
                    }
                }
            }
        }
        if standing.first_update_difference > 0.1 {
            let hint = "train in float32 (--dtype float32); please report this";
            let found = standing.first_update_difference;
            return Err(wrong("the first update", "the log-probabilities of the round's beginning", found, hint));
        }

        let mut line = json!({"step": standing.tick});
        for (u, mut of_user) in lines {
            let learner = &mut standing.learners[u];
            if let Some(updates) = updates.get(&u) {
                updates.describe(&mut of_user);
            }
            of_user["lr"] = json!(own[u].optimizer.rate(steps[u], own[u].steps));
            if let (None, Some(past)) = (&learner.quarantined, learner.past.last()) {
                learner.beta = own[u].control.next(learner.beta, past.kl, past.episodes);
            }
            line[format!("user/{}", users[u])] = of_user;
        }
        run.log(&line)?;
        standing.tick += 1;
        let latest = |u: &usize| standing.learners[*u].past.last().map_or(0.0, |p| p.score);
        let mean = active.iter().map(latest).sum::<f64>() / active.len() as f64;
        bar.advance(active.len(), &format!("score {mean:.3}"));
        let left = |u: &usize| standing.learners[*u].past.len() < own[*u].steps;
        if standing.tick.is_multiple_of(config.save_every_steps.get()) && everyone.iter().any(left) {
            let tick = standing.tick;
            for (name, adam) in [("policy", Some(&adam)), ("critic", critic_adam.as_ref())] {
                if let Some(adam) = adam {
                    lm::write_tensors(&run.state(&format!("{name}-{tick}.safetensors")), &adam.state(), None)?;
                }
            }
            parts.push(tick);
            run::write_json(&run.state(&format!("said-{tick}.json")), &std::mem::take(&mut said))?;
            run::write_json(&run.state("parts.json"), &parts)?;
            standing = run.save_part(STANDING, standing)?;
            for earlier in parts.iter().filter(|t| **t < tick) {
                for name in ["policy", "critic"] {
                    let path = run.state(&format!("{name}-{earlier}.safetensors"));
                    if path.exists() {
                        fs_err::remove_file(path)?;
                    }
                }
            }
        }
    }
    drop(bar);

    let mut all: Vec<Said> = Vec::new();
    for tick in parts {
        all.extend(run::read_json::<Vec<Said>>(&run.state(&format!("said-{tick}.json")))?);
    }
    all.extend(said);
    write_said(run, &all, &prompts, users)?;
    let report = report(&standing, &scales, users, questions.len(), rows);
    let healthy: Vec<usize> =
        everyone.iter().copied().filter(|u| standing.learners[*u].quarantined.is_none()).collect();
    if healthy.is_empty() {
        return Err(nobody_left("ppo", &report.quarantined));
    }
    let names = healthy.iter().map(|u| users[*u].clone()).collect();
    Ok((Policies { bank: bank.present(&healthy), users: names }, report))
}

/// What updates of a round read.
struct Inputs<'a> {
    config: &'a PpoConfig,
    passes: &'a Passes<'a>,
    own: &'a [Own],
    steps: &'a [usize], // each user's round
    bank: &'a Bank,
    critic: Option<&'a Critic>,
    place: &'a str,
}

/// One update of the policies and critics of all users who have rows in it; or nothing, and who must leave it first.
fn update<'a>(
    inputs: &Inputs<'a>,
    round: &Round,
    rows: &[usize],
    of_policy: &[usize],
    ahead: (Option<Ahead<'a, Bank>>, Option<Ahead<'a, Critic>>),
    adam: &mut AdamW,
    critic_adam: Option<&mut AdamW>,
    updates: &mut BTreeMap<usize, Updates>,
) -> Result<Option<Fault>> {
    let Inputs { config, passes, own, steps, bank, critic, place } = *inputs;
    let [trained, valued] = [of_policy, rows].map(|rows| present_of(&round.rollouts, rows));
    let finite = |norms: &[f64], users: &[usize], what: &str| {
        let at = norms.iter().position(|n| !n.is_finite())?;
        Some(Fault { user: users[at], what: what.into() })
    };
    let mut of_actor = None;
    if !trained.is_empty() {
        match passes.policy(bank, round, of_policy, config.clip, ahead.0, place)? {
            Err(fault) => return Ok(Some(fault)),
            Ok((gradients, seen)) => {
                let norms = adam.norms(&gradients, trained.len())?;
                if let Some(fault) = finite(&norms.users, &trained, "the policy's gradient") {
                    return Ok(Some(fault));
                }
                of_actor = Some((gradients, seen));
            }
        }
    }
    if let (Some(critic), Some(critic_adam), Some(settings)) = (critic, critic_adam, config.critic())
        && !valued.is_empty()
    {
        match passes.critic(critic, round, rows, settings.value_clip, ahead.1, place)? {
            Err(fault) => return Ok(Some(fault)),
            Ok((gradients, seen)) => {
                let norms = critic_adam.norms(&gradients, valued.len())?;
                if let Some(fault) = finite(&norms.users, &valued, "the critic's gradient") {
                    return Ok(Some(fault));
                }
                let rates: Vec<(usize, f64)> =
                    valued.iter().map(|u| (*u, settings.optimizer.rate(steps[*u], own[*u].steps))).collect();
                critic_adam.step(&gradients, 0.0, &rates, place)?;
                for (u, seen) in valued.iter().zip(seen) {
                    updates.entry(*u).or_default().critic.push(seen);
                }
            }
        }
    }
    if let Some((gradients, seen)) = of_actor {
        let rates: Vec<(usize, f64)> =
            trained.iter().map(|u| (*u, own[*u].optimizer.rate(steps[*u], own[*u].steps))).collect();
        let norms = adam.step(&gradients, shared_rate(&rates), &rates, place)?;
        for ((u, seen), norm) in trained.iter().zip(seen).zip(norms.users) {
            let of_user = updates.entry(*u).or_default();
            of_user.policy.push(seen);
            of_user.norms.push(norm);
        }
    }
    Ok(None)
}

fn new_critic(config: &PpoConfig, lm: &Lm, users: &[String], run: &Run) -> Result<Critic> {
    let (down, up) = (Sharing::Personal, Sharing::Personal);
    let shape = BankConfig { lora: config.lora.clone(), down, up, middle: Middle::None, users: users.len() };
    let bank = Bank::new(&shape, lm, users, &Storage::memory(), |name| run.rng(&["critic", name]))?;
    let zero = Tensor::zeros([users.len() as i64, lm.shape.hidden_size], (Kind::Float, lm.device));
    Ok(Critic { bank, head: ScalarHead::from_weight(&zero, Sharing::Personal) })
}
