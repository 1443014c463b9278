//! Addresses, physical memory, image formats and kernel symbol formats.
//!
//! Everything here reads bytes that an adversary may have written: sizes are checked before anything is
//! allocated, every count has a limit, and what cannot be read is a value ([`Fault`], [`FormatError`]), never a
//! panic.

mod addr;
mod error;
mod fault;
pub mod image;
mod memory;
pub mod symbols;
mod vcpu;
pub mod write;
pub mod xen;
mod zero;

pub use addr::{Gfn, Gpa, Gva, PAGE_SHIFT, PAGE_SIZE};
pub use error::FormatError;
pub use fault::Fault;
pub use memory::{PhysicalMemory, Region, VirtualMemory};
pub use vcpu::{TableRegister, Vcpu};
pub use zero::is_zero;
