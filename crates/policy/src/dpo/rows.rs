//! The rows of DPO's pairs, and which pairs each user learns from in which batches.

use std::collections::{HashMap, HashSet};

use lm::{Plan, RowCounts, RowSet, TokenRow, UserIndex};
use problem::Result;
use run::Run;
use text::Tokenizer;

use crate::dpo::config::DpoConfig;
use crate::learners::only_planned;
use crate::maths::pair_losses::token_weights;
use crate::pairs::Pair;

/// A pair as rows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RowPair {
    /// (chosen, rejected), indices of rows.
    pub(crate) rows: (usize, usize),
    /// What it counts among the user's pairs.
    pub(crate) weight: f32,
}

/// What training walks through.
#[derive(Debug)]
pub(crate) struct Planned {
    /// The rows of all batches, each once.
    pub(crate) rows: Vec<TokenRow>,
    /// The pairs of all batches, each once.
    pub(crate) pairs: Vec<RowPair>,
    /// The batches of each user, as indices of `pairs`.
    pub(crate) plans: Vec<Plan>,
    /// Each user's pairs, those beyond the token budget too.
    pub(crate) own: Vec<usize>,
    /// Rows left out or changed.
    pub(crate) counts: RowCounts,
    /// What counts of a token beyond the length of the shorter response.
    pub(crate) ld_alpha: f32,
}

/// All pairs as rows, and the batches of every user but those `without` a start. The order is a stream that only the user's id and the epoch
/// decide. Rows that no batch holds, such as those beyond a user's token budget, are left out: nothing is computed for them.
///
/// # Errors
/// A row over the limit, if that is one.
pub(crate) fn planned(
    config: &DpoConfig,
    tokenizer: &Tokenizer,
    pairs: &[Pair],
    users: &[String],
    without: &[UserIndex],
    run: &Run,
) -> Result<Planned> {
    let mut set = RowSet::new(tokenizer, config.max_row_tokens, config.over_long);
    let (mut kept, mut owners): (Vec<RowPair>, Vec<&str>) = (Vec::new(), Vec::new());
    for (n, pair) in pairs.iter().enumerate() {
        let place = || format!("dpo, pair {} of user `{}`", n + 1, pair.user);
        let chosen = set.index(&pair.prompt, &pair.chosen.text, pair.chosen.ending(), place)?;
        let rejected = set.index(&pair.prompt, &pair.rejected.text, pair.rejected.ending(), place)?;
        if let Some(rows) = chosen.zip(rejected) {
            kept.push(RowPair { rows, weight: pair.weight });
            owners.push(&pair.user);
        }
    }
    let own = own_pairs(users, &owners);
    let without: HashSet<UserIndex> = without.iter().copied().collect();
    let tokens = |pair: usize| tokens_of(&set.rows, &kept[pair]);
    let plan_of = |user: UserIndex| {
        if without.contains(&user) {
            return Plan::default();
        }
        let rng = |epoch: usize| run.rng(&["order", &users[user.0], &epoch.to_string()]);
        let budget = config.token_budget_per_user;
        let mut plan = lm::plan(&own[user.0], config.batch_pairs, config.max_epochs, budget, tokens, rng);
        if let Some(steps) = config.user.get(&users[user.0]).and_then(|own| own.steps) {
            plan.batches.truncate(steps.get());
            plan.tokens = plan.batches.iter().flatten().map(|pair| tokens(*pair)).sum();
        }
        plan
    };
    let mut plans: Vec<Plan> = UserIndex::all(users.len()).map(plan_of).collect();
    let kept: Vec<RowPair> = only_planned(&mut plans, kept.len()).into_iter().map(|pair| kept[pair].clone()).collect();
    let (rows, pairs) = rows_of(set.rows, kept);
    let ld_alpha = config.ld_alpha.unwrap_or(1.0) as f32;
    Ok(Planned { rows, pairs, plans, own: own.iter().map(Vec::len).collect(), counts: set.counts, ld_alpha })
}

impl Planned {
    /// Tokens of the pair's two responses.
    pub(crate) fn answer_tokens(&self, pair: usize) -> [usize; 2] {
        let (chosen, rejected) = self.pairs[pair].rows;
        [chosen, rejected].map(|row| self.rows[row].answer_tokens())
    }

    /// Tokens of both rows.
    pub(crate) fn tokens(&self, pair: usize) -> usize {
        tokens_of(&self.rows, &self.pairs[pair])
    }

    /// What each token of the pair's two responses counts: 1 up to the shorter one's length, `ld_alpha` after it.
    pub(crate) fn weights(&self, pair: usize) -> [Vec<f32>; 2] {
        token_weights(self.answer_tokens(pair), self.ld_alpha)
    }
}

fn tokens_of(rows: &[TokenRow], pair: &RowPair) -> usize {
    rows[pair.rows.0].ids.len() + rows[pair.rows.1].ids.len()
}

/// The pairs of each user, in order, from the user of every pair.
fn own_pairs(users: &[String], owners: &[&str]) -> Vec<Vec<usize>> {
    let index: HashMap<&str, usize> = users.iter().enumerate().map(|(u, user)| (user.as_str(), u)).collect();
    let mut own = vec![Vec::new(); users.len()];
    for (pair, owner) in owners.iter().enumerate() {
        if let Some(user) = index.get(owner) {
            own[*user].push(pair);
        }
    }
    own
}

/// The rows of `pairs` alone, in their order; the pairs then count among these.
fn rows_of(rows: Vec<TokenRow>, mut pairs: Vec<RowPair>) -> (Vec<TokenRow>, Vec<RowPair>) {
    let mut place: Vec<Option<usize>> = vec![None; rows.len()];
    pairs.iter().flat_map(|p| [p.rows.0, p.rows.1]).for_each(|row| place[row] = Some(0));
    place.iter_mut().flatten().enumerate().for_each(|(new, place)| *place = new);
    for pair in &mut pairs {
        pair.rows = (place[pair.rows.0].unwrap_or(0), place[pair.rows.1].unwrap_or(0));
    }
    (rows.into_iter().zip(place).filter_map(|(row, place)| place.map(|_| row)).collect(), pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issue_22_a_hundred_thousand_users_are_dealt_their_pairs_in_one_pass() {
        let users: Vec<String> = (0..100_000).rev().map(|u| format!("user {u}")).collect();
        let owners: Vec<&str> = (0..4).flat_map(|_| users.iter().map(String::as_str)).chain(["eve"]).collect();
        let own = own_pairs(&users, &owners);
        let right = |(user, pairs): (usize, &Vec<usize>)| *pairs == [0, 1, 2, 3].map(|n| n * 100_000 + user);
        assert!(own.iter().enumerate().all(right));
    }

    #[test]
    fn issue_22_rows_that_no_batch_holds_are_left_out() {
        let row = |id: i64| TokenRow { ids: vec![1, id], answer_start: 1 };
        let rows: Vec<TokenRow> = (0..6).map(row).collect();
        let pair = |chosen, rejected| RowPair { rows: (chosen, rejected), weight: 1.0 };
        let (rows, pairs) = rows_of(rows, vec![pair(5, 2), pair(2, 0)]);
        assert_eq!(rows, [row(0), row(2), row(5)]);
        assert_eq!(pairs, [pair(2, 1), pair(1, 0)]);
    }
}
