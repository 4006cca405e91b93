//! What a fit trains on: the votes of a split, their texts, and which of them each step takes.

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
    /// How many votes each user has.
    pub(crate) votes_of: Vec<usize>,
    /// Batches and phases.
    pub(crate) steps: Steps,
    /// Share of ties among the split's votes.
    pub(crate) tied_share: f64,
    /// Ties that the objective does not speak of.
    pub(crate) ties_left_out: usize,
}

impl<'a> Plan<'a> {
    /// Tokenises the votes of `split`, which are all by `users`, and deals them out over `phases`.
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
        let own: Vec<&Vote> = votes.iter().filter(|v| v.split == split).collect();
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
                    "{} votes, {} of known users, a budget of {} tokens",
                    texts.votes.len(),
                    owner.len(),
                    config.token_budget
                ),
                "raise `token_budget` or gather votes",
            ));
        }
        let mut votes_of = vec![0usize; users.len()];
        owner.iter().for_each(|u| votes_of[u.0] += 1);
        let ties_left_out = if with_ties { 0 } else { ties };
        Ok(Self { users, texts, owner, votes_of, steps, tied_share, ties_left_out })
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
