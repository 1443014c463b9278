//! The raw ("padded raw") writer: byte *n* of the file is guest physical address *n*.
//!
//! What lies between the regions, and below the first, is a hole in the file and reads as zeros, as do zero pages.

use std::fs::File;

use super::frames::{self, Placed};
use super::{Progress, WriteError, Written};
use crate::PhysicalMemory;

/// Writes `memory` to `out`, which loses what it held.
///
/// # Errors
/// [`WriteError`]; the file is then not usable.
pub fn write(memory: &dyn PhysicalMemory, out: &File, progress: Progress<'_>) -> Result<Written, WriteError> {
    let regions = memory.regions();
    let placed: Vec<Placed> =
        regions.iter().map(|region| Placed { region: *region, offset: region.start.0 }).collect();
    let end = match regions.last() {
        Some(last) => last.end().ok_or(WriteError::TooBig { what: "the end of guest memory" })?.0,
        None => 0,
    };
    frames::copy(memory, &placed, end, out, progress)
}
