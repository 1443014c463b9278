//! The `varve` command: what a user types, and what a user sees.
//!
//! [`run`] parses the command line and hands it to one file of `commands`. Results go to standard output (tables, or
//! JSON Lines with `--json`), everything else to standard error. Nothing here parses guest memory or touches the
//! database: that is `varve-analyze` and `varve-store`.

mod capturing;
mod cli;
mod commands;
mod context;
mod exit;
mod gate;
mod interrupt;
mod output;
mod progress;
mod scanning;
mod time;

pub use exit::Status;

use std::{ffi::OsString, process::ExitCode};

/// Runs one command line, the program's name first, and returns the process's exit status ([`Status`]).
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match cli::parse(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // clap prints help and versions to standard output, mistakes to standard error.
            let _ = error.print();
            return if error.use_stderr() { Status::Usage.into() } else { Status::Nothing.into() };
        }
    };
    match commands::run(&cli) {
        Ok(status) => status.into(),
        Err(failure) => failure.report().into(),
    }
}
