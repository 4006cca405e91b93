//! Which rows each model learns from, and in which batches.

use std::collections::{HashMap, HashSet};

use data::{Split, Vote};
use lm::{Plan, RowCounts, RowSet, TokenRow};
use problem::Result;
use run::Run;
use text::Tokenizer;

use crate::learners::only_planned;
use crate::sft::config::{Scope, SftConfig};

/// What training walks through.
#[derive(Debug)]
pub(crate) struct Planned {
    /// The rows of all batches, each once.
    pub(crate) rows: Vec<TokenRow>,
    /// The batches of each model, as indices of `rows`.
    pub(crate) plans: Vec<Plan>,
    /// Of each model: what its rows count, by index of `rows`. The mean weight of a user's votes is 1.
    pub(crate) weights: Vec<HashMap<usize, f32>>,
    /// Each model's distinct responses, those beyond its token budget too.
    pub(crate) answers: Vec<usize>,
    /// Votes of weight 0, which count nothing.
    pub(crate) without_weight: usize,
    /// Rows left out or changed.
    pub(crate) counts: RowCounts,
}

/// The chosen responses of the decided training votes of a weight above 0 as rows, and the batches of every model. The order is a stream that only the model's
/// name and the epoch decide.
///
/// # Errors
/// A row over the limit, if that is one.
pub(crate) fn planned(
    config: &SftConfig,
    tokenizer: &Tokenizer,
    votes: &[Vote],
    models: &[String],
    run: &Run,
) -> Result<Planned> {
    let mut set = RowSet::new(tokenizer, config.max_row_tokens, config.over_long);
    let mut chosen = Vec::new(); // (user, row) of every vote
    let mut given = Vec::new(); // and the vote's weight
    let mut without_weight = 0;
    for vote in votes.iter().filter(|v| v.split == Split::Train && !v.tie) {
        if !vote.counts() {
            without_weight += 1;
            continue;
        }
        let row = set.index(&vote.prompt, &vote.chosen, vote.chosen_ending(), || vote.source_row.clone())?;
        chosen.extend(row.map(|row| (vote.user_id.as_str(), row)));
        given.extend(row.map(|_| vote.weight));
    }
    let own = own_rows(config.scope, models, &chosen);
    let by_row = own_weights(config.scope, models, &chosen, &given);
    let tokens_of = |row: usize| set.rows[row].ids.len();
    let plan_of = |(model, rows): (&String, &Vec<usize>)| {
        let rng = |epoch: usize| run.rng(&["order", model, &epoch.to_string()]);
        lm::plan(rows, config.batch_answers, config.max_epochs, config.token_budget, tokens_of, rng)
    };
    let mut plans: Vec<Plan> = models.iter().zip(&own).map(plan_of).collect();
    let kept = only_planned(&mut plans, set.rows.len());
    let weights = by_row.iter().map(|of| {
        let each = kept.iter().enumerate();
        each.filter_map(|(new, old)| of.get(old).map(|weight| (new, *weight))).collect()
    });
    Ok(Planned {
        weights: weights.collect(),
        without_weight,
        rows: kept.iter().map(|row| set.rows[*row].clone()).collect(),
        plans,
        answers: own.iter().map(Vec::len).collect(),
        counts: set.counts,
    })
}

/// The distinct rows of each of `models`, in the order of the votes, from the (user, row) of every vote.
fn own_rows(scope: Scope, models: &[String], chosen: &[(&str, usize)]) -> Vec<Vec<usize>> {
    let index: HashMap<&str, usize> = models.iter().enumerate().map(|(m, model)| (model.as_str(), m)).collect();
    let mut known: HashSet<(usize, usize)> = HashSet::new();
    let mut own = vec![Vec::new(); models.len()];
    for (user, row) in chosen {
        let model = match scope {
            Scope::Global => Some(0),
            Scope::PerUser => index.get(user).copied(),
        };
        if let Some(model) = model
            && known.insert((model, *row))
        {
            own[model].push(*row);
        }
    }
    own
}

/// What each row counts for each of `models`: the largest weight of the votes that chose it, relative to the mean of their user's votes.
fn own_weights(scope: Scope, models: &[String], chosen: &[(&str, usize)], given: &[f32]) -> Vec<HashMap<usize, f32>> {
    let index: HashMap<&str, usize> = models.iter().enumerate().map(|(m, model)| (model.as_str(), m)).collect();
    let users: Vec<&str> = chosen.iter().map(|(user, _)| *user).collect();
    let mut own = vec![HashMap::new(); models.len()];
    for ((user, row), weight) in chosen.iter().zip(stats::relative_weights(&users, given)) {
        let model = match scope {
            Scope::Global => Some(0),
            Scope::PerUser => index.get(user).copied(),
        };
        if let Some(model) = model {
            let most: &mut f32 = own[model].entry(*row).or_default();
            *most = most.max(weight);
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issue_23_rows_count_what_their_votes_weigh_beside_the_users_others() {
        let models = ["ann", "bob"].map(String::from);
        let chosen = [("ann", 3), ("bob", 3), ("ann", 1), ("ann", 3), ("eve", 2)];
        let own = own_weights(Scope::PerUser, &models, &chosen, &[1.0, 7.0, 4.0, 1.0, 5.0]);
        assert_eq!(own, [HashMap::from([(3, 0.5), (1, 2.0)]), HashMap::from([(3, 1.0)])]);
        let all = own_weights(Scope::Global, &["everyone".to_owned()], &chosen, &[1.0, 7.0, 4.0, 1.0, 5.0]);
        assert_eq!(all, [HashMap::from([(3, 1.0), (1, 2.0), (2, 1.0)])]);
    }

    #[test]
    fn a_model_learns_from_each_of_its_rows_once() {
        let models = ["ann", "bob"].map(String::from);
        let chosen = [("ann", 3), ("bob", 3), ("ann", 1), ("ann", 3), ("eve", 2)];
        assert_eq!(own_rows(Scope::PerUser, &models, &chosen), [vec![3, 1], vec![3]]);
        assert_eq!(own_rows(Scope::Global, &["everyone".to_owned()], &chosen), [vec![3, 1, 2]]);
    }

    #[test]
    fn issue_22_a_hundred_thousand_users_are_dealt_their_rows_in_one_pass() {
        // Users in reverse, so that a search for each vote's user would take the square of their number.
        let models: Vec<String> = (0..100_000).rev().map(|u| format!("user {u}")).collect();
        let chosen: Vec<(&str, usize)> = (0..5).flat_map(|n| models.iter().map(move |m| (m.as_str(), n % 3))).collect();
        let own = own_rows(Scope::PerUser, &models, &chosen);
        assert_eq!(own.len(), 100_000);
        assert!(own.iter().all(|rows| *rows == [0, 1, 2]));
        // One model with as many distinct rows.
        let chosen: Vec<(&str, usize)> = (0..400_000).map(|n| ("ann", n % 200_000)).collect();
        let own = own_rows(Scope::Global, &["everyone".to_owned()], &chosen);
        assert_eq!(own, [(0..200_000).collect::<Vec<_>>()]);
    }
}
