//! From a live guest, or from image files, to epochs in an archive.
//!
//! [`source::open`] finds a live guest by its spec, [`capture`] takes epochs of it; [`import`] makes image files
//! epochs. Either reports to an [`Observer`] while it runs, asks an [`Interrupt`] whether to go on, and ends with
//! an [`Ended`].
//!
//! Guest memory is bytes here: nothing in this crate interprets it.

mod error;
pub mod gate;
mod histogram;
pub mod hook;
mod image;
mod ingest;
mod observe;
mod outcome;
pub mod output;
pub mod qemu;
mod report;
pub mod restore;
mod schedule;
mod session;
pub mod source;
#[doc(hidden)]
pub mod testing;
mod xen;
mod xen_stream;

pub use error::SourceError;
pub use histogram::Histogram;
use hook::Hook;
pub use image::import;
pub use observe::{Interrupt, Observer};
pub use outcome::{CaptureError, Ended};
pub use report::{EpochReport, PauseSplit, Summary};
pub use session::{Plan, Quiesce, capture};

/// What can be tuned.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most bytes of copied pages that wait for the archive. When they are full a guest that is held is held
    /// longer; no page is ever dropped.
    pub staging_bytes: usize,
    /// Run while a guest has suspended itself, to take a snapshot of its disks; what it prints is what the snapshot is
    /// called. `VARVE_VM` and `VARVE_SOURCE` tell it which guest that is.
    pub disk_snapshot: Option<Hook>,
    /// Within how many epochs every frame is compared at least once, whether or not the source says that it was written to. Zero:
    /// never.
    pub recheck_epochs: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { staging_bytes: 256 << 20, disk_snapshot: None, recheck_epochs: 1024 }
    }
}
