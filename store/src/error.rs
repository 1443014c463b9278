//! What can go wrong with an archive.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::Digest;

/// A failed operation on an archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// There is no archive at this path.
    #[error("there is no archive at {}: create one with `varve init`", path.display())]
    NoArchive {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The directory for a new archive exists and is not empty.
    #[error("{} is not empty: an archive is created in a new or empty directory", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The `FORMAT` file is not one.
    #[error("{}: not a varve archive: {reason}", path.display())]
    NotAnArchive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The archive was written by a later varve.
    #[error("the archive has format version {found}, this varve reads up to {supported}: use a newer varve")]
    NewerFormat {
        /// Version of the archive.
        found: u32,
        /// Last version this build reads.
        supported: u32,
    },
    /// Another process writes to the archive.
    #[error("archive is locked by {holder}: wait for it to end; reading is possible meanwhile")]
    Locked {
        /// Who holds the lock: process, host, command and since when.
        holder: String,
    },
    /// Stored bytes are not what they should be.
    #[error("the archive is damaged: {place}: {reason}; run `varve check --read-data`")]
    Corrupt {
        /// Where.
        place: Place,
        /// What is wrong.
        reason: String,
    },
    /// The operating system refused an operation on a file.
    #[error("{}: {doing}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// RocksDB failed.
    #[error("{doing}: {source}")]
    Database {
        /// What was being done.
        doing: &'static str,
        /// What RocksDB says.
        source: rocksdb::Error,
    },
    /// An earlier write failed: nothing more is written through this handle.
    #[error(
        "an earlier write failed ({reason}) and nothing was written since: free space or repair the disk, then open \
         the archive again; acknowledged epochs are intact and readable"
    )]
    Poisoned {
        /// The first failure.
        reason: String,
    },
    /// A write through a handle that was opened for reading.
    #[error("the archive is open for reading only")]
    ReadOnly,
    /// An epoch is already being written through this handle.
    #[error("an epoch of {vm} is being written: commit or drop it first")]
    Busy {
        /// The VM of the open epoch.
        vm: String,
    },
    /// A VM or pin name that is not allowed.
    #[error("{name:?} is not a valid name: 1 to 64 of A-Z a-z 0-9 . _ -")]
    InvalidName {
        /// The name.
        name: String,
    },
    /// The archive holds no epoch of this VM.
    #[error("no epoch of {vm:?} in the archive (it holds: {})", known.join(", "))]
    UnknownVm {
        /// The name asked for.
        vm: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// The VM has no such epoch.
    #[error("{vm} has no epoch {number} (it has {count}, counted from 0)")]
    UnknownEpoch {
        /// The VM.
        vm: String,
        /// The number asked for.
        number: u64,
        /// How many epochs there are.
        count: u64,
    },
    /// Regions that cannot be an epoch's.
    #[error("regions: {0}")]
    Regions(&'static str),
    /// A frame index behind the last frame of the regions.
    #[error("frame index {frame} is outside the {frames} frames of this epoch")]
    FrameOutOfRange {
        /// The index.
        frame: u64,
        /// Number of frames.
        frames: u64,
    },
    /// A page whose bytes do not have the digest they were handed over with: the memory or the source is unsteady.
    #[error("frame index {frame}: the page does not have the digest it was handed over with")]
    DigestMismatch {
        /// The frame.
        frame: u64,
    },
    /// A commit of an epoch of which an earlier part could not be stored.
    #[error("a part of this epoch could not be stored: it is abandoned, begin it again")]
    Abandoned,
    /// Something handed over for storing is larger than the format allows.
    #[error("{what} is larger than the limit of {limit}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// The limit, in bytes or entries.
        limit: u64,
    },
}

impl StoreError {
    /// A [`StoreError::Corrupt`].
    pub(crate) fn corrupt(place: Place, reason: impl Into<String>) -> Self {
        Self::Corrupt { place, reason: reason.into() }
    }

    /// A [`StoreError::Io`].
    pub(crate) fn io(path: impl AsRef<Path>, doing: &'static str, source: impl Into<std::io::Error>) -> Self {
        Self::Io { path: path.as_ref().to_owned(), doing, source: source.into() }
    }
}

/// A stored object, for messages.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Place {
    /// An entry of the archive-wide settings.
    Meta(String),
    /// The entry of a VM.
    Vm(String),
    /// A pack of pages.
    Pack(u64),
    /// The digests of a pack.
    Digests(u64),
    /// The index entry of a digest.
    Index(Digest),
    /// The page map of an epoch: internal number of the VM, number of the epoch.
    Manifest(u32, u64),
    /// The record of an epoch: internal number of the VM, number of the epoch.
    Record(u32, u64),
    /// The domain's state at an epoch: internal number of the VM, number of the epoch.
    State(u32, u64),
    /// A pinned blob: internal number of the VM, name.
    Pin(u32, String),
    /// A file below the archive's directory.
    File(String),
    /// A whole column.
    Column(&'static str),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Meta(name) => write!(f, "setting {name}"),
            Self::Vm(name) => write!(f, "entry of VM {name}"),
            Self::Pack(number) => write!(f, "pack {number}"),
            Self::Digests(number) => write!(f, "digests of pack {number}"),
            Self::Index(digest) => write!(f, "index entry of page {digest}"),
            Self::Manifest(vm, epoch) => write!(f, "page map of epoch {epoch} (VM number {vm})"),
            Self::Record(vm, epoch) => write!(f, "record of epoch {epoch} (VM number {vm})"),
            Self::State(vm, epoch) => write!(f, "domain state of epoch {epoch} (VM number {vm})"),
            Self::Pin(vm, name) => write!(f, "pinned {name} (VM number {vm})"),
            Self::File(name) => write!(f, "file {name}"),
            Self::Column(name) => write!(f, "column {name}"),
        }
    }
}
