//! A pipeline: its file, its matrix, its graph of stages, and running it.

mod announce;
mod comparison;
mod file;
mod graph;
mod hashes;
mod matrix;
mod project;
mod results;
mod runner;
mod setting;
mod sizes;
mod speed;
mod walk;

pub(crate) use runner::{Request, run};
pub(crate) use speed::Speed;
