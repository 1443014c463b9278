//! What Xen and its tools write about a domain: save streams, and the registers in them.
//!
//! Facts are from Xen's public headers and specifications, as each file says; Xen 4.17 to 4.20 write the same.

pub mod hvm_context;
pub mod pv_context;
pub(crate) mod runs;
pub mod stream;

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|field| u16::from_le_bytes(*field))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|field| u32::from_le_bytes(*field))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|field| u64::from_le_bytes(*field))
}
