//! What all rounds share, and who takes part in one.

use lm::{Lm, Present, Sampling, UserIndex};
use problem::Result;
use text::Tokenizer;

use crate::learners::Learners;
use crate::ppo::config::PpoConfig;
use crate::ppo::own::Own;
use crate::ppo::passes::Passes;
use crate::ppo::record::RoundRecord;

/// What all rounds share.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) config: &'a PpoConfig,
    pub(crate) lm: &'a Lm,
    pub(crate) users: &'a [String],
    /// Each user's own settings.
    pub(crate) own: Vec<Own>,
    pub(crate) passes: Passes<'a>,
    pub(crate) sampling: Sampling,
}

impl<'a> Setup<'a> {
    pub(crate) fn new(config: &'a PpoConfig, lm: &'a Lm, tokenizer: &Tokenizer, users: &'a [String]) -> Result<Self> {
        let own = users.iter().map(|user| config.own(user)).collect::<Result<_>>()?;
        let (temperature, budget) = (config.temperature, config.micro_batch_tokens.get());
        let passes = Passes { lm, temperature, budget, activations: config.activations };
        let stops = tokenizer.stop_ids().to_vec();
        let sampling = Sampling {
            fixed_shapes: config.fixed_shapes,
            ..Sampling::at(temperature, config.max_new_tokens.get(), stops)
        };
        Ok(Self { config, lm, users, own, passes, sampling })
    }

    /// (user, learning rate of the critic) in a round.
    pub(crate) fn critic_rates(&self, present: &Present, turn: &Turn) -> Vec<(UserIndex, f64)> {
        let optimizer = self.config.critic().map(|critic| &critic.optimizer);
        let rate = |user: UserIndex| optimizer.map_or(0.0, |o| o.rate(turn.steps[user.0], self.own[user.0].steps));
        present.iter().map(|(_, user)| (user, rate(user))).collect()
    }

    /// Rounds in which only critics learn.
    pub(crate) fn warmup(&self) -> usize {
        self.config.critic().map_or(0, |critic| critic.warmup_steps)
    }
}

/// Who takes part in a round, and where each user is.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Where and when, for messages.
    pub(crate) place: String,
    /// The users who take part.
    pub(crate) active: Present,
    /// The number of the own next round of every user of the table, which decides all that is drawn.
    pub(crate) steps: Vec<usize>,
    /// The KL coefficient of every user of the table.
    pub(crate) betas: Vec<f64>,
}

impl Turn {
    /// The next round; none if training is through.
    pub(crate) fn next(setup: &Setup, learners: &Learners<RoundRecord>) -> Option<Self> {
        let active = learners.next_users(|user| setup.own[user.0].steps, setup.config.users_at_once);
        let beta = |(own, past): (&Own, &Vec<RoundRecord>)| past.last().map_or(own.control.start(), |last| last.beta);
        (!active.is_empty()).then(|| Self {
            place: format!("ppo, round {}", learners.tick),
            active,
            steps: learners.past.iter().map(Vec::len).collect(),
            betas: setup.own.iter().zip(&learners.past).map(beta).collect(),
        })
    }
}
