//! The two faces of guest memory: physical (what was captured) and virtual (what a page table shows).

use crate::{Fault, Gfn, Gpa, Gva};

/// A run of guest physical memory that was captured. `start` and `len` are multiples of [`PAGE_SIZE`](crate::PAGE_SIZE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Region {
    /// First address.
    pub start: Gpa,
    /// Length in bytes.
    pub len: u64,
}

impl Region {
    /// First address behind the region, or `None` when that is 2^64.
    pub const fn end(&self) -> Option<Gpa> {
        self.start.checked_add(self.len)
    }
}

/// Captured guest physical memory: an image file, an archived epoch, or a live guest.
///
/// Reads take `&self` and are safe from many threads.
pub trait PhysicalMemory: Sync {
    /// Fills `buf` from `at` on.
    ///
    /// # Errors
    /// [`Fault::NotCaptured`] with the first missing address, [`Fault::Damaged`], or [`Fault::Overflow`]; `buf` may then be
    /// partly written.
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault>;

    /// The captured runs, ascending and disjoint. A frame inside a region may still fault.
    fn regions(&self) -> &[Region];

    /// A name for the contents of a frame: two frames with the same identity, in any two memories of one archive,
    /// hold the same bytes. `None` where telling would mean reading; different identities say nothing.
    fn page_identity(&self, _gfn: Gfn) -> Option<u64> {
        None
    }
}

impl<M: PhysicalMemory + ?Sized + Send> PhysicalMemory for std::sync::Arc<M> {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        (**self).read(at, buf)
    }

    fn regions(&self) -> &[Region] {
        (**self).regions()
    }

    fn page_identity(&self, gfn: Gfn) -> Option<u64> {
        (**self).page_identity(gfn)
    }
}

/// Memory as one page table shows it.
pub trait VirtualMemory: Sync {
    /// Fills `buf` from `at` on.
    ///
    /// # Errors
    /// The fault that stopped the read; `buf` may then be partly written.
    fn read(&self, at: Gva, buf: &mut [u8]) -> Result<(), Fault>;

    /// Reads a little-endian `u64`.
    ///
    /// # Errors
    /// As [`VirtualMemory::read`].
    fn read_u64(&self, at: Gva) -> Result<u64, Fault> {
        let mut bytes = [0; 8];
        self.read(at, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Reads a little-endian `u32`.
    ///
    /// # Errors
    /// As [`VirtualMemory::read`].
    fn read_u32(&self, at: Gva) -> Result<u32, Fault> {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Reads a little-endian `u16`.
    ///
    /// # Errors
    /// As [`VirtualMemory::read`].
    fn read_u16(&self, at: Gva) -> Result<u16, Fault> {
        let mut bytes = [0; 2];
        self.read(at, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Reads a byte.
    ///
    /// # Errors
    /// As [`VirtualMemory::read`].
    fn read_u8(&self, at: Gva) -> Result<u8, Fault> {
        let mut bytes = [0; 1];
        self.read(at, &mut bytes)?;
        let [byte] = bytes;
        Ok(byte)
    }
}
