//! PPO, RLOO and GRPO.

mod advantages;
mod ask;
mod begin;
pub(crate) mod config;
#[cfg(test)]
mod golden;
pub(crate) mod guard;
mod models;
mod observe;
mod passes;
pub(crate) mod record;
pub(crate) mod rollouts;
pub(crate) mod scale;
pub(crate) mod score;
mod setup;
pub(crate) mod train;
mod update;
