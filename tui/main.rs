//! The `varve` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    varve::run(std::env::args_os())
}
