//! Where a kernel is in memory.

use varve_formats::symbols::{KERNEL_MAP, LinearMap};
use varve_formats::{Gpa, Gva, PhysicalMemory};

use crate::paging::{AddressSpace, Levels};

/// Where a kernel is in memory: what KASLR decides anew at each boot, and how it is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Placement {
    /// How far KASLR moved the kernel's virtual addresses, in bytes; 0 without KASLR.
    pub kernel_offset: u64,
    /// Physical address of the kernel image minus its offset in the kernel map, in bytes.
    pub phys_base: i64,
    /// Physical address of the kernel's top page table (`swapper_pg_dir`).
    pub root: Gpa,
    /// Depth of the page tables.
    pub levels: Levels,
}

impl Placement {
    /// The kernel's address space.
    pub fn space<'m>(&self, memory: &'m dyn PhysicalMemory) -> AddressSpace<'m> {
        AddressSpace::new(memory, self.root, self.levels)
    }

    /// The kernel image, without page tables.
    pub(super) fn linear<'m>(&self, memory: &'m dyn PhysicalMemory) -> LinearMap<'m> {
        LinearMap::new(memory, self.phys_base)
    }
}

/// Where `address`, of a kernel that KASLR moved by `from`, is when KASLR moves the same kernel by `to`. Addresses
/// below the kernel map are offsets (per-CPU symbols, to 6.14) and do not move.
pub(super) const fn relocate(address: Gva, from: u64, to: u64) -> Gva {
    if address.0 < KERNEL_MAP.0 {
        return address;
    }
    Gva(address.0.wrapping_sub(from).wrapping_add(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kernel_addresses_move() {
        assert_eq!(relocate(Gva(0xffff_ffff_8100_0000), 0, 0x2000_0000), Gva(0xffff_ffff_a100_0000));
        assert_eq!(relocate(Gva(0xffff_ffff_a100_0000), 0x2000_0000, 0), Gva(0xffff_ffff_8100_0000));
        assert_eq!(relocate(Gva(0x1_f000), 0, 0x2000_0000), Gva(0x1_f000));
    }
}
