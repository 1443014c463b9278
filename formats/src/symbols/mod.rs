//! Kernel symbols and types out of a guest's own memory, with no profile: VMCOREINFO, kallsyms, BTF; and the ISF file
//! that hands them to Volatility 3.
//!
//! A kernel variant is told by what is there, never by its version. Everything is bounded: a hostile guest can make
//! these parsers fail, not hang or exhaust memory.

pub mod btf;
mod bytes;
pub mod isf;
pub mod kallsyms;
mod linear;
mod names;
pub mod vmcoreinfo;

pub use linear::{KERNEL_IMAGE_BYTES, KERNEL_MAP, LinearMap};
