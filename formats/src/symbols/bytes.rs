//! Little-endian fields of a blob, and bounded copies of guest memory.

use crate::{Fault, Gva, PAGE_SIZE, VirtualMemory};

/// The `N` bytes at `offset`.
pub(super) fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// The little-endian `u16` at `offset`.
pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    array_at(bytes, offset).map(u16::from_le_bytes)
}

/// The little-endian `u32` at `offset`.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    array_at(bytes, offset).map(u32::from_le_bytes)
}

/// The bytes of `offset..` up to the first NUL or the end.
pub(super) fn until_nul(bytes: &[u8], offset: usize) -> Option<&[u8]> {
    let tail = bytes.get(offset..)?;
    Some(memchr::memchr(0, tail).and_then(|end| tail.get(..end)).unwrap_or(tail))
}

/// `at` rounded up to a multiple of `align` (a power of two).
pub(super) fn align_up(at: u64, align: u64) -> Option<u64> {
    at.checked_add(align - 1).map(|end| end & !(align - 1))
}

/// A copy of `len` bytes of guest memory. The caller has checked `len` against its limit.
pub(super) fn copy(memory: &dyn VirtualMemory, at: Gva, len: usize) -> Result<Vec<u8>, Fault> {
    let mut bytes = vec![0; len];
    memory.read(at, &mut bytes)?;
    Ok(bytes)
}

/// A copy of `len` bytes of guest memory with zeros where pages cannot be read. The caller has checked `len`.
pub(super) fn copy_mapped(memory: &dyn VirtualMemory, at: Gva, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    if memory.read(at, &mut bytes).is_ok() {
        return bytes;
    }
    let mut offset = 0;
    while offset < len {
        let Some(here) = at.checked_add(offset as u64) else { break };
        let step = (PAGE_SIZE - here.page_offset()).min(len - offset);
        if let Some(page) = bytes.get_mut(offset..offset + step)
            && memory.read(here, page).is_err()
        {
            page.fill(0);
        }
        offset += step;
    }
    bytes
}
