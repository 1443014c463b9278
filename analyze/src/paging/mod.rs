//! x86-64 paging: 4 and 5 levels, pages of 4 KiB, 2 MiB and 1 GiB.

mod cache;
mod entry;
mod mappings;
mod space;
#[cfg(test)]
mod tests;

pub use entry::Access;
pub use mappings::{MAX_TABLES, Mapping, Mappings};
pub use space::{AddressSpace, Levels, Translation};
