//! The scalar head of a reward model.

use rand::Rng;
use tch::{Device, Kind, Tensor};

/// `score.weight`, `[1, E]`, float32, no bias: the reward is its product with the last token's normed hidden state.
#[derive(Debug)]
pub struct ScalarHead {
    /// `[1, E]`
    pub weight: Tensor,
}

impl ScalarHead {
    /// The head's name in a file.
    pub const NAME: &str = "score.weight";

    /// A head drawn uniformly with standard deviation `1 / sqrt(E + 1)` (Huang et al. 2024, detail 11).
    pub fn new(hidden_size: i64, rng: &mut impl Rng, device: Device) -> Self {
        let bound = (3.0 / (hidden_size + 1) as f32).sqrt(); // a uniform's deviation is bound / sqrt(3)
        let values: Vec<f32> = (0..hidden_size).map(|_| rng.random_range(-bound..bound)).collect();
        Self::from_weight(&Tensor::from_slice(&values).view([1, hidden_size]).to_device(device))
    }

    /// A head with these weights, `[1, E]`.
    pub fn from_weight(weight: &Tensor) -> Self {
        Self { weight: weight.to_kind(Kind::Float).detach().copy().set_requires_grad(true) }
    }

    /// Rewards `[B]` of hidden states `[B, E]`.
    pub fn score(&self, hidden: &Tensor) -> Tensor {
        hidden.to_kind(Kind::Float).matmul(&self.weight.tr()).squeeze_dim(-1)
    }
}
