//! Rewards with their standard errors, from any of our reward models: what caution is taken off by.

use std::path::Path;

use anyhow::Result;
use lm::{Lm, Prefix};
use reward::{People, Pessimism, RewardModel};

/// The tastes of a reward stage in `folder`, if its model has reward features.
pub(crate) fn people_of(folder: &Path) -> Result<Option<People>> {
    let people = folder.join("people.safetensors");
    Ok(people.exists().then(|| People::read(&people)).transpose()?)
}

/// Where a reward's standard error comes from.
pub(crate) enum Errors<'a> {
    /// Nobody asks.
    None,
    /// The half-width of P-ShareLoRA's ball of this squared radius.
    Ball(f64),
    /// Laplace's, of a taste over reward features.
    Tastes(&'a People),
}

impl<'a> Errors<'a> {
    /// Those of `model`, whose users have `votes` decided votes on average.
    pub(crate) fn of(wanted: bool, model: &RewardModel, people: Option<&'a People>, votes: f64) -> Result<Self> {
        Ok(match people {
            _ if !wanted => Self::None,
            Some(people) => Self::Tastes(people),
            None => Self::Ball(Pessimism { constant: 1.0, delta: 0.05 }.zeta(&model.spread(votes)?)),
        })
    }

    /// One user's rewards of `rows` and their standard errors; 0 where nobody asks. The prefix is the model's own.
    pub(crate) fn rated(
        &self,
        lm: &Lm,
        model: &RewardModel,
        prefix: &Prefix,
        rows: &[usize],
        user: usize,
    ) -> lm::Result<Vec<(f32, f32)>> {
        Ok(match self {
            Self::None => model.score(lm, prefix, rows, user).into_iter().map(|s| (s, 0.0)).collect(),
            Self::Ball(zeta) => {
                let width = zeta.sqrt() as f32;
                let each = model.score_and_gradient(lm, prefix, rows, user)?;
                each.into_iter().map(|(s, norm)| (s, width * norm)).collect()
            }
            Self::Tastes(people) => {
                let taste = &people.tastes[&model.users[user]];
                let features = model.features(lm, prefix, rows).expect("tastes are over features");
                let wide = |phi: Vec<f32>| phi.into_iter().map(f64::from).collect::<Vec<f64>>();
                let each = features.into_iter().map(|phi| taste.score(&wide(phi)));
                each.map(|(mean, error)| (mean as f32, error as f32)).collect()
            }
        })
    }
}
