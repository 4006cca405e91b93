//! What is seen of a round: for the log, for the report, and to stop users whose policies went too far.

use lm::{Quarantine, UserIndex};
use problem::Result;
use run::Run;
use serde_json::{Value, json};

use crate::learners::Learners;
use crate::ppo::begin::Begun;
use crate::ppo::passes::Seen;
use crate::ppo::record::{Response, RoundRecord};
use crate::ppo::rollouts::{Rollout, by_user};
use crate::ppo::score::Scored;
use crate::ppo::setup::{Setup, Turn};
use crate::ppo::update::Updates;

/// What is seen of a user before the round's updates.
#[derive(Debug)]
pub(crate) struct Observed {
    pub(crate) user: UserIndex,
    line: Value,
    /// None for a user in quarantine: what is kept is finite, since JSON knows no other numbers.
    record: Option<RoundRecord>,
}

/// Puts users with a score that is not finite in quarantine.
pub(crate) fn stop_unscored(scored: &Scored, place: &str, quarantine: &mut Quarantine) {
    for (rollout, score) in scored.rollouts.iter().zip(&scored.scores).filter(|(_, score)| !score.is_finite()) {
        quarantine.put(rollout.user, format!("{place}: a reward of {score}"));
    }
}

/// What is seen of every active user, with TRL's metrics; a user who is too far from the reference is put in quarantine.
pub(crate) fn observe(
    setup: &Setup,
    turn: &Turn,
    scored: &Scored,
    begun: &Begun,
    returns: &[Vec<f32>],
    quarantine: &mut Quarantine,
) -> Vec<Observed> {
    let Scored { rollouts, raw, scores, passes, .. } = scored;
    let Begun { kl, old, values, .. } = begun;
    let of_user = |(user, rows): (UserIndex, Vec<usize>)| {
        let n = rows.len() as f64;
        let mean = |f: &dyn Fn(usize) -> f64| rows.iter().map(|r| f(*r)).sum::<f64>() / n;
        let sum = |values: &[f32], r: usize| values[..rollouts[r].sampled].iter().map(|v| f64::from(*v)).sum::<f64>();
        let tokens: usize = rows.iter().map(|r| rollouts[*r].sampled).sum();
        let apart = |r: usize| -> f64 {
            let each = rollouts[r].logp.iter().zip(&old[r]).map(|(a, b)| f64::from((a - b).abs()));
            each.sum::<f64>() * n / tokens.max(1) as f64
        };
        let (score, divergence) = (mean(&|r| f64::from(scores[r])), mean(&|r| sum(&kl[r], r)));
        let (guarded, rollout_difference) = (rows.iter().filter(|r| !passes[**r]).count(), mean(&apart));
        if !divergence.is_finite() || setup.config.max_kl.is_some_and(|limit| divergence > limit) {
            quarantine.put(user, format!("{}: a divergence of {divergence:.1} nats per response", turn.place));
        }
        let beta = turn.betas[user.0];
        let non_score = -beta * divergence;
        let line = json!({
            "round": turn.steps[user.0], "objective/scores": score, "objective/kl": divergence,
            "objective/entropy": mean(&|r| -sum(&old[r], r)),
            "objective/non_score_reward": non_score, "objective/rlhf_reward": score + non_score,
            "objective/kl_coef": beta, "reward/raw": mean(&|r| f64::from(raw[r].0)),
            "reward/standard_error": mean(&|r| f64::from(raw[r].1)), "reward/guarded": guarded,
            "val/num_eos_tokens": rows.iter().filter(|r| rollouts[**r].finished).count(),
            "rollout/tokens": tokens as f64 / n, "rollout/logp_difference": rollout_difference,
            "val/explained_variance": explained(&rows, rollouts, values, returns),
        });
        let response = |r: &usize| Response {
            prompt: rollouts[*r].prompt,
            text: rollouts[*r].text.clone(),
            finished: rollouts[*r].finished,
            score: scores[*r],
            kl: kl[*r].iter().sum(),
        };
        let record = (!quarantine.holds(user)).then(|| RoundRecord {
            tokens,
            score,
            kl: divergence,
            guarded,
            rollout_difference,
            beta,
            responses: rows.iter().map(response).collect(),
            ..RoundRecord::default()
        });
        Observed { user, line, record }
    };
    by_user(rollouts).into_iter().map(of_user).collect()
}

