//! The kernel image in virtual memory.

use crate::{Fault, Gpa, Gva, PhysicalMemory, VirtualMemory};

/// Where x86-64 maps the kernel image: `__START_KERNEL_map` (`arch/x86/include/asm/page_64_types.h`).
pub const KERNEL_MAP: Gva = Gva(0xffff_ffff_8000_0000);

/// Bytes of that map at most: `KERNEL_IMAGE_SIZE` with KASLR. Modules lie behind it.
pub const KERNEL_IMAGE_BYTES: u64 = 1 << 30;

/// The kernel image seen without page tables: it is contiguous in physical memory, so its virtual addresses follow from
/// `phys_base` alone. For bring-up, before the page table root can be trusted.
#[derive(Clone, Copy)]
pub struct LinearMap<'a> {
    memory: &'a dyn PhysicalMemory,
    phys_base: i64,
}

impl<'a> LinearMap<'a> {
    /// Maps the kernel image of `memory`. `phys_base` is in bytes, as
    /// [`VmCoreInfo::phys_base`](super::vmcoreinfo::VmCoreInfo::phys_base) gives it.
    pub const fn new(memory: &'a dyn PhysicalMemory, phys_base: i64) -> Self {
        Self { memory, phys_base }
    }

    /// The physical address behind a virtual one. `None` outside of the kernel map.
    pub fn translate(&self, at: Gva) -> Option<Gpa> {
        let offset = at.offset_from(KERNEL_MAP).filter(|offset| *offset < KERNEL_IMAGE_BYTES)?;
        Gpa(offset).checked_add_signed(self.phys_base)
    }
}

impl VirtualMemory for LinearMap<'_> {
    fn read(&self, at: Gva, buf: &mut [u8]) -> Result<(), Fault> {
        let last = at.checked_add((buf.len() as u64).saturating_sub(1)).and_then(|last| self.translate(last));
        match (self.translate(at), last) {
            (Some(start), Some(_)) => self.memory.read(start, buf),
            _ => Err(Fault::Overflow { at: at.0 }),
        }
    }
}
