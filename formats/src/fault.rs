//! What could not be read from a guest, and why.

use crate::{Gpa, Gva};

/// Guest memory that could not be read. Expected with live and hostile guests: a fault is part of a report, not
/// an abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Fault {
    /// The image or epoch does not hold this frame.
    #[error("guest physical {at} was not captured")]
    NotCaptured {
        /// First address that is missing.
        at: Gpa,
    },
    /// The archive holds the frame but cannot give it back (damaged pack, I/O error).
    #[error("guest physical {at} is damaged in the archive: run `varve check --read-data`")]
    Damaged {
        /// First address that is unreadable.
        at: Gpa,
    },
    /// A page table entry on the way has its present bit clear.
    #[error("guest virtual {at} is not present (level {level}, entry {entry:#x}, table root {root})")]
    NotPresent {
        /// The virtual address asked for.
        at: Gva,
        /// 5 = PML5 … 1 = page table.
        level: u8,
        /// The raw entry.
        entry: u64,
        /// The root the walk began at.
        root: Gpa,
    },
    /// A page table could not be read.
    #[error("page table for {at} (level {level}) at guest physical {table} was not captured")]
    TableMissing {
        /// The virtual address asked for.
        at: Gva,
        /// 5 = PML5 … 1 = page table.
        level: u8,
        /// Where the entry should be.
        table: Gpa,
    },
    /// Bits 63..47 (or 63..56) of the address differ.
    #[error("guest virtual {at} is not canonical")]
    NonCanonical {
        /// The virtual address asked for.
        at: Gva,
    },
    /// An address computed from guest data leaves the address space.
    #[error("address computed from {at:#x} overflows")]
    Overflow {
        /// The address the computation began at.
        at: u64,
    },
    /// A named limit was reached: the guest's structure is longer, deeper or bigger than anything real.
    #[error("limit {what} ({limit}) reached at {at:#x}")]
    Limit {
        /// Name of the limit.
        what: &'static str,
        /// Its value.
        limit: u64,
        /// The address that was being followed.
        at: u64,
    },
    /// The bytes are there and cannot be what they should be.
    #[error("malformed {what} at {at:#x}")]
    Malformed {
        /// The structure or field.
        what: &'static str,
        /// Where it is.
        at: u64,
    },
}
