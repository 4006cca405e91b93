//! The model against its references: transformers, libtorch, and itself computed another way.

#![expect(clippy::unwrap_used, reason = "a failure in a test may panic")]

/// A batch gives every row and every user what they would get alone.
mod batches;
/// Golden numbers, and the tiny models whose weights are a formula.
mod common;
/// Damaged GGUF files and configurations.
mod damage;
/// What a model folder says: every key is honoured or refused by its name.
mod folders;
/// Weights that are a formula.
mod formula;
/// What a GGUF file's metadata says: every key is honoured or refused by its name.
mod gguf_keys;
/// The optimiser against libtorch's.
mod learning;
/// Every family against transformers.
mod parity;
