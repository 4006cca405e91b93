//! Norms.

use tch::{Kind, Tensor};

use crate::cpu::fused;

/// Root-mean-square norm (Zhang and Sennrich 2019) over the last axis, computed in float32.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    weight: Tensor, // [E], float32: what the normed input is multiplied by
    epsilon: f64,
}

impl RmsNorm {
    pub(crate) fn new(weight: &Tensor, epsilon: f64) -> Self {
        Self { weight: weight.to_kind(Kind::Float), epsilon }
    }

    /// Gemma's: the stored weight counts from one.
    pub(crate) fn around_one(weight: &Tensor, epsilon: f64) -> Self {
        Self { weight: weight.to_kind(Kind::Float) + 1.0, epsilon }
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        if fused::fits(x) {
            return fused::rms_norm(x, &self.weight, self.epsilon);
        }
        x.to_kind(Kind::Float).rms_norm(self.weight.size(), Some(&self.weight), self.epsilon).to_kind(x.kind())
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