/// Keeps the round of every user who was observed, logs it, and gives the mean score.
///
/// # Errors
/// A disk without room.
pub(crate) fn record(
    setup: &Setup,
    turn: &Turn,
    observed: Vec<Observed>,
    updates: &Updates,
    learners: &mut Learners<RoundRecord>,
    run: &mut Run,
) -> Result<f64> {
    let mut line = json!({"step": learners.tick});
    for Observed { user, line: mut of_user, record } in observed {
        let (own, step) = (&setup.own[user.0], turn.steps[user.0]);
        if let Some(seen) = updates.get(&user) {
            describe(&seen.policy, &seen.critic, &seen.norms, &mut of_user);
        }
        of_user["lr"] = json!(own.rate(step, setup.warmup()));
        if let Some(mut record) = record {
            record.tick = learners.tick;
            if !learners.quarantine.holds(user) {
                // While the critic alone learns there is no divergence that the weight could follow.
                if step >= setup.warmup() {
                    record.beta = own.control.next(record.beta, record.kl, record.responses.len());
                }
                let first = updates.get(&user).and_then(|seen| seen.policy.first());
                record.first_update_difference =
                    first.filter(|_| step == setup.warmup()).map_or(0.0, |first| first.moved);
            }
            learners.keep(user, record);
        }
        line[format!("user/{}", setup.users[user.0])] = of_user;
    }
    run.log(&line)?;
    let latest = |(_, user): (_, UserIndex)| learners.past[user.0].last().map_or(0.0, |round| round.score);
    Ok(turn.active.iter().map(latest).sum::<f64>() / turn.active.len() as f64)
}

/// Adds TRL's metrics of a round's updates to a user's line.
fn describe(policy: &[Seen], critic: &[Seen], norms: &[f64], line: &mut Value) {
    let mean = |all: &[Seen], f: fn(&Seen) -> f64| all.iter().map(f).sum::<f64>() / all.len() as f64;
    if !policy.is_empty() {
        let ratio = mean(policy, |s| s.ratio);
        line["loss/policy_avg"] = json!(mean(policy, |s| s.loss));
        line["policy/approxkl_avg"] = json!(mean(policy, |s| s.approx_kl));
        line["policy/clipfrac_avg"] = json!(mean(policy, |s| s.clipped));
        line["policy/entropy_avg"] = json!(mean(policy, |s| s.entropy));
        line["val/ratio"] = json!(ratio);
        line["val/ratio_var"] = json!(mean(policy, |s| s.ratio_square) - ratio * ratio);
        line["grad_norm"] = json!(norms.iter().sum::<f64>() / norms.len() as f64);
        line["updates"] = json!(policy.len());
    }
    if !critic.is_empty() {
        line["loss/value_avg"] = json!(mean(critic, |s| s.loss));
        line["val/clipfrac_avg"] = json!(mean(critic, |s| s.clipped));
    }
}

/// Share of the variance of a user's returns that the critic expected; none without a critic or variance.
fn explained(rows: &[usize], rollouts: &[Rollout], values: &[Vec<f32>], returns: &[Vec<f32>]) -> Option<f64> {
    let pairs: Vec<(f64, f64)> = rows
        .iter()
        .flat_map(|r| (0..rollouts[*r].sampled).map(move |t| (f64::from(returns[*r][t]), f64::from(values[*r][t]))))
        .collect();
    let variance = |all: &mut dyn Iterator<Item = f64>| {
        let all: Vec<f64> = all.collect();
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        all.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / all.len() as f64
    };
    let whole = variance(&mut pairs.iter().map(|p| p.0));
    (whole > 0.0).then(|| 1.0 - variance(&mut pairs.iter().map(|(r, v)| r - v)) / whole)
}
