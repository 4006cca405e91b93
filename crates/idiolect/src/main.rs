//! From preferences to one aligned language model per person.
//!
//! `idiolect run PIPELINE` executes a pipeline file: raw data in, exported models out. `exit` says how the program ends: which
//! message, and which exit code.

mod adapt;
mod ask;
mod base;
mod chat;
mod cli;
mod combine;
mod combined;
mod data_command;
mod described;
mod doctor;
mod exit;
mod hub;
#[cfg(feature = "kill-points")]
mod kill_points;
mod lab_command;
mod lab_loco;
mod lab_newcomers;
mod lab_pessimism;
mod lab_rfm;
mod pipeline;
mod policy_command;
mod rank;
mod reward_command;
mod score;
mod served;
mod stages;
mod table;

use clap::Parser;

fn main() -> std::process::ExitCode {
    let cli = cli::Cli::parse();
    let code = exit::guarded(|| {
        run::start_logs(cli.log_format)?;
        device::tune_allocator();
        #[cfg(feature = "kill-points")]
        run::on_checkpoint(kill_points::abort_where_asked);
        cli.execute()
    });
    code.into()
}
