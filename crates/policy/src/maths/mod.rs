//! Pure functions of numbers and tensors: no model, no file, no random stream.

pub(crate) mod advantages;
pub(crate) mod kl;
pub(crate) mod pair_losses;
pub(crate) mod surrogate;
