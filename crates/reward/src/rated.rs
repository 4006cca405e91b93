//! Rewards of rows with their standard errors, from any of our reward models: what caution is taken off by.

use estimate::Pessimism;
use lm::{Lm, Prefix, UserIndex};
use problem::{Result, invalid};

use crate::{People, RewardModel};

/// Where a reward's standard error comes from.
#[derive(Debug)]
pub enum Errors<'a> {
    /// Nobody asks.
    None,
    /// The half-width of P-ShareLoRA's ball of this squared radius.
    Ball(f64),
    /// Laplace's, of a taste over reward features.
    Tastes(&'a People),
}

impl<'a> Errors<'a> {
    /// Those of `model`, whose users have `votes` decided votes on average; with `people` those of their tastes. The ball's constant is 1, its
    /// delta .05.
    pub fn of(wanted: bool, model: &RewardModel, people: Option<&'a People>, votes: f64) -> Result<Self> {
        Ok(match people {
            _ if !wanted => Self::None,
            Some(people) => Self::Tastes(people),
            None => Self::Ball(Self::ball(model, votes)?),
        })
    }

    /// The squared radius of P-ShareLoRA's ball (constant 1, delta .05) around a user's factors, where users have `votes` decided votes on
    /// average.
    ///
    /// # Errors
    /// Users' factors that do not reach into all directions of their rank: the ball has no finite radius, and a lower bound of a reward is no number.
    pub fn ball(model: &RewardModel, votes: f64) -> Result<f64> {
        let spread = model.spread(votes)?;
        let zeta = Pessimism { constant: 1.0, delta: 0.05 }.zeta(&spread);
        if !(zeta.sqrt() as f32).is_finite() {
            return Err(invalid(
                "the standard errors of rewards that `caution` takes off",
                format!("users whose factors reach into all {} directions of their rank", spread.rank),
                format!("factors that do not (a diversity of {:e}), so that errors are infinite", spread.diversity),
                "was the reward model trained, with a learning rate above 0? Else lower its `lora.rank`, or ask for `caution = 0`",
            ));
        }
        Ok(zeta)
    }

    /// One user's rewards of `rows` and their standard errors; 0 where nobody asks. The prefix ends where the model's adapters begin.
    ///
    /// # Errors
    /// A gradient that cannot be computed.
    pub fn rated(
        &self,
        lm: &Lm,
        model: &RewardModel,
        prefix: &Prefix,
        rows: &[usize],
        user: UserIndex,
    ) -> problem::Result<Vec<(f32, f32)>> {
        Ok(match self {
            Self::None => model.score(lm, prefix, rows, user).into_iter().map(|s| (s, 0.0)).collect(),
            Self::Ball(zeta) => {
                let width = zeta.sqrt() as f32;
                let each = model.score_and_gradient(lm, prefix, rows, user)?;
                each.into_iter().map(|(s, norm)| (s, width * norm)).collect()
            }
            Self::Tastes(people) => {
                let taste = &people.tastes[&model.users[user.0]];
                let features = model.features(lm, prefix, rows).expect("tastes are over features");
                let wide = |phi: Vec<f32>| phi.into_iter().map(f64::from).collect::<Vec<f64>>();
                let each = features.into_iter().map(|phi| taste.score(&wide(phi)));
                each.map(|(mean, error)| (mean as f32, error as f32)).collect()
            }
        })
    }
}
