//! Supervised fine-tuning on what users prefer.

pub(crate) mod config;
pub(crate) mod record;
mod rows;
pub(crate) mod train;
mod update;
