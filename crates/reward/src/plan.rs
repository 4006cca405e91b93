//! What a fit trains on: the votes of a split, their texts, and which of them each step takes.

use std::collections::{BTreeMap, BTreeSet};

use data::{Split, Vote};
use lm::{Lm, Prefix, UserIndex};
use problem::{Result, invalid};
use run::{Progress, Run};
use text::Tokenizer;

use crate::config::{Phase, RewardConfig};
use crate::model::RewardModel;
use crate::objective::Ties;
use crate::schedule::Steps;
use crate::texts::Texts;

/// The votes of a fit and the order in which they are taken.
pub(crate) struct Plan<'a> {
    /// Ids of the users who are fitted, sorted.
    pub(crate) users: &'a [String],
    /// Texts of the votes that the objective speaks of.
    pub(crate) texts: Texts<'a>,
    /// Each vote's user, of `users`.
    pub(crate) owner: Vec<UserIndex>,
    /// What each vote counts beside its user's others: the mean over the votes of a user is 1.
    pub(crate) weights: Vec<f32>,
    /// How many votes each user has.
    pub(crate) votes_of: Vec<usize>,
    /// Users who have votes of the split, none of which is in a batch, and why.
    pub(crate) idle: Vec<(UserIndex, String)>,
    /// Batches and phases.
    pub(crate) steps: Steps,
    /// Share of ties among the split's votes.
    pub(crate) tied_share: f64,
    /// Ties that the objective does not speak of.
    pub(crate) ties_left_out: usize,
    /// Votes of weight 0, which count nothing.
    pub(crate) without_weight: usize,
}

impl<'a> Plan<'a> {
    /// Tokenises the votes of `split` that count, which are all by `users`, and deals them out over `phases`.
    ///
    /// # Errors
    /// A row over the limit where that is an error; no batch within the budget; votes of other users.
    pub(crate) fn new(
        config: &RewardConfig,
        tokenizer: &'a Tokenizer,
        votes: &'a [Vote],
        users: &'a [String],
        (split, phases): (Split, &[Phase]),
        run: &Run,
    ) -> Result<Self> {
        let of_split: Vec<&Vote> = votes.iter().filter(|v| v.split == split).collect();
        let own: Vec<&Vote> = of_split.iter().copied().filter(|v| v.counts()).collect();
        let without_weight = of_split.len() - own.len();
        let with_ties = config.objective.ties != Ties::LeaveOut;
        let ties = own.iter().filter(|v| v.tie).count();
        let tied_share = ties as f64 / own.len().max(1) as f64;
        let own: Vec<&Vote> = own.into_iter().filter(|v| with_ties || !v.tie).collect();
        let texts = Texts::new(tokenizer, own, config.max_row_tokens, config.over_long)?;
        let index = |v: &&Vote| users.binary_search(&v.user_id).ok().map(UserIndex);
        let owner: Vec<UserIndex> = texts.votes.iter().filter_map(index).collect();
        let rng = |epoch: usize| run.rng(&["order", &epoch.to_string()]);
        let steps = Steps::plan(config, phases, texts.votes.len(), |v| texts.tokens(v), rng);
        if steps.batches.is_empty() || owner.len() != texts.votes.len() {
            return Err(invalid(
                "reward",
                format!("at least one batch of {} votes, all by known users", split.name()),
                format!(
                    "{} votes, {without_weight} more of weight 0, {} of known users, a budget of {} tokens",
                    texts.votes.len(),
                    owner.len(),
                    config.token_budget
                ),
                "raise `token_budget` or gather votes",
            ));
        }
        let mut votes_of = vec![0usize; users.len()];
        owner.iter().for_each(|u| votes_of[u.0] += 1);
        let given: Vec<f32> = texts.votes.iter().map(|v| v.weight).collect();
        let weights = stats::relative_weights(&owner, &given);
        let idle = idle(&of_split, users, steps.batches.iter().flatten().map(|v| owner[*v]));
        let ties_left_out = if with_ties { 0 } else { ties };
        Ok(Self { users, texts, owner, weights, votes_of, idle, steps, tied_share, ties_left_out, without_weight })
    }

    /// Hidden states of all texts below the blocks that `model` adapts, computed once.
    ///
    /// # Errors
    /// A file of kept states that cannot be written, or is damaged.
    pub(crate) fn frozen_blocks(&self, model: &RewardModel, lm: &Lm) -> Result<Prefix> {
        let _phase = run::phase("frozen blocks");
        let mut bar = Progress::new("reward: frozen blocks", self.texts.rows.len(), 0);
        model.prefix(lm, self.texts.rows.clone(), |n| bar.advance(n, ""))
    }
}

/// Users with votes of a split who are not among the `learnt`, whose votes are in batches; and why, by numbers of these votes. A user without any vote
/// is not named: whoever fits such a user wants to.
fn idle(votes: &[&Vote], users: &[String], learnt: impl Iterator<Item = UserIndex>) -> Vec<(UserIndex, String)> {
    let learnt: BTreeSet<UserIndex> = learnt.collect();
    let mut of_user: BTreeMap<UserIndex, (usize, usize)> = BTreeMap::new(); // votes, and those of weight 0
    for vote in votes {
        if let Ok(user) = users.binary_search(&vote.user_id) {
            let (all, without_weight) = of_user.entry(UserIndex(user)).or_default();
            (*all, *without_weight) = (*all + 1, *without_weight + usize::from(!vote.counts()));
        }
    }
    let why = |(all, without_weight)| {
        if all == without_weight {
            return format!("all {all} of the user's votes weigh 0");
        }
        let rest = all - without_weight;
        format!(
            "none of the user's {all} votes is learnt from: {without_weight} weigh 0, {rest} are ties that the objective leaves out, have a row \
             over `max_row_tokens`, or lie beyond the token budget"
        )
    };
    of_user.into_iter().filter(|(user, _)| !learnt.contains(user)).map(|(user, counts)| (user, why(counts))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn issue_23_users_none_of_whose_votes_is_learnt_from_are_named_with_the_reason() {
        let vote = |user: &str, weight| Vote {
            user_id: user.into(),
            prompt: vec![],
            chosen: "x".into(),
            rejected: "z".into(),
            tie: false,
            chosen_finished: None,
            rejected_finished: None,
            chosen_first: None,
            weight,
            margin: None,
            timestamp: None,
            split: Split::Train,
            source_row: String::new(),
        };
        let votes = [("ann", 1.0), ("bob", 0.0), ("bob", 0.0), ("cyd", 0.0), ("cyd", 1.0)].map(|(u, w)| vote(u, w));
        let users = ["ann", "bob", "cyd", "dan"].map(String::from);
        let idle = idle(&votes.each_ref(), &users, [UserIndex(0), UserIndex(0)].into_iter());
        assert_eq!(idle[0], (UserIndex(1), "all 2 of the user's votes weigh 0".to_owned()));
        assert!(
            idle[1].0 == UserIndex(2) && idle[1].1.contains("2 votes is learnt from: 1 weigh 0, 1 are"),
            "{idle:?}"
        );
        assert_eq!(idle.len(), 2, "dan has no votes");
    }
}
