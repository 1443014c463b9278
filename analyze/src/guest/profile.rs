//! The symbols and types of one kernel build.

use std::sync::{Mutex, PoisonError};

use varve_formats::symbols::btf::Btf;
use varve_formats::symbols::kallsyms::{Hints, Kallsyms, Symbol, Table};
use varve_formats::symbols::{KERNEL_IMAGE_BYTES, KERNEL_MAP};
use varve_formats::{Fault, Gva, PAGE_SIZE, VirtualMemory};

use super::error::{Failure, Reason, Step};
use super::place::{Placement, relocate};
use super::sections::{self, Sections};
use crate::linux::{GuestString, Layouts};
use crate::paging::AddressSpace;

/// Bytes of a banner at most. The kernel prints it in one line of its log, which holds 1,024.
const MAX_BANNER_BYTES: usize = 1024;
/// The name under which BTF stands among the kallsyms tables.
const BTF_SECTION: &str = "BTF";

/// BLAKE3 of the bytes that symbols and types come from. Equal for every boot of a kernel build, wherever KASLR puts it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Digests {
    /// Of the kallsyms tables, with addresses as they are without KASLR.
    pub kallsyms: [u8; 32],
    /// Of the BTF section.
    pub btf: [u8; 32],
}

/// The symbols, types and layouts of one kernel build: parsed once, shared by all epochs and boots.
#[derive(Debug)]
pub struct Profile {
    kallsyms: Kallsyms,
    btf: Btf,
    layouts: Layouts,
    /// Where KASLR had put the kernel when the symbols were decoded.
    kernel_offset: u64,
    banner: GuestString,
    banner_at: Gva,
    btf_at: Gva,
    digests: Digests,
    /// What the symbols were read from.
    sections: Sections,
    /// The pages that were found unchanged last.
    unchanged: Mutex<Option<Pages>>,
}

/// The pages that hold what a kernel says about itself.
#[derive(Debug, PartialEq, Eq)]
struct Pages {
    kernel_offset: u64,
    /// What the archive calls their contents ([`PhysicalMemory::page_identity`](varve_formats::PhysicalMemory)).
    identities: Vec<u64>,
}

impl Profile {
    /// Reads symbols and types out of the kernel at `placement`, whose memory is `memory`.
    pub(super) fn read(
        memory: &dyn VirtualMemory,
        placement: &Placement,
        hints: &Hints,
    ) -> Result<Self, Failure> {
        let fail = |step, reason: Reason| Failure { step, reason };
        let kallsyms =
            Kallsyms::decode(memory, hints).map_err(|error| fail(Step::Kallsyms, Reason::Kallsyms(error)))?;
        let banner_at = kallsyms
            .address("linux_banner")
            .ok_or_else(|| fail(Step::Banner, Reason::NoSymbol("linux_banner")))?;
        let banner = GuestString::read(memory, banner_at, MAX_BANNER_BYTES)
            .map_err(|fault| fail(Step::Banner, Reason::Fault(fault)))?;
        let (btf_at, btf) = match Btf::locate(memory, &kallsyms) {
            Ok(found) => found,
            // A symbol of the section is gone or wrong: the blob may be where it was.
            Err(error) => Btf::search(
                memory,
                Gva(KERNEL_MAP.0.wrapping_add(placement.kernel_offset)),
                KERNEL_IMAGE_BYTES,
            )
            .ok_or_else(|| fail(Step::Btf, Reason::Btf(error.into())))?,
        };
        let layouts = Layouts::resolve(&btf);
        if let Err(missing) = &layouts.task {
            return Err(fail(Step::Layouts, Reason::Missing(missing.clone())));
        }
        let kernel_offset = placement.kernel_offset;
        let sections = Sections::read(memory, kallsyms.tables(), kernel_offset)
            .map_err(|fault| fail(Step::Kallsyms, Reason::Fault(fault)))?;
        let digests = Digests { kallsyms: sections.digest(), btf: *blake3::hash(btf.bytes()).as_bytes() };
        let unchanged = Mutex::new(None);
        Ok(Self {
            kallsyms,
            btf,
            layouts,
            kernel_offset,
            banner,
            banner_at,
            btf_at,
            digests,
            sections,
            unchanged,
        })
    }

    /// The symbols, with addresses as they were when they were decoded: see [`Guest::symbol`](super::Guest::symbol).
    pub fn kallsyms(&self) -> &Kallsyms {
        &self.kallsyms
    }

