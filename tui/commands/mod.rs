//! The subcommands, one file each: its options, its help, and what it does.

pub(crate) mod capture;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod diff;
pub(crate) mod epochs;
pub(crate) mod export;
pub(crate) mod first_bad;
pub(crate) mod gate;
pub(crate) mod gate_scanner;
pub(crate) mod import;
pub(crate) mod init;
pub(crate) mod quarantine;
pub(crate) mod rollback;
pub(crate) mod scan;
pub(crate) mod show;
pub(crate) mod stats;
pub(crate) mod sweep;
pub(crate) mod vms;

use crate::{
    cli::{Cli, Command},
    context::Context,
    exit::{Failure, Status},
};

/// Carries out a parsed command line.
pub(crate) fn run(cli: &Cli) -> Result<Status, Failure> {
    let context = Context::new(&cli.global);
    match &cli.command {
        Command::Init(command) => command.run(&context),
        Command::Import(command) => command.run(&context),
        Command::Capture(command) => command.run(&context),
        Command::Epochs(command) => command.run(&context),
        Command::Gate(command) => command.run(&context),
        Command::GateScanner(command) => command.run(),
        Command::Vms(command) => command.run(&context),
        Command::Show(command) => command.run(&context),
        Command::Scan(command) => command.run(&context),
        Command::Sweep(command) => command.run(&context),
        Command::FirstBad(command) => command.run(&context),
        Command::Diff(command) => command.run(&context),
        Command::Check(command) => command.run(&context),
        Command::Export(command) => command.run(&context),
        Command::Quarantine(command) => command.run(&context),
        Command::Rollback(command) => command.run(&context),
        Command::Stats(command) => command.run(&context),
        Command::Completions(command) => command.run(),
    }
}
