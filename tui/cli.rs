//! The command line: global options, and one variant for each file of `commands`.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::commands;

/// Checkpoint archive and forensic analyzer for live virtual machines.
///
/// varve records the whole memory of a VM at every checkpoint (an epoch), scans every epoch from outside, and names the
/// first one that was compromised, with the bytes that prove it.
#[derive(Parser)]
#[command(name = "varve", version, propagate_version = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  varve -r /srv/varve init
  varve -r /srv/varve --vm web1 capture qemu:/run/web1.qmp --interval 10s
  varve -r /srv/varve --vm web1 sweep --policy web.toml
  varve -r /srv/varve --vm web1 first-bad
  varve -r /srv/varve --vm web1 diff 6 7

Epochs are named by number, latest, latest~3, @2026-11-23T04:00Z or a unique prefix of their id; ranges are A..B.
Exit status: 0 nothing found, 1 error, 2 usage, 3 incomplete, 4 findings, 10 no archive, 11 archive locked.";

/// Options every command takes.
#[derive(Args)]
pub(crate) struct Global {
    /// Directory of the archive
    #[arg(short = 'r', long = "archive", value_name = "DIR", env = "VARVE_ARCHIVE", global = true)]
    pub(crate) archive: Option<PathBuf>,
    /// Which VM in the archive; may be left out while it holds only one
    #[arg(long, value_name = "NAME", env = "VARVE_VM", global = true)]
    pub(crate) vm: Option<String>,
    /// Print results as JSON Lines
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// No progress and no remarks on standard error, only errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

/// The subcommands.
#[derive(Subcommand)]
pub(crate) enum Command {
    Init(commands::init::Init),
    Import(commands::import::Import),
    Capture(commands::capture::Capture),
    Epochs(commands::epochs::Epochs),
    Vms(commands::vms::Vms),
    Show(commands::show::Show),
    Scan(commands::scan::Scan),
    Sweep(commands::sweep::Sweep),
    FirstBad(commands::first_bad::FirstBad),
    Diff(commands::diff::Diff),
    Check(commands::check::Check),
    Export(commands::export::Export),
    Gate(commands::gate::Gate),
    #[command(name = crate::gate::SUBCOMMAND)]
    GateScanner(commands::gate_scanner::GateScanner),
    Quarantine(commands::quarantine::Quarantine),
    Rollback(commands::rollback::Rollback),
    Stats(commands::stats::Stats),
    Completions(commands::completions::Completions),
}

/// Parses a command line.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(arguments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