    /// The types.
    pub fn btf(&self) -> &Btf {
        &self.btf
    }

    /// Where the members are of the structures that this crate reads.
    pub fn layouts(&self) -> &Layouts {
        &self.layouts
    }

    /// The kernel's name for itself: `Linux version …`, as in `/proc/version`.
    pub fn banner(&self) -> &GuestString {
        &self.banner
    }

    /// Digests of what symbols and types were read from.
    pub fn digests(&self) -> Digests {
        self.digests
    }

    /// How far KASLR had moved the kernel when the symbols were decoded, in bytes.
    pub fn kernel_offset(&self) -> u64 {
        self.kernel_offset
    }

    /// The address of `linux_banner` in a kernel that KASLR moved by `kernel_offset`.
    pub(super) fn banner_at(&self, kernel_offset: u64) -> Gva {
        relocate(self.banner_at, self.kernel_offset, kernel_offset)
    }

    /// The address of a symbol in a kernel that KASLR moved by `kernel_offset`.
    pub(super) fn address(&self, name: &str, kernel_offset: u64) -> Option<Gva> {
        self.kallsyms.address(name).map(|at| relocate(at, self.kernel_offset, kernel_offset))
    }

    /// The symbol that `address` lies in, of a kernel that KASLR moved by `kernel_offset`, and the offset from it.
    pub(super) fn containing(&self, address: Gva, kernel_offset: u64) -> Option<(Symbol<'_>, u64)> {
        let (symbol, offset) =
            self.kallsyms.containing(relocate(address, kernel_offset, self.kernel_offset))?;
        Some((
            Symbol { address: relocate(symbol.address, self.kernel_offset, kernel_offset), ..symbol },
            offset,
        ))
    }

    /// Whether the kernel at `placement` has the banner of this build.
    pub(super) fn has_banner(&self, memory: &dyn VirtualMemory, kernel_offset: u64) -> bool {
        let at = self.banner_at(kernel_offset);
        GuestString::read(memory, at, MAX_BANNER_BYTES).is_ok_and(|banner| banner == self.banner)
    }

    /// Compares what symbols and types were read from with what is there now. Pages whose contents the archive calls as
    /// they were called when they were last found unchanged are not read.
    ///
    /// # Errors
    /// The first fault met: nothing is then known.
    pub(super) fn compare(&self, space: &AddressSpace<'_>, kernel_offset: u64) -> Result<Comparison, Fault> {
        let mut same = Comparison::SAME;
        let pages = self.pages(space, kernel_offset);
        if pages.is_some() && *self.unchanged.lock().unwrap_or_else(PoisonError::into_inner) == pages {
            return Ok(same);
        }
        for (table, bytes) in self.described() {
            let table = Table { start: relocate(table.start, self.kernel_offset, kernel_offset), ..table };
            let equal = sections::equals(space, &table, kernel_offset, bytes)?;
            if table.name == BTF_SECTION { same.btf &= equal } else { same.kallsyms &= equal }
        }
        if same == Comparison::SAME && pages.is_some() {
            *self.unchanged.lock().unwrap_or_else(PoisonError::into_inner) = pages;
        }
        Ok(same)
    }

    /// Where the kernel describes itself, and the bytes that were there.
    fn described(&self) -> impl Iterator<Item = (Table, &[u8])> {
        let btf = Table { name: BTF_SECTION, start: self.btf_at, len: self.btf.bytes().len() as u64 };
        self.sections.iter().chain([(btf, self.btf.bytes())])
    }

    /// The pages that hold what the kernel says about itself. `None` where memory cannot name their contents.
    fn pages(&self, space: &AddressSpace<'_>, kernel_offset: u64) -> Option<Pages> {
        let mut identities = Vec::new();
        for (table, _) in self.described() {
            let start = relocate(table.start, self.kernel_offset, kernel_offset);
            let end = start.checked_add(table.len)?;
            for page in (start.page_start().0..end.0).step_by(PAGE_SIZE) {
                let gfn = space.translate(Gva(page)).ok()?.gpa.gfn();
                identities.push(space.memory().page_identity(gfn)?);
            }
        }
        Some(Pages { kernel_offset, identities })
    }
}

/// Which of a kernel's own descriptions are as they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Comparison {
    pub(super) kallsyms: bool,
    pub(super) btf: bool,
}

impl Comparison {
    /// Nothing has changed.
    pub(super) const SAME: Self = Self { kallsyms: true, btf: true };
}
