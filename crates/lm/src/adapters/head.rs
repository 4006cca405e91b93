//! The scalar head of a reward model, and the one that reads features first.

use problem::Result;
use rand::Rng;
use tch::{Device, Kind, Tensor};

use super::bank::{Sharing, row_of};
use crate::adamw::{Owner, Parameter};
use crate::{Place, Storage, UserIndex};

/// `score.weight`, `[1 or U, E]`, float32, no bias: the reward is its product with the row's pooled hidden state.
/// The methods with shared factors share it as well; separate adapters have separate heads.
///
/// With `d` features (RFM, arXiv 2503.17338): `score.features [d, E]`, shared by all, and tastes `score.tastes [1 or U, d]`; the
/// reward is the taste's product with the features. A taste starts as (1, 0, ...) and its first number is not trained, nor is a taste that
/// all share: the first feature is everybody's reward, the others are where people differ. One feature is the ordinary head.
#[derive(Debug)]
pub struct ScalarHead {
    /// `[1 or U, E]`, or the tastes `[1 or U, d]` where there are features.
    pub weight: Tensor,
    /// `[d, E]`, if the head has them.
    pub features: Option<Tensor>,
    sharing: Sharing,
}

impl ScalarHead {
    /// The head's name in a file.
    pub const NAME: &str = "score.weight";
    /// The features' name.
    pub const FEATURES: &str = "score.features";
    /// The tastes' name.
    pub const TASTES: &str = "score.tastes";

    /// A head drawn uniformly with standard deviation `scale / sqrt(E + 1)`; 1 is Huang et al. 2024, detail 11.
    pub fn new(hidden_size: i64, scale: f32, rng: &mut impl Rng, device: Device) -> Self {
        let bound = scale * (3.0 / (hidden_size + 1) as f32).sqrt(); // a uniform's deviation is bound / sqrt(3)
        let values: Vec<f32> = (0..hidden_size).map(|_| rng.random_range(-bound..bound)).collect();
        Self::from_weight(&Tensor::from_slice(&values).view([1, hidden_size]).to_device(device), Sharing::Shared)
    }

    /// A head of `d` features, each drawn as [`Self::new`] draws its weights (the first is the same draw), and everybody's taste.
    pub fn of_features(d: usize, hidden_size: i64, scale: f32, rng: &mut impl Rng, device: Device) -> Self {
        let rows: Vec<Tensor> = (0..d).map(|_| Self::new(hidden_size, scale, rng, device).weight.detach()).collect();
        let taste = Tensor::zeros([1, d as i64], (Kind::Float, device));
        _ = taste.get(0).get(0).fill_(1.0);
        Self::from_weight(&taste, Sharing::Shared).over(&Tensor::cat(&rows, 0))
    }

    /// A head with these weights, `[1 or U, E]`.
    pub fn from_weight(weight: &Tensor, sharing: Sharing) -> Self {
        Self { weight: leaf(weight), features: None, sharing }
    }

    /// The same weights as tastes over features `[d, E]`.
    #[must_use]
    pub fn over(self, features: &Tensor) -> Self {
        Self { features: Some(leaf(features)), ..self }
    }

    fn shared_features(&self) -> Option<Tensor> {
        self.features.as_ref().map(Tensor::shallow_clone)
    }

    fn own_features(&self) -> Option<Tensor> {
        self.features.as_ref().map(leaf)
    }

    /// A copy of a shared head for every user, in `storage`.
    pub fn personalised(&self, users: usize, storage: &Storage) -> Result<Self> {
        let row = |_| self.weight.detach().get(0);
        let weight = storage.leaf(users, self.weight.device(), row)?;
        Ok(Self { weight, features: self.own_features(), sharing: Sharing::Personal })
    }

    /// A copy that is trained on its own.
    pub fn copy(&self) -> Self {
        Self { weight: leaf(&self.weight), features: self.own_features(), sharing: self.sharing }
    }

