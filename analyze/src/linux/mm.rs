//! `struct mm_struct`: the address space of a process (`include/linux/mm_types.h`).

use varve_formats::symbols::btf::Btf;
use varve_formats::{Fault, Gva};

use super::layout::{Field, Missing, Structure};
use super::maple::MapleLayout;
use super::walk::{Seen, Walk};
use crate::guest::Guest;
use crate::paging::AddressSpace;

/// VMAs of one process at most. `vm.max_map_count` is 65,530 unless raised.
const MAX_VMAS: usize = 1 << 20;

/// Members of `struct mm_struct`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmLayout {
    /// Virtual address of the top page table.
    pub pgd: Field,
    /// Begin of the heap.
    pub start_brk: Field,
    /// End of the heap.
    pub brk: Field,
    /// Begin of the stack, its highest address.
    pub start_stack: Field,
    /// Begin of the program arguments.
    pub arg_start: Field,
    /// End of the program arguments.
    pub arg_end: Field,
    /// Begin of the environment.
    pub env_start: Field,
    /// End of the environment.
    pub env_end: Field,
    /// `MM_CONTEXT_*`; bit 1 (`MM_CONTEXT_HAS_VSYSCALL`) is set for 64-bit programs (5.11 on).
    pub context_flags: Option<Field>,
    /// How its VMAs are kept.
    pub vmas: VmaStore,
}

/// How an address space keeps its VMAs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmaStore {
    /// A maple tree (6.1 on).
    Maple {
        /// `mm_mt.ma_root`.
        root: Field,
        /// Nodes of the tree.
        nodes: MapleLayout,
    },
    /// A list in ascending order, beside a red-black tree of the same (to 6.0).
    List {
        /// `mmap`.
        first: Field,
        /// `vm_area_struct.vm_next`.
        next: Field,
    },
}

impl MmLayout {
    pub(super) fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let mm = Structure::named(btf, "mm_struct")?;
        let vmas = match mm.optional("mm_mt.ma_root") {
            Some(root) => VmaStore::Maple { root, nodes: MapleLayout::resolve(btf)? },
            None => {
                let next = Structure::named(btf, "vm_area_struct")?.field("vm_next")?;
                VmaStore::List { first: mm.any(&["mmap", "mm_mt.ma_root"])?, next }
            }
        };
        Ok(Self {
            pgd: mm.field("pgd")?,
            start_brk: mm.field("start_brk")?,
            brk: mm.field("brk")?,
            start_stack: mm.field("start_stack")?,
            arg_start: mm.field("arg_start")?,
            arg_end: mm.field("arg_end")?,
            env_start: mm.field("env_start")?,
            env_end: mm.field("env_end")?,
            context_flags: mm.optional("context.flags"),
            vmas,
        })
    }
}

impl<'m> Guest<'m> {
    /// The memory that a process sees, by the page table of its `mm_struct`. Pages that are resident while the
    /// processor must not reach them (`PROT_NONE`, NUMA hinting) are readable; swapped ones are faults.
    ///
    /// # Errors
    /// The fault that kept the page table from being found.
    pub fn user_space(&self, layout: &MmLayout, mm: Gva) -> Result<AddressSpace<'m>, Fault> {
        let pgd = layout.pgd.pointer(self.space(), mm)?;
        let root = self.space().translate(pgd)?.gpa;
        Ok(AddressSpace::new(self.memory(), root, self.space().levels()).with_inaccessible())
    }

    /// Addresses of the `vm_area_struct`s of an address space, in ascending order of what they cover.
    pub fn vma_addresses(&self, layout: &MmLayout, mm: Gva) -> Walk<Gva> {
        let mut walk = Walk::default();
        match &layout.vmas {
            VmaStore::Maple { root, nodes } => match root.read(self.space(), mm) {
                Ok(root) => return nodes.walk(self.space(), root),
                Err(fault) => walk.fault(fault),
            },
            VmaStore::List { first, next } => {
                if let Err(fault) = self.follow_vmas(*first, *next, mm, &mut walk.items) {
                    walk.fault(fault);
                }
            }
        }
        walk
    }

    fn follow_vmas(&self, first: Field, next: Field, mm: Gva, vmas: &mut Vec<Gva>) -> Result<(), Fault> {
        let mut seen = Seen::new("VMA list", MAX_VMAS);
        let mut link = first.pointer_or_null(self.space(), mm)?;
        while let Some(vma) = link {
            seen.enter(vma)?;
            link = next.pointer_or_null(self.space(), vma)?;
            vmas.push(vma);
        }
        Ok(())
    }
}
