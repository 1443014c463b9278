//! What can go wrong when a domain is started from an epoch.

use std::io;

use varve_formats::write::WriteError;

/// A domain was not started. Unless the error says otherwise, nothing has changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// There is no toolstack here.
    #[error("there is no `xl` here: run varve in the dom0 of the Xen host (Debian: package xen-utils)")]
    NoXl,
    /// The toolstack refused.
    #[error("xl {command}: {reason}")]
    Xl {
        /// The subcommand.
        command: String,
        /// What it said.
        reason: String,
    },
    /// The epoch's configuration cannot be used.
    #[error("the domain's configuration: {reason}")]
    Configuration {
        /// Why not.
        reason: String,
    },
    /// A domain of that name is there.
    #[error("there is a domain {name:?} already: give it another name, or have it replaced (which ends it)")]
    Exists {
        /// The name.
        name: String,
    },
    /// A name that xl would take for something else.
    #[error("{name:?} is no name for a domain: not empty, not a number, printable, without `/`")]
    BadName {
        /// The name.
        name: String,
    },
    /// Another domain has the network address.
    #[error(
        "domain {other:?} has the network address {mac} on bridge {bridge:?}, and so would this one: \
         give another bridge, or replace that domain"
    )]
    SameAddress {
        /// The other domain.
        other: String,
        /// The address.
        mac: String,
        /// The bridge.
        bridge: String,
    },
    /// It is to be connected to what is not there.
    #[error(
        "this host has no bridge {bridge:?}, which the domain is to be connected to: make it, or give another bridge"
    )]
    NoBridge {
        /// Its name.
        bridge: String,
    },
    /// A disk is not there.
    #[error("this host has no {disk}, which is a disk of the domain")]
    NoDisk {
        /// The file or device.
        disk: String,
    },
    /// It would not be isolated.
    #[error("the domain of this epoch has {what}: it would not be isolated")]
    LeadsOut {
        /// What leads out.
        what: String,
    },
    /// Another domain has the disk.
    #[error("domain {other:?} has the disk {disk}: two domains would destroy what is on it")]
    SameDisk {
        /// The other domain.
        other: String,
        /// The disk.
        disk: String,
    },
    /// The disks are not of the same moment as the memory.
    #[error(
        "the domain has disks ({disks}), and {reason}: its kernel would write to them what it remembers, and destroy them. \
         Put them back by hand and give --without-disk, or capture with --disk-snapshot and give --disk-restore"
    )]
    Disks {
        /// The disks.
        disks: String,
        /// What is missing.
        reason: &'static str,
    },
    /// A command of the user's failed.
    #[error(transparent)]
    Hook(#[from] crate::hook::HookError),
    /// What a gate holds of the domain could not be dropped.
    #[error(transparent)]
    Output(#[from] crate::output::OutputError),
    /// Frames of the epoch cannot be read.
    #[error(
        "{missing} frames of the epoch cannot be read, the first at {first}: a domain without them is not the one that was \
         captured (`varve check --read-data` says more)"
    )]
    Damaged {
        /// Number of frames.
        missing: u64,
        /// Address of the first.
        first: varve_formats::Gpa,
    },
    /// The stream could not be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The operating system failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The user stopped it.
    #[error("stopped as asked, before anything was changed")]
    Stopped,
    /// The domain that was to be replaced has ended, and the new one is not there.
    #[error(
        "domain {name:?} was ended to be replaced, and then: {source}. When that is mended, the same command starts it again"
    )]
    Ended {
        /// Its name.
        name: String,
        /// What failed.
        source: Box<RestoreError>,
    },
    /// The domain is there, and stands still.
    #[error("domain {id} is there and paused, but: {source} (`xl unpause {id}`)")]
    LeftPaused {
        /// Its number.
        id: u64,
        /// What failed.
        source: Box<RestoreError>,
    },
}

impl RestoreError {
    /// Whether the other end stopped reading, which it gives its own reasons for.
    pub(super) fn is_broken_pipe(&self) -> bool {
        let source = match self {
            Self::Io { source, .. } | Self::Write(WriteError::Io { source, .. }) => source,
            _ => return false,
        };
        source.kind() == io::ErrorKind::BrokenPipe
    }
}
