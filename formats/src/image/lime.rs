//! LiME (Linux Memory Extractor) format version 1: ranges, each behind a header.
//!
//! ```text
//! 0   magic     u32   0x4c694d45 ("EMiL" in the file)
//! 4   version   u32   1
//! 8   s_addr    u64   first guest physical address
//! 16  e_addr    u64   last one, inclusive
//! 24  reserved  8 bytes
//! 32  e_addr - s_addr + 1 bytes of memory
//! ```
//! All little-endian; `struct lime_mem_range_header` in LiME's `src/lime.h`. Version 2 is AVML's and compressed.

use super::segments::{MAX_SEGMENTS, Segment};
use super::{Contents, Format, Layout};
use crate::{FormatError, Gpa};

/// `LIME_MAGIC`, "EMiL" in file order.
pub(crate) const MAGIC: u32 = 0x4c69_4d45;

/// The one version that holds plain bytes.
pub(crate) const VERSION: u32 = 1;

/// Length of a range header in bytes.
pub(crate) const HEADER_BYTES: u64 = 32;

/// The LiME format.
pub(super) static FORMAT: Format =
    Format { name: "lime", probe: |head| head.starts_with(&MAGIC.to_le_bytes()), layout };

fn layout(file: &Contents<'_>) -> Result<Layout, FormatError> {
    let mut segments = Vec::new();
    let mut at = 0;
    while at < file.len() {
        if segments.len() == MAX_SEGMENTS {
            return Err(file.error(at, format!("more than {MAX_SEGMENTS} ranges")));
        }
        let segment = range(file, at)?;
        // In bounds: `range` has checked that the whole range lies in the file.
        at = segment.offset.saturating_add(segment.len);
        segments.push(segment);
    }
    Ok(Layout { segments, ..Layout::default() })
}

/// The range whose header is at `at`.
fn range(file: &Contents<'_>, at: u64) -> Result<Segment, FormatError> {
    if at.checked_add(HEADER_BYTES).is_none_or(|end| end > file.len()) {
        return Err(file.error(at, "a LiME range header is cut off: truncated?"));
    }
    let magic = file.u32(at)?;
    if magic != MAGIC {
        return Err(file.error(at, format!("{magic:#010x} is no LiME range header")));
    }
    let version = file.u32(at + 4)?;
    if version != VERSION {
        return Err(file.error(at + 4, format!("LiME version {version} is not supported, only {VERSION}")));
    }
    let (first, last) = (file.u64(at + 8)?, file.u64(at + 16)?);
    let len = last.checked_sub(first).and_then(|span| span.checked_add(1));
    let Some(len) = len else {
        return Err(file.error(at + 8, format!("a LiME range cannot run from {first:#x} to {last:#x}")));
    };
    let offset = at + HEADER_BYTES;
    if len > file.len() - offset {
        let left = file.len() - offset;
        return Err(file.error(
            at + 8,
            format!("a LiME range of {len:#x} bytes has only {left:#x} bytes behind it: truncated?"),
        ));
    }
    Ok(Segment { start: Gpa(first), len, offset })
}
