//! Whole-program tests: the real binary on a tiny random Llama and generated files. Cargo ignores a virtual workspace's
//! `tests/`, so `crates/idiolect/Cargo.toml` declares this file.

#![expect(clippy::unwrap_used, reason = "a failure in a test may panic")]

/// The tiny model with votes of two people, for learners that are called through the libraries.
mod bench;
/// Circles of files inside a crate.
mod circles;
/// `idiolect data`.
mod data_command;
/// The engine: what runs again and what does not, other environments, locks, one giver for every key.
mod engine;
/// Reward features: one is the ordinary model, tastes serve opposite people.
mod features;
/// What folders that are given as models are called; what they carry along; how long a row their models take.
mod folders;
/// Hashes of every tensor file, for those who move code.
mod hashes;
/// The house: import rows of crates, lengths of files, configs that parse.
mod house;
/// Learners: equals a reference, repeats exactly, gets better, keeps its invariant.
mod learners;
/// Pipelines with a matrix: what cells share, and the tables that they end with.
mod matrix;
/// What the program says last, and its exit code.
mod messages;
/// Where pairs come from, and how carefully.
mod pairs;
/// Every stage from raw data to exported models, twice.
mod pipeline;
/// PPO, RLOO and GRPO: learn, repeat, keep to themselves, find a bandit's optimum.
mod ppo;
/// Reward models: a user whose numbers are not finite is left out, and the others go on.
mod quarantine;
/// The program dies behind a checkpoint of each stage that has some; the same command ends with the same bytes.
mod resume;
/// Reward models: every structure learns, phases and objectives do what they say.
mod reward;
/// Reward features serve people who come later: asked in a terminal, adapted, answers ranked.
mod serving;
/// Supervised fine-tuning: learns, repeats, keeps users apart.
mod sft;
/// Real votes, where ../shared is at hand.
mod shared_data;
/// The tiny model and the workspace that the others use.
mod tiny;
/// What votes weigh: nothing at 0, and only in proportion to the user's others.
mod weights;
/// Wrong input: a message with where, expected and found; exit code 2; nothing written.
mod wrong_input;
