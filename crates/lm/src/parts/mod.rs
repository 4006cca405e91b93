//! What the families are made of.

mod attention;
mod block;
mod linear;
mod mlp;
mod norm;
mod positive;
mod rope;

pub(crate) use attention::{Attention, Heads};
pub(crate) use block::PreNormBlock;
pub(crate) use linear::Linear;
pub(crate) use mlp::{Activation, GatedMlp};
pub(crate) use norm::{LayerNorm, RmsNorm};
pub(crate) use positive::positive;
pub(crate) use rope::{Positions, Rope, RopeConfig, Rotary, Scaling, Style, llama3};
