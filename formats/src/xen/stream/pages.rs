//! Memory in a stream: PAGE_DATA.
//!
//! ```text
//! 0  count  u32, at least 1; 4 bytes
//! 8  count × u64: bits 63..60 the type, 51..0 the frame
//!    the contents of each frame whose type has any, in the same order
//! ```
//! Xen's tools put at most 1024 frames in one (`MAX_BATCH_SIZE`); up to what a record can hold is read, and handed
//! over in batches of that size.

use std::io::Read;

use super::input::Input;
use super::page_type::PageType;
use crate::image::PHYSICAL_END;
use crate::{FormatError, Gfn, PAGE_SHIFT, PAGE_SIZE};

/// Most frames in a [`Pages`].
pub const MAX_BATCH_FRAMES: usize = 1024;

/// Bytes of an entry.
pub(super) const ENTRY_BYTES: usize = 8;

/// Bytes before the entries.
pub(super) const HEAD_BYTES: usize = 8;

const FRAME_MASK: u64 = (1 << 52) - 1;
const TYPE_SHIFT: u32 = 60;

/// A frame and what it is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The frame, as the guest counts them (for PV domains the pseudo-physical one).
    pub gfn: Gfn,
    /// Its type.
    pub kind: PageType,
}

impl Frame {
    /// What an entry says; the error is in words.
    fn from_entry(entry: u64) -> Result<Self, String> {
        let gfn = Gfn(entry & FRAME_MASK);
        let bits = (entry >> TYPE_SHIFT) as u8;
        if gfn.0 >= PHYSICAL_END >> PAGE_SHIFT {
            return Err(format!("frame {gfn} is past the 52-bit physical address space"));
        }
        let kind =
            PageType::from_bits(bits).ok_or_else(|| format!("frame {gfn} is of unknown type {bits}"))?;
        Ok(Self { gfn, kind })
    }

    /// Its entry.
    pub(super) const fn entry(self) -> u64 {
        (self.gfn.0 & FRAME_MASK) | (self.kind.bits() as u64) << TYPE_SHIFT
    }
}

/// A batch of frames, with the contents of those that have any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages<'a> {
    /// The frames in the order of the stream; at most [`MAX_BATCH_FRAMES`].
    pub frames: &'a [Frame],
    /// The contents of the frames that [have contents](PageType::has_contents), one after the other.
    pub contents: &'a [u8],
    /// Where in the stream the contents begin, in bytes.
    pub offset: u64,
}

impl<'a> Pages<'a> {
    /// Every frame with its contents, `None` for those without.
    pub fn iter(&self) -> impl Iterator<Item = (Frame, Option<&'a [u8]>)> + 'a {
        let mut contents = self.contents.chunks_exact(PAGE_SIZE);
        self.frames.iter().map(move |frame| {
            let page = if frame.kind.has_contents() { contents.next() } else { None };
            (*frame, page)
        })
    }
}

/// How many of `frames` have contents.
pub(super) fn with_contents(frames: &[Frame]) -> usize {
    frames.iter().filter(|frame| frame.kind.has_contents()).count()
}

/// Reads a record of `len` bytes, whose head was at `at`, up to the contents. The frames' contents fill its rest.
pub(super) fn read_frames<R: Read>(
    input: &mut Input<R>,
    len: usize,
    at: u64,
) -> Result<Vec<Frame>, FormatError> {
    let Some(rest) = len.checked_sub(HEAD_BYTES) else {
        return Err(input.error(at, format!("PAGE_DATA of {len} bytes is too short")));
    };
    let count = u32::from_le_bytes(input.array("the head of PAGE_DATA")?) as usize;
    let _reserved: [u8; 4] = input.array("the head of PAGE_DATA")?;
    let entries = count.saturating_mul(ENTRY_BYTES);
    if count == 0 || entries > rest {
        return Err(input.error(at, format!("PAGE_DATA of {len} bytes cannot have {count} frames")));
    }
    let entries_at = input.offset();
    let bytes = input.bytes(entries, "the frames of PAGE_DATA")?;
    let mut frames = Vec::with_capacity(count);
    for (index, entry) in bytes.as_chunks().0.iter().enumerate() {
        let frame = Frame::from_entry(u64::from_le_bytes(*entry));
        frames.push(frame.map_err(|reason| input.error(entries_at + (index * ENTRY_BYTES) as u64, reason))?);
    }
    if rest - entries != with_contents(&frames).saturating_mul(PAGE_SIZE) {
        return Err(input.error(at, format!("PAGE_DATA of {len} bytes does not fit its {count} frames")));
    }
    Ok(frames)
}
