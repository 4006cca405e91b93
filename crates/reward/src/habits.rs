//! What voters do beyond preferring: how readily they call a tie, how often they vote by chance.

use lm::{Owner, Parameter, Place, Sharing, Tensor, UserIndex};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use crate::objective::{Lapse, Objective, Ties, tie_start};

/// What of it a model has, for its file.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HabitsShape {
    pub(crate) ties: Ties,
    /// Who owns the tie parameter.
    pub(crate) sharing: Sharing,
    pub(crate) lapse: Lapse,
}

/// The tie parameter `[1 or U]` and the logits of users' lapse rates `[U]`, where the objective has them.
#[derive(Debug)]
pub(crate) struct Habits {
    pub(crate) shape: HabitsShape,
    pub(crate) tie: Option<Tensor>,
    pub(crate) lapse: Option<Tensor>,
}

pub(crate) const TIE: &str = "ties";
pub(crate) const LAPSE: &str = "lapse";

impl Habits {
    /// As they start: two equal answers are tied in the share `tied` of votes.
    pub(crate) fn new(objective: &Objective, sharing: Sharing, users: usize, tied: f64, device: Device) -> Self {
        let filled =
            |n: usize, value: f64| Tensor::full([n as i64], value, (Kind::Float, device)).set_requires_grad(true);
        let owners = if sharing == Sharing::Personal { users } else { 1 };
        let tie = (objective.ties != Ties::LeaveOut).then(|| filled(owners, tie_start(objective.ties, tied)));
        let lapse = match objective.lapse {
            Lapse::Share(_) => None,
            Lapse::PerUser { per_user } => Some(filled(users, (per_user / (1.0 - per_user)).ln())),
        };
        Self { shape: HabitsShape { ties: objective.ties, sharing, lapse: objective.lapse }, tie, lapse }
    }

    /// Those of some users alone, as leaves of their own; the very tensor that all share.
    pub(crate) fn present(&self, users: &[UserIndex]) -> Self {
        let pick = |t: &Tensor| {
            let index = Tensor::from_slice(&users.iter().map(|u| u.0 as i64).collect::<Vec<_>>());
            t.detach().index_select(0, &index.to_device(t.device())).set_requires_grad(true)
        };
        let tie = self.tie.as_ref().map(|t| match self.shape.sharing {
            Sharing::Shared => t.shallow_clone(),
            Sharing::Personal => pick(t),
        });
        Self { shape: self.shape, tie, lapse: self.lapse.as_ref().map(pick) }
    }

    /// Of `count` users who all start from the mean.
    pub(crate) fn of_mean(&self, count: usize) -> Self {
        let mean =
            |t: &Tensor, count: i64| t.detach().mean(Kind::Float).expand([count], false).copy().set_requires_grad(true);
        let owners = if self.shape.sharing == Sharing::Personal { count as i64 } else { 1 };
        Self {
            shape: self.shape,
            tie: self.tie.as_ref().map(|t| mean(t, owners)),
            lapse: self.lapse.as_ref().map(|t| mean(t, count as i64)),
        }
    }

    /// Of the users of both, in the order in which `order` counts them: ours first, then the other's.
    pub(crate) fn joined(&self, other: &Self, order: &[usize]) -> Self {
        let index = Tensor::from_slice(&order.iter().map(|u| *u as i64).collect::<Vec<_>>());
        let join = |a: &Tensor, b: &Tensor| {
            let both = Tensor::cat(&[a.detach(), b.detach()], 0);
            both.index_select(0, &index.to_device(both.device())).set_requires_grad(true)
        };
        let tie = self.tie.as_ref().zip(other.tie.as_ref()).map(|(a, b)| match self.shape.sharing {
            Sharing::Shared => a.shallow_clone(),
            Sharing::Personal => join(a, b),
        });
        let lapse = self.lapse.as_ref().zip(other.lapse.as_ref()).map(|(a, b)| join(a, b));
        Self { shape: self.shape, tie, lapse }
    }

    /// The same for users `users`, from what one for all learnt.
    pub(crate) fn personalised(&self, sharing: Sharing, users: usize) -> Self {
        let owners = if sharing == Sharing::Personal { users as i64 } else { 1 };
        let tie = self.tie.as_ref().map(|t| t.detach().expand([owners], false).copy().set_requires_grad(true));
        let lapse = self.lapse.as_ref().map(|t| t.detach().copy().set_requires_grad(true));
        Self { shape: HabitsShape { sharing, ..self.shape }, tie, lapse }
    }

    /// Each vote's raw tie parameter and lapse rate, `[P]`, by the place of its voter.
    pub(crate) fn of(&self, voters: &[Place], device: Device) -> (Option<Tensor>, Option<Tensor>) {
        let index = Tensor::from_slice(&voters.iter().map(|u| u.0 as i64).collect::<Vec<_>>()).to_device(device);
        let tie = self.tie.as_ref().map(|t| match self.shape.sharing {
            Sharing::Shared => t.expand([voters.len() as i64], false),
            Sharing::Personal => t.index_select(0, &index),
        });
        let lapse = match (&self.lapse, self.shape.lapse) {
            (Some(logits), _) => Some(logits.index_select(0, &index).sigmoid()),
            (None, Lapse::Share(share)) if share > 0.0 => {
                Some(Tensor::full([voters.len() as i64], share, (Kind::Float, device)))
            }
            _ => None,
        };
        (tie, lapse)
    }

    /// A user's raw tie parameter; 0 without ties.
    pub(crate) fn tie_of(&self, user: UserIndex) -> f64 {
        let at = if self.shape.sharing == Sharing::Personal { user.0 as i64 } else { 0 };
        self.tie.as_ref().map_or(0.0, |t| t.double_value(&[at]))
    }

    /// What an optimiser trains.
    pub(crate) fn parameters(&self) -> Vec<Parameter> {
        let owner = |sharing| if sharing == Sharing::Personal { Owner::PerUser } else { Owner::Shared };
        let parameter = |name: &str, tensor: &Tensor, sharing| Parameter {
            name: name.into(),
            tensor: tensor.shallow_clone(),
            owner: owner(sharing),
        };
        let tie = self.tie.as_ref().map(|t| parameter(TIE, t, self.shape.sharing));
        let lapse = self.lapse.as_ref().map(|t| parameter(LAPSE, t, Sharing::Personal));
        tie.into_iter().chain(lapse).collect()
    }
}
