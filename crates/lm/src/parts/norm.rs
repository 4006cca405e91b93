//! Norms.

use tch::{Kind, Tensor};

/// Root-mean-square norm (Zhang and Sennrich 2019) over the last axis.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    weight: Tensor, // [E], what the normed input is multiplied by
    epsilon: f64,
    /// Gemma multiplies in float32, by one plus the stored weight.
    in_float32: bool,
}

impl RmsNorm {
    pub(crate) fn new(weight: Tensor, epsilon: f64) -> Self {
        Self { weight, epsilon, in_float32: false }
    }

    /// Gemma's: the stored weight counts from one.
    pub(crate) fn around_one(weight: &Tensor, epsilon: f64) -> Self {
        Self { weight: weight.to_kind(Kind::Float) + 1.0, epsilon, in_float32: true }
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        let shape = self.weight.size();
        if self.in_float32 && x.kind() != Kind::Float {
            return x.to_kind(Kind::Float).rms_norm(shape, Some(&self.weight), self.epsilon).to_kind(x.kind());
        }
        x.rms_norm(shape, Some(&self.weight), self.epsilon)
    }
}

/// Layer norm with scale and shift.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor, // [E]
    bias: Tensor,   // [E]
    epsilon: f64,
}

impl LayerNorm {
    pub(crate) fn new(weight: Tensor, bias: Tensor, epsilon: f64) -> Self {
        Self { weight, bias, epsilon }
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.epsilon, true)
    }
}
