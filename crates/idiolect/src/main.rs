//! From preferences to one aligned language model per person.
//!
//! `idiolect run PIPELINE` executes a pipeline file: raw data in, exported models out. `main` maps errors to exit codes:
//! 2 for what the user can mend (message, then a hint on its own line), 3 for a pipeline that finished with users in quarantine, 1 for
//! anything else.

mod adapt;
mod ask;
mod base;
mod chat;
mod cli;
mod combine;
mod data_command;
mod doctor;
mod estimate_time;
mod execute;
mod hub;
mod lab_command;
mod lab_loco;
mod lab_newcomers;
mod lab_pessimism;
mod lab_rfm;
mod methods;
mod pairs_stage;
mod pipeline;
mod policy_command;
mod ppo_stage;
mod problem;
mod rank;
mod reward_command;
mod runner;
mod score;
mod served;
mod stages;
mod table;

use clap::Parser;

fn main() -> std::process::ExitCode {
    lm::tune_allocator();
    match cli::Cli::parse().execute() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => problem::report(&error),
    }
}
