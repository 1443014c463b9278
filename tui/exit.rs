//! Exit statuses and failures: what a script that calls `varve` can tell apart.

use std::{fmt, io, process::ExitCode};

use varve_analyze::engine::EpochError;
use varve_capture::CaptureError;
use varve_store::StoreError;

/// The exit status of the process. The numbers are stable and documented in `docs/json.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done, and nothing was found.
    Nothing = 0,
    /// Something failed.
    Error = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// Nothing was found, but not everything could be looked at.
    Incomplete = 3,
    /// There are findings.
    Findings = 4,
    /// There is no archive at the given place.
    NoArchive = 10,
    /// Another process is writing to the archive.
    Locked = 11,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// Why a command could not do its job, with the exit status that says so.
#[derive(Debug)]
pub(crate) struct Failure {
    status: Status,
    message: String,
}

impl Failure {
    /// An ordinary failure.
    pub(crate) fn new(message: impl fmt::Display) -> Self {
        Self { status: Status::Error, message: message.to_string() }
    }

    /// A command line that cannot be carried out as given.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self { status: Status::Usage, message: message.to_string() }
    }

    /// Prints the message to standard error and gives the exit status.
    pub(crate) fn report(self) -> Status {
        eprintln!("varve: {}", self.message);
        self.status
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let status = match error {
            StoreError::NoArchive { .. } => Status::NoArchive,
            StoreError::Locked { .. } => Status::Locked,
            _ => Status::Error,
        };
        Self { status, message: error.to_string() }
    }
}

impl From<EpochError> for Failure {
    fn from(error: EpochError) -> Self {
        match error {
            EpochError::Store(error) => error.into(),
            error => Self::new(error),
        }
    }
}

impl From<CaptureError> for Failure {
    fn from(error: CaptureError) -> Self {
        match error {
            CaptureError::Store(error) => error.into(),
            error => Self::new(error),
        }
    }
}

impl From<io::Error> for Failure {
    /// A reader that closed its end (`varve … | head`) wanted no more: no complaint, and no status that says that all was
    /// looked at, but the one of a program that SIGPIPE ended.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(128 + signal_hook::consts::SIGPIPE);
        }
        Self::new(format_args!("cannot write the result: {error}"))
    }
}
