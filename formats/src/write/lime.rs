//! The LiME writer: each region behind a header of its own. The format is described with its reader, in
//! `image/lime.rs`.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::frames::{self, Placed};
use super::{Progress, WriteError, Written};
use crate::image::lime::{HEADER_BYTES, MAGIC, VERSION};
use crate::{PhysicalMemory, Region};

/// Writes `memory` to `out`, which loses what it held.
///
/// # Errors
/// [`WriteError`]; the file is then not usable.
pub fn write(memory: &dyn PhysicalMemory, out: &File, progress: Progress<'_>) -> Result<Written, WriteError> {
    let (placed, end) = place(memory.regions()).ok_or(WriteError::TooBig { what: "guest memory" })?;
    let written = frames::copy(memory, &placed, end, out, progress)?;
    for range in &placed {
        let offset = range.offset - HEADER_BYTES;
        out.write_all_at(&header(range.region), offset).map_err(|source| WriteError::Io {
            doing: "a range header",
            offset,
            source,
        })?;
    }
    Ok(written)
}

/// Where each region goes, and the length of the file.
fn place(regions: &[Region]) -> Option<(Vec<Placed>, u64)> {
    let mut at = 0u64;
    let mut placed = Vec::with_capacity(regions.len());
    for region in regions.iter().filter(|region| region.len > 0) {
        let offset = at.checked_add(HEADER_BYTES)?;
        placed.push(Placed { region: *region, offset });
        at = offset.checked_add(region.len)?;
    }
    Some((placed, at))
}

fn header(region: Region) -> [u8; HEADER_BYTES as usize] {
    let last = region.start.0 + (region.len - 1);
    let mut header = [0; HEADER_BYTES as usize];
    let fields = MAGIC
        .to_le_bytes()
        .into_iter()
        .chain(VERSION.to_le_bytes())
        .chain(region.start.0.to_le_bytes())
        .chain(last.to_le_bytes());
    for (byte, field) in header.iter_mut().zip(fields) {
        *byte = field;
    }
    header
}
