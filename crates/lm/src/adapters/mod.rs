//! What is trained on top of the frozen base: the bank of LoRA factors, which layers it adapts, the factors of one batch's
//! rows, and the scalar head of a reward model.

mod bank;
mod head;
mod lora;
mod row_factors;

pub use bank::{Bank, BankConfig, Middle, Owners, Sharing, UserFactors};
pub use head::ScalarHead;
pub use lora::{AllBlocks, AllLinear, Blocks, InitBound, InitRule, InitUsers, LoraConfig, Targets};
pub use row_factors::{Dropout, RowFactors};
