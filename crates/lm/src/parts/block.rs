//! The block of Llama and its relatives.

use tch::Tensor;

use crate::parts::{Attention, GatedMlp, RmsNorm};
use crate::pass::Pass;

/// `x + attention(norm x)`, then `x + mlp(norm x)`.
#[derive(Debug)]
pub(crate) struct PreNormBlock {
    pub(crate) input_layernorm: RmsNorm,
    pub(crate) attention: Attention,
    pub(crate) post_attention_layernorm: RmsNorm,
    pub(crate) mlp: GatedMlp,
}

impl PreNormBlock {
    pub(crate) fn forward(&self, x: &Tensor, pass: &Pass) -> Tensor {
        let x = x + self.attention.forward(&self.input_layernorm.forward(x), pass);
        let y = self.mlp.forward(&self.post_attention_layernorm.forward(&x), pass);
        x + y
    }
}
