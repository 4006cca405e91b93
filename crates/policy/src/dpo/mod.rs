//! Direct preference optimisation and its kin.

pub(crate) mod config;
#[cfg(test)]
mod golden;
pub(crate) mod record;
mod reference;
mod rows;
pub(crate) mod train;
mod update;
