//! Whether the page tables in use show the kernel that the kernel's own page table shows.

use varve_formats::{Fault, Gpa, Gva, PhysicalMemory, Vcpu};

use super::Guest;
use crate::paging::AddressSpace;

/// Entries of a table.
const ENTRIES: u64 = 512;
/// `CR3` bit of the user half of a KPTI pair (`PTI_PGTABLE_SWITCH_BIT`, `arch/x86/include/asm/pgtable.h`).
const KPTI_USER_BIT: u64 = 1 << 12;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// What matters of an entry: present, writable, user, the address, no-execute. The processor sets others by itself.
const COMPARED: u64 = 1 | 2 | 4 | ADDRESS | 1 << 63;

/// How the kernel half of a page table in use compares with the kernel's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelHalf {
    /// It leads to the same tables.
    Same,
    /// It leads elsewhere: what the vCPU executes is not what the kernel's page table shows.
    Diverges(Vec<Divergence>),
    /// It could not be read.
    Unreadable(Fault),
}

/// A top-level entry that leads elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// First virtual address that the entry covers.
    pub gva: Gva,
    /// Where the entry in use is.
    pub gpa: Gpa,
    /// The kernel's own entry, raw.
    pub expected: u64,
    /// The entry in use, raw.
    pub found: u64,
}

impl Guest<'_> {
    /// Compares the kernel half of the page table that `vcpu` uses with the kernel's own. Of a pair of tables under
    /// KPTI the one for kernel mode is compared, whichever is in use. A vCPU that is just calling EFI firmware uses a table
    /// of its own for that (`efi_mm`), which diverges in its last entry.
    pub fn kernel_half(&self, vcpu: &Vcpu) -> KernelHalf {
        let root = Gpa(vcpu.cr3 & ADDRESS);
        let user_half = root.0 & KPTI_USER_BIT != 0 && !self.maps_kernel(root);
        let root = if user_half { Gpa(root.0 & !KPTI_USER_BIT) } else { root };
        if root == self.space().root() {
            return KernelHalf::Same;
        }
        match self.diverging_entries(root) {
            Ok(found) if found.is_empty() => KernelHalf::Same,
            Ok(found) => KernelHalf::Diverges(found),
            Err(fault) => KernelHalf::Unreadable(fault),
        }
    }

    /// Whether a page table maps more of the kernel than the entry code, which is all that user mode gets.
    fn maps_kernel(&self, root: Gpa) -> bool {
        let space = AddressSpace::new(self.memory(), root, self.space().levels());
        self.symbol("init_task").is_ok_and(|at| space.translate(at).is_ok())
    }

    fn diverging_entries(&self, root: Gpa) -> Result<Vec<Divergence>, Fault> {
        let levels = self.space().levels();
        let mut found = Vec::new();
        for index in ENTRIES / 2..ENTRIES {
            let own = entry(self.memory(), self.space().root(), index)?;
            let used = entry(self.memory(), root, index)?;
            // A table that lacks an entry gets it when it is first needed.
            if used & 1 == 0 || used & COMPARED == own & COMPARED || index == PER_PROCESS {
                continue;
            }
            let gva = levels.canonical(index << (levels.address_bits() - 9));
            found.push(Divergence { gva, gpa: slot(root, index), expected: own, found: used });
        }
        Ok(found)
    }
}

/// The entry of the kernel half that each process has for itself: its LDT (`LDT_PGD_ENTRY`,
/// `arch/x86/include/asm/pgtable_64_types.h`).
const PER_PROCESS: u64 = ENTRIES - 240;

const fn slot(table: Gpa, index: u64) -> Gpa {
    Gpa(table.0 | (index * 8))
}

fn entry(memory: &dyn PhysicalMemory, table: Gpa, index: u64) -> Result<u64, Fault> {
    let mut bytes = [0; 8];
    memory.read(slot(table, index), &mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