    /// The heads of some users alone, as leaves of their own; a shared head is the very tensor.
    pub fn present(&self, users: &[UserIndex]) -> Self {
        match self.sharing {
            Sharing::Shared => {
                Self { weight: self.weight.shallow_clone(), features: self.shared_features(), sharing: self.sharing }
            }
            Sharing::Personal => {
                let index = Tensor::from_slice(&users.iter().map(|u| u.0 as i64).collect::<Vec<_>>());
                let own = self.weight.detach().index_select(0, &index.to_device(self.weight.device()));
                Self { weight: own.set_requires_grad(true), features: self.shared_features(), sharing: self.sharing }
            }
        }
    }

    /// The mean over owners, for `count` users if heads are personal.
    pub fn of_mean(&self, count: usize, storage: &Storage) -> Result<Self> {
        let mean = self.weight.detach().mean_dim(Some([0i64].as_slice()), true, Kind::Float);
        let one = Self { features: self.own_features(), ..Self::from_weight(&mean, Sharing::Shared) };
        if self.sharing == Sharing::Personal { one.personalised(count, storage) } else { Ok(one) }
    }

    /// The heads of the users of both, in the order in which `order` counts them: ours first, then the other's.
    pub fn joined(&self, other: &Self, order: &[usize], storage: &Storage) -> Result<Self> {
        match self.sharing {
            Sharing::Shared => Ok(self.copy()),
            Sharing::Personal => {
                let row = |u: usize| row_of(&self.weight, &other.weight, order[u]);
                let weight = storage.leaf(order.len(), self.weight.device(), row)?;
                Ok(Self { weight, features: self.own_features(), sharing: Sharing::Personal })
            }
        }
    }

    /// Who owns the head.
    pub fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// Rewards `[B]` of hidden states `[B, E]` for each row's user among those of the head.
    pub fn score(&self, hidden: &Tensor, users: &[Place]) -> Tensor {
        let hidden = hidden.to_kind(Kind::Float);
        let (read, weight) = match &self.features {
            None => (hidden, self.weight.shallow_clone()),
            Some(features) => (hidden.matmul(&features.tr()), first_fixed(&self.weight)), // [B, d]
        };
        match self.sharing {
            Sharing::Shared => {
                let weight = if self.features.is_some() { weight.detach() } else { weight };
                read.matmul(&weight.tr()).squeeze_dim(-1)
            }
            Sharing::Personal => {
                let users: Vec<i64> = users.iter().map(|u| u.0 as i64).collect();
                let own = weight.index_select(0, &Tensor::from_slice(&users).to_device(weight.device()));
                (&read * own.to_device(read.device())).sum_dim_intlist(-1, false, Kind::Float)
            }
        }
    }

    /// Features `[B, d]` of hidden states `[B, E]`, without gradients; none if the head has none.
    pub fn read(&self, hidden: &Tensor) -> Option<Tensor> {
        let features = self.features.as_ref()?;
        Some(tch::no_grad(|| hidden.to_kind(Kind::Float).matmul(&features.tr())))
    }

    /// What an optimiser trains: weights, or features and tastes of people's own.
    pub fn parameters(&self) -> Vec<Parameter> {
        let owner = if self.sharing == Sharing::Personal { Owner::PerUser } else { Owner::Shared };
        let name = if self.features.is_some() { Self::TASTES } else { Self::NAME };
        let weight = Parameter { name: name.into(), tensor: self.weight.shallow_clone(), owner };
        let features = self.features.as_ref().map(|features| Parameter {
            name: Self::FEATURES.into(),
            tensor: features.shallow_clone(),
            owner: Owner::Shared,
        });
        let fixed = self.features.is_some() && self.sharing == Sharing::Shared;
        (!fixed).then_some(weight).into_iter().chain(features).collect()
    }
}

/// A copy of its own, float32, that takes gradients.
fn leaf(tensor: &Tensor) -> Tensor {
    tensor.to_kind(Kind::Float).detach().copy().set_requires_grad(true)
}

/// Tastes `[.., d]` whose first numbers take no gradient.
fn first_fixed(tastes: &Tensor) -> Tensor {
    let d = tastes.size()[1];
    Tensor::cat(&[tastes.narrow(1, 0, 1).detach(), tastes.narrow(1, 1, d - 1)], 1)
}
