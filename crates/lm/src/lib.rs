//! A causal language model on libtorch, and what training one per person needs of it.
//!
//! One frozen base ([`Lm`]) serves every role: reference (no adapter), policy (a user's rows of an adapter [`Bank`]),
//! reward model (bank and [`ScalarHead`]). Adapters sit on the last blocks, so the blocks below them are run once per
//! text and kept ([`Prefix`]). Weights are named as in the published checkpoint.
//!
//! A batch of rows is laid end to end ([`Batch`]): `N` tokens without padding, and what rows of one prompt begin with only
//! once. [`Trace`] runs it forward and back.
//!
//! Axis letters: `B` batch, `N` tokens of a batch, `T` tokens, `E` hidden, `V` vocabulary, `H` heads, `D` head size, `R` LoRA rank, `U` users.
//!
//! ```no_run
//! # fn main() -> problem::Result<()> {
//! let compute = device::Compute::new("cpu", "auto", None)?;
//! let model = lm::Lm::load("checkpoints/quickstart/import".as_ref(), &compute)?;
//! let sampling = lm::Sampling::at(1.0, 8, vec![2]);
//! let samples = lm::generate(&model, None, &[vec![1, 2, 3]], &[[0; 32]], &sampling, lm::Hooks::default());
//! # Ok(()) }
//! ```

mod adamw;
mod adapters;
mod cache;
mod checkpoint;
mod config;
mod count;
mod cpu;
mod families;
mod finite;
mod folder;
mod generate;
mod gguf;
mod gguf_file;
mod gguf_rope;
mod layout;
mod model;
mod parts;
mod pass;
mod quantised;
mod quarantine;
mod read_out;
mod row_set;
mod rows;
mod sampling;
mod shape;
mod source;
mod storage;
mod token_row;
mod trace;
mod user;
mod weights;

pub use adamw::{AdamW, AdamWConfig, GradientNorms, Owner, Parameter, Schedule};
pub use adapters::{
    AllBlocks, AllLinear, Bank, BankConfig, Blocks, Dropout, InitBound, InitRule, InitUsers, LoraConfig, Middle,
    Owners, RowFactors, ScalarHead, Sharing, Targets, UserFactors,
};
pub use checkpoint::{Checkpoints, Saved};
pub use config::ModelConfig;
pub use count::count;
pub use cpu::packed_product_rate;
pub use folder::{Companions, companions, copy_companions, is_companion, is_gguf, recognise, refuse_pointers};
pub use generate::{Hooks, Sample, Stop, StopStrings, generate};
pub use gguf::{ImportReport, gguf_size, import_gguf};
pub use model::Lm;
pub use quarantine::{Fault, Quarantine};
pub use read_out::{
    Pooling, answer_hidden, answer_logp, answer_token_logp, forward, full_logits, hidden_states, logits_of,
    pooled_hidden, token_logp,
};
pub use row_set::RowSet;
pub use rows::{Batch, Plan, Prefix, plan, under_budget};
pub use sampling::Sampling;
pub use shape::Shape;
pub use source::Layer;
pub use storage::Storage;
pub use tch::{Device, Tensor};
pub use text::RowCounts;
pub use token_row::TokenRow;
pub use trace::{Activations, Trace, accumulate, gradients};
pub use user::{Place, Present, UserIndex};
pub use weights::{Tensors, map_tensors, read_folder, read_tensors, weight_files, write_tensors};
