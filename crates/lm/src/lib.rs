//! A causal language model on libtorch, and what training one per person needs of it.
//!
//! One frozen base ([`Lm`]) serves every role: reference (no adapter), policy (a user's rows of an adapter [`Bank`]),
//! reward model (bank and [`ScalarHead`]). Adapters sit on the last blocks, so the blocks below them are run once per
//! text and kept ([`Prefix`]). Weights are named as in the published checkpoint.
//!
//! Axis letters: `B` batch, `T` tokens, `E` hidden, `V` vocabulary, `H` heads, `D` head size, `R` LoRA rank, `U` users.
//!
//! ```no_run
//! # fn main() -> Result<(), lm::Error> {
//! let compute = lm::Compute::new("cpu", "auto", None)?;
//! let model = lm::Lm::load("checkpoints/quickstart/import".as_ref(), &compute)?;
//! let samples = lm::generate(&model, None, &[vec![1, 2, 3]], &[[0; 32]], &lm::Sampling {
//!     max_new_tokens: 8, temperature: Some(1.0), stop_ids: vec![2] });
//! # Ok(()) }
//! ```

mod adamw;
mod bank;
mod compute;
mod config;
mod error;
mod generate;
mod gguf;
mod head;
mod llama;
mod rows;
mod weights;

pub use adamw::{AdamW, AdamWConfig, GradientNorms, Owner, Parameter, Schedule};
pub use bank::{Bank, BankConfig, LoraConfig, Projection, RowFactors, Sharing};
pub use compute::{Compute, tune_allocator};
pub use config::LlamaConfig;
pub use error::{Error, Result, invalid};
pub use generate::{Sample, Sampling, generate};
pub use gguf::{ImportReport, gguf_parameters, import_gguf};
pub use head::ScalarHead;
pub use llama::{Cache, Lm, Rope};
pub use rows::{Pooling, Prefix, TokenRow, answer_logp, full_logits, pooled_hidden};
pub use tch::Tensor;
pub use weights::{Tensors, read_folder, read_tensors, write_tensors};
