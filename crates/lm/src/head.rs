//! The scalar head of a reward model.

use rand::Rng;
use tch::{Device, Kind, Tensor};

use crate::adamw::{Owner, Parameter};
use crate::bank::{Sharing, row_of};
use crate::{Result, Storage};

/// `score.weight`, `[1 or U, E]`, float32, no bias: the reward is its product with the row's pooled hidden state.
/// The methods with shared factors share it as well; separate adapters have separate heads.
#[derive(Debug)]
pub struct ScalarHead {
    /// `[1 or U, E]`
    pub weight: Tensor,
    sharing: Sharing,
}

impl ScalarHead {
    /// The head's name in a file.
    pub const NAME: &str = "score.weight";

    /// A head drawn uniformly with standard deviation `scale / sqrt(E + 1)`; 1 is Huang et al. 2024, detail 11.
    pub fn new(hidden_size: i64, scale: f32, rng: &mut impl Rng, device: Device) -> Self {
        let bound = scale * (3.0 / (hidden_size + 1) as f32).sqrt(); // a uniform's deviation is bound / sqrt(3)
        let values: Vec<f32> = (0..hidden_size).map(|_| rng.random_range(-bound..bound)).collect();
        Self::from_weight(&Tensor::from_slice(&values).view([1, hidden_size]).to_device(device), Sharing::Shared)
    }

    /// A head with these weights, `[1 or U, E]`.
    pub fn from_weight(weight: &Tensor, sharing: Sharing) -> Self {
        Self { weight: weight.to_kind(Kind::Float).detach().copy().set_requires_grad(true), sharing }
    }

    /// A copy of a shared head for every user, in `storage`.
    pub fn personalised(&self, users: usize, storage: &Storage) -> Result<Self> {
        let row = |_| self.weight.detach().get(0);
        Ok(Self { weight: storage.leaf(users, self.weight.device(), row)?, sharing: Sharing::Personal })
    }

    /// A copy that is trained on its own.
    pub fn copy(&self) -> Self {
        Self::from_weight(&self.weight, self.sharing)
    }

    /// The heads of some users alone, as leaves of their own; a shared head is the very tensor.
    pub fn present(&self, users: &[usize]) -> Self {
        match self.sharing {
            Sharing::Shared => Self { weight: self.weight.shallow_clone(), sharing: self.sharing },
            Sharing::Personal => {
                let index = Tensor::from_slice(&users.iter().map(|u| *u as i64).collect::<Vec<_>>());
                let own = self.weight.detach().index_select(0, &index.to_device(self.weight.device()));
                Self { weight: own.set_requires_grad(true), sharing: self.sharing }
            }
        }
    }

    /// The mean over owners, for `count` users if heads are personal.
    pub fn of_mean(&self, count: usize, storage: &Storage) -> Result<Self> {
        let mean = self.weight.detach().mean_dim(Some([0i64].as_slice()), true, Kind::Float);
        let one = Self::from_weight(&mean, Sharing::Shared);
        if self.sharing == Sharing::Personal { one.personalised(count, storage) } else { Ok(one) }
    }

    /// The heads of the users of both, in the order in which `order` counts them: ours first, then the other's.
    pub fn joined(&self, other: &Self, order: &[usize], storage: &Storage) -> Result<Self> {
        match self.sharing {
            Sharing::Shared => Ok(self.copy()),
            Sharing::Personal => {
                let row = |u: usize| row_of(&self.weight, &other.weight, order[u]);
                let weight = storage.leaf(order.len(), self.weight.device(), row)?;
                Ok(Self { weight, sharing: Sharing::Personal })
            }
        }
    }

    /// Who owns the head.
    pub fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// Rewards `[B]` of hidden states `[B, E]` for each row's user.
    pub fn score(&self, hidden: &Tensor, users: &[usize]) -> Tensor {
        let hidden = hidden.to_kind(Kind::Float);
        match self.sharing {
            Sharing::Shared => hidden.matmul(&self.weight.tr()).squeeze_dim(-1),
            Sharing::Personal => {
                let users: Vec<i64> = users.iter().map(|u| *u as i64).collect();
                let own = self.weight.index_select(0, &Tensor::from_slice(&users).to_device(self.weight.device()));
                (&hidden * own.to_device(hidden.device())).sum_dim_intlist(-1, false, Kind::Float)
            }
        }
    }

    /// What an optimiser trains.
    pub fn parameter(&self) -> Parameter {
        let owner = if self.sharing == Sharing::Personal { Owner::PerUser } else { Owner::Shared };
        Parameter { name: Self::NAME.into(), tensor: self.weight.shallow_clone(), owner }
    }
}
