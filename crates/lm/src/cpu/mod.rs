//! Kernels of our own for the CPU, in C++, and the calls into them.

pub(crate) mod fused;
mod packed;

pub use packed::packed_product_rate;
pub(crate) use packed::{Packed, available, call};
