//! From preferences to one aligned language model per person.
//!
//! `idiolect run PIPELINE` executes a pipeline file: raw data in, exported models out. `exit` says how the program ends: which
//! message, and which exit code.

mod base;
mod cli;
mod combined;
mod commands;
mod compute;
mod described;
mod exit;
mod hub;
mod judged;
#[cfg(feature = "kill-points")]
mod kill_points;
mod new_folder;
mod pipeline;
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
