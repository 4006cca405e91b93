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
    /// Each model's distinct responses, those beyond its token budget too.
    pub(crate) answers: Vec<usize>,
    /// Rows left out or changed.
    pub(crate) counts: RowCounts,
}

/// The chosen responses of the decided training votes as rows, and the batches of every model. The order is a stream that only the model's
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
    for vote in votes.iter().filter(|v| v.split == Split::Train && !v.tie) {
        let row = set.index(&vote.prompt, &vote.chosen, vote.chosen_ending(), || vote.source_row.clone())?;
        chosen.extend(row.map(|row| (vote.user_id.as_str(), row)));
    }
    let own = own_rows(config.scope, models, &chosen);
    let tokens_of = |row: usize| set.rows[row].ids.len();
    let plan_of = |(model, rows): (&String, &Vec<usize>)| {
        let rng = |epoch: usize| run.rng(&["order", model, &epoch.to_string()]);
        lm::plan(rows, config.batch_answers, config.max_epochs, config.token_budget, tokens_of, rng)
    };
    let mut plans: Vec<Plan> = models.iter().zip(&own).map(plan_of).collect();
    let kept = only_planned(&mut plans, set.rows.len());
    Ok(Planned {
        rows: kept.into_iter().map(|row| set.rows[row].clone()).collect(),
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

#[cfg(test)]
mod tests {
    use super::*;

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
