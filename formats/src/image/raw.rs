//! Raw ("padded raw", `dd`-style) images: byte *n* of the file is guest physical address *n*.
//!
//! That is what `pmemsave 0 SIZE`, LiME's `padded` and varve's own raw writer give. It is **not** what a
//! QEMU memory-backend file of a guest with more than 2–3 GiB holds: there the RAM below and above the PCI hole lies
//! side by side, and addresses past the hole would come out wrong. Nothing in the file tells the two apart, so a raw
//! file is always read as flat; capture such a guest live, where QEMU is asked for the layout, or dump it with
//! `dump-guest-memory`.
//!
//! A raw file has no header to check. Its length must be a multiple of the page size, which refuses most truncated
//! files and most files that are no image at all.

use super::segments::Segment;
use super::{Contents, Format, Layout};
use crate::{FormatError, Gpa, PAGE_SIZE};

/// The raw format. Any bytes may be one, so it comes last in [`FORMATS`](super::FORMATS).
pub(super) static FORMAT: Format = Format { name: "raw", probe: |_| true, layout };

fn layout(file: &Contents<'_>) -> Result<Layout, FormatError> {
    let len = file.len();
    let tail = len % PAGE_SIZE as u64;
    if tail != 0 {
        let reason = format!(
            "a raw image is a multiple of {PAGE_SIZE} bytes, this has {tail} left over: truncated, or no memory image"
        );
        return Err(file.error(len - tail, reason));
    }
    Ok(Layout { segments: vec![Segment { start: Gpa(0), len, offset: 0 }], ..Layout::default() })
}
