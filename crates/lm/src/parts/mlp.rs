//! Multilayer perceptrons.

use problem::{Result, invalid};
use tch::Tensor;

use crate::cpu::fused;
use crate::parts::Linear;
use crate::pass::Pass;

/// An activation function, under its published name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    Silu,
    Gelu,
    GeluTanh,
}

impl Activation {
    /// From the value of `field`: `hidden_act`, `activation_function`, ...
    pub(crate) fn named(name: &str, field: &str, place: &str) -> Result<Self> {
        match name {
            "silu" | "swish" => Ok(Self::Silu),
            "gelu" => Ok(Self::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Self::GeluTanh),
            other => Err(invalid(
                format!("{place}, `{field}`"),
                "`silu`, `gelu`, `gelu_new` or `gelu_pytorch_tanh`",
                format!("`{other}`"),
                "this activation is not supported yet",
            )),
        }
    }

    pub(crate) fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Self::Silu => x.silu(),
            Self::Gelu => x.gelu("none"),
            Self::GeluTanh => x.gelu("tanh"),
        }
    }
}

/// `down(act(gate x) * up x)` (Shazeer 2020).
#[derive(Debug)]
pub(crate) struct GatedMlp {
    gate_up: Linear,
    down: Linear,
    activation: Activation,
}

impl GatedMlp {
    pub(crate) fn new(gate: Linear, up: Linear, down: Linear, activation: Activation) -> Self {
        Self { gate_up: Linear::together(vec![gate, up]), down, activation }
    }

    pub(crate) fn forward(&self, x: &Tensor, pass: &Pass) -> Tensor {
        if self.activation == Activation::Silu
            && let Some(both) = self.gate_up.whole(x, pass).filter(fused::fits)
        {
            return self.down.forward(&fused::gate(&both), pass);
        }
        let outputs = self.gate_up.forward_all(x, pass);
        self.down.forward(&(self.activation.apply(&outputs[0]) * &outputs[1]), pass)
    }
}
