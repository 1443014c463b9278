//! Writers of memory images: what any tool of this field opens.
//!
//! One file per format, one line per format in [`WRITERS`]. A writer lays the file out; [`frames`] copies the
//! memory in parallel, leaving holes for zero pages; [`create()`] sees to it that a file either stands complete and
//! durable under its name or does not exist.

mod create;
mod frames;
pub mod lime;
pub mod raw;

use std::fs::File;

use crate::{Gpa, PhysicalMemory};
pub use create::{CreateError, Existing, create};

/// Every format that can be written.
pub static WRITERS: &[Writer] =
    &[Writer { name: "raw", write: raw::write }, Writer { name: "lime", write: lime::write }];

/// Called from any thread with the number of bytes of guest memory dealt with since the last call.
pub type Progress<'a> = &'a (dyn Fn(u64) + Sync);

/// Writes guest memory in one format.
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    /// The format's name, as [`image::Format::name`](crate::image::Format::name).
    pub name: &'static str,
    /// Writes `memory` to `out`, an empty regular file.
    pub write:
        fn(memory: &dyn PhysicalMemory, out: &File, progress: Progress<'_>) -> Result<Written, WriteError>,
}

/// What a writer wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Length of the file in bytes, holes included.
    pub file_bytes: u64,
    /// Frames with something in them.
    pub frames_data: u64,
    /// Frames of zeros: holes in the file.
    pub frames_zero: u64,
    /// Frames that should be there and could not be read. They read as zeros in the file and should be reported.
    pub frames_missing: u64,
    /// The first of those.
    pub first_missing: Option<Gpa>,
}

impl Written {
    /// Whether the file holds all that was asked for.
    pub const fn is_complete(&self) -> bool {
        self.frames_missing == 0
    }

    fn plus(self, other: Self) -> Self {
        let first_missing = match (self.first_missing, other.first_missing) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        Self {
            file_bytes: self.file_bytes.max(other.file_bytes),
            frames_data: self.frames_data + other.frames_data,
            frames_zero: self.frames_zero + other.frames_zero,
            frames_missing: self.frames_missing + other.frames_missing,
            first_missing,
        }
    }
}

/// A file could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The operating system refused: no space, no permission, a bad disk.
    #[error("cannot write {doing} at offset {offset:#x}: {source}")]
    Io {
        /// What was being written.
        doing: &'static str,
        /// Where in the file, in bytes.
        offset: u64,
        /// The cause.
        source: std::io::Error,
    },
    /// A frame cannot be read, and all are needed.
    #[error("the frame at {at} cannot be read (`varve check --read-data` says more)")]
    Damaged {
        /// Its address.
        at: Gpa,
    },
    /// The domain could not be restored from the file.
    #[error("the state of the domain lacks {what}")]
    Incomplete {
        /// What is missing.
        what: &'static str,
    },
    /// The memory does not fit the format.
    #[error("{what} does not fit a file of this format")]
    TooBig {
        /// What is too big.
        what: &'static str,
    },
}
