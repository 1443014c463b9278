//! The process that a gate has look at memory; nobody types this.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use clap::Args;

use crate::{
    exit::{Failure, Status},
    gate,
};

/// Looks at memory for a gate, which is at the other end of standard input
#[derive(Args)]
#[command(hide = true)]
pub(crate) struct GateScanner {}

impl GateScanner {
    #[allow(clippy::unused_self, reason = "as every command")]
    pub(crate) fn run(&self) -> Result<Status, Failure> {
        let input = std::io::stdin().as_fd().try_clone_to_owned()?;
        gate::serve(UnixStream::from(input)).map_err(Failure::new)?;
        Ok(Status::Nothing)
    }
}
