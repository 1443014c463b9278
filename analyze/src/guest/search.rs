//! Page tables that may map a kernel, for when VMCOREINFO does not help.

use varve_formats::symbols::KERNEL_MAP;
use varve_formats::{Gfn, Gpa, PAGE_SIZE, PhysicalMemory, Vcpu};

use super::candidate::Candidate;
use super::error::Origin;
use crate::paging::Levels;

/// Tables that map the kernel somewhere else than all before, tried at most.
const MAX_TABLES: usize = 16;
/// `CR3` bit that tells the two halves of a KPTI pair apart (`PTI_PGTABLE_SWITCH_BIT`): set, the table is the one for
/// user mode, which maps hardly anything of the kernel.
const KPTI_USER_BIT: u64 = 1 << 12;
/// Present, writable and accessed: how Linux maps the tables of its own half.
const TABLE_BITS: u64 = 0x23;
const LARGE: u64 = 0x80;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The kernels that the page tables in use map, those of vCPUs in user mode through their kernel half.
pub(super) fn by_vcpu(memory: &dyn PhysicalMemory, vcpus: &[Vcpu]) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    for vcpu in vcpus {
        let levels = if vcpu.cr4 & (1 << 12) != 0 { Levels::Five } else { Levels::Four };
        for root in [vcpu.cr3 & !KPTI_USER_BIT, vcpu.cr3] {
            let candidate =
                Candidate::from_table(memory, Origin::Vcpu(vcpu.index), Gpa(root & ADDRESS), levels);
            add(&mut found, candidate);
        }
    }
    found
}

/// The kernels that any page of memory maps which could be a top page table. All processes share the kernel's half, so
/// the first good one will do.
pub(super) fn by_scan(memory: &dyn PhysicalMemory) -> Vec<Candidate> {
    let mut found = Vec::new();
    for frame in frames(memory) {
        let Some(root) = frame.gpa() else { continue };
        for levels in [Levels::Four, Levels::Five] {
            if found.len() < MAX_TABLES && maps_kernel(memory, root, levels) {
                add(&mut found, Candidate::from_table(memory, Origin::Table(root), root, levels));
            }
        }
    }
    found
}

/// Keeps a candidate that puts the kernel somewhere new.
fn add(found: &mut Vec<Candidate>, candidate: Option<Candidate>) {
    let Some(candidate) = candidate else { return };
    let place = |candidate: &Candidate| (candidate.placement.kernel_offset, candidate.placement.phys_base);
    if found.iter().all(|other| place(other) != place(&candidate)) {
        found.push(candidate);
    }
}

fn frames(memory: &dyn PhysicalMemory) -> impl Iterator<Item = Gfn> {
    memory.regions().iter().flat_map(|region| {
        let first = region.start.gfn().0;
        (first..first.saturating_add(region.len / PAGE_SIZE as u64)).map(Gfn)
    })
}

/// Whether tables lead from `root` to the kernel map: one cheap look at each level.
fn maps_kernel(memory: &dyn PhysicalMemory, root: Gpa, levels: Levels) -> bool {
    let mut table = root;
    for level in (3..=levels.count()).rev() {
        let index = (KERNEL_MAP.0 >> (12 + 9 * (u32::from(level) - 1))) % 512;
        let mut bytes = [0; 8];
        if memory.read(Gpa(table.0 | (index * 8)), &mut bytes).is_err() {
            return false;
        }
        let entry = u64::from_le_bytes(bytes);
        if entry & TABLE_BITS != TABLE_BITS || entry & LARGE != 0 {
            return false;
        }
        table = Gpa(entry & ADDRESS);
    }
    true
}
