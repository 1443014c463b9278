//! Places where a kernel may be.

use varve_formats::symbols::kallsyms::Hints;
use varve_formats::symbols::vmcoreinfo::VmCoreInfo;
use varve_formats::symbols::{KERNEL_MAP, LinearMap};
use varve_formats::{Gpa, Gva, PhysicalMemory, Vcpu};

use super::error::{Failure, Origin, Reason, Step};
use super::pin::Pin;
use super::place::Placement;
use crate::paging::{AddressSpace, Levels};

/// `CR4.LA57`: 5-level paging.
const LA57: u64 = 1 << 12;

/// A place where a kernel may be, and what is said about it.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) origin: Origin,
    pub(super) placement: Placement,
    /// Where its symbol table may be.
    pub(super) hints: Hints,
    /// Its release, as VMCOREINFO has it.
    pub(super) release: Option<String>,
    /// Where its VMCOREINFO is.
    pub(super) note: Option<Gpa>,
}

impl Candidate {
    /// The kernel that VMCOREINFO at `at` describes. Nothing of it is believed before the kernel found there agrees.
    pub(super) fn from_note(
        memory: &dyn PhysicalMemory,
        vcpus: &[Vcpu],
        at: Gpa,
        note: &VmCoreInfo,
    ) -> Result<Self, Failure> {
        let missing = |value| Failure { step: Step::Location, reason: Reason::NoValue(value) };
        let phys_base = note.phys_base().ok_or_else(|| missing("NUMBER(phys_base)"))?;
        let table = note.swapper_pg_dir().or_else(|| note.symbol("init_top_pgt"));
        let table = table.and_then(|table| LinearMap::new(memory, phys_base).translate(table));
        let five = note.five_level_paging().unwrap_or_else(|| vcpus.iter().any(|vcpu| vcpu.cr4 & LA57 != 0));
        Ok(Self {
            origin: Origin::Note(at),
            placement: Placement {
                kernel_offset: note.kernel_offset().ok_or_else(|| missing("KERNELOFFSET"))?,
                phys_base,
                root: table.ok_or_else(|| missing("usable SYMBOL(swapper_pg_dir)"))?,
                levels: if five { Levels::Five } else { Levels::Four },
            },
            hints: Hints::from_vmcoreinfo(note),
            release: Some(note.osrelease().to_owned()),
            note: Some(at),
        })
    }

    /// The kernel that a pin describes, if a kernel with its banner is still there.
    pub(super) fn from_pin(memory: &dyn PhysicalMemory, pin: &Pin) -> Option<Self> {
        let space = pin.placement.space(memory);
        if !pin.has_banner(&space) {
            return None;
        }
        let note = pin.note.and_then(|at| VmCoreInfo::at(memory, at).ok().flatten());
        let hints = match &note {
            Some(note) => Hints::from_vmcoreinfo(note),
            None => image_hints(Gva(DEFAULT_TEXT.0.wrapping_add(pin.placement.kernel_offset))),
        };
        Some(Self {
            origin: Origin::Pin,
            placement: pin.placement,
            hints,
            release: note.map(|note| note.osrelease().to_owned()),
            note: pin.note,
        })
    }

    /// The kernel image that a page table maps.
    pub(super) fn from_table(
        memory: &dyn PhysicalMemory,
        origin: Origin,
        root: Gpa,
        levels: Levels,
    ) -> Option<Self> {
        let space = AddressSpace::new(memory, root, levels);
        let image = space.mappings(KERNEL_MAP, LAST_IMAGE_ADDRESS).find_map(Result::ok)?;
        let offset = image.gva.offset_from(KERNEL_MAP)?;
        Some(Self {
            origin,
            placement: Placement {
                // Everything in front of `_text` is unmapped during boot (`cleanup_highmap`).
                kernel_offset: image.gva.offset_from(DEFAULT_TEXT)?,
                phys_base: image.gpa.0.cast_signed().checked_sub_unsigned(offset)?,
                root,
                levels,
            },
            hints: image_hints(image.gva),
            release: None,
            note: None,
        })
    }
}

/// `_text` without KASLR: the begin of the kernel map and `CONFIG_PHYSICAL_START`, 16 MiB unless configured otherwise.
const DEFAULT_TEXT: Gva = Gva(0xffff_ffff_8100_0000);

/// The last address where a kernel image can be; modules follow.
const LAST_IMAGE_ADDRESS: Gva = Gva(0xffff_ffff_bfff_ffff);

/// Bytes from `_text` on in which the symbol table is searched. The kernel image is far smaller.
const SEARCH_BYTES: u64 = 256 << 20;

fn image_hints(text: Gva) -> Hints {
    Hints { window: Some((text, SEARCH_BYTES)), ..Hints::default() }
}
