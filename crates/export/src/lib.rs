//! Every user's model in the formats that other software loads, each read back and re-scored before the stage ends.
//!
//! [`write()`] makes a PEFT adapter folder for every user and, for those who are named, a merged Hugging Face folder.
//! [`read_adapter`] loads any PEFT LoRA folder of the layers that we know, strictly.

mod merged;
mod names;
mod peft;
mod peft_config;
mod peft_read;
mod write;

pub use merged::write_merged;
pub use names::folder_name;
pub use peft::write_adapter;
pub use peft_read::read_adapter;
pub use write::{ExportConfig, ExportReport, UserExport, write};
