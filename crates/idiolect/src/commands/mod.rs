//! The subcommands: a file each, arguments and work together.

pub(crate) mod adapt;
pub(crate) mod ask;
pub(crate) mod chat;
pub(crate) mod config;
pub(crate) mod data;
pub(crate) mod doctor;
pub(crate) mod import;
pub(crate) mod lab;
pub(crate) mod policy;
pub(crate) mod reward;
pub(crate) mod run;
pub(crate) mod score;
