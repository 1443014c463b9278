//! `varve completions`: tab completion for shells.

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use crate::{
    cli::Cli,
    exit::{Failure, Status},
};

/// Print a completion script for a shell
#[derive(Args)]
#[command(after_help = "Example:\n  varve completions bash > /etc/bash_completion.d/varve")]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(&self) -> Result<Status, Failure> {
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), "varve", &mut script);
        std::io::Write::write_all(&mut std::io::stdout(), &script)?;
        Ok(Status::Nothing)
    }
}
