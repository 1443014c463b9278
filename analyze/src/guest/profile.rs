//! The symbols and types of one kernel build.

use std::sync::{Mutex, PoisonError};

use varve_formats::symbols::btf::Btf;
use varve_formats::symbols::kallsyms::{Hints, Kallsyms, Symbol, Table};
use varve_formats::symbols::{KERNEL_IMAGE_BYTES, KERNEL_MAP};
use varve_formats::{Fault, Gva, PAGE_SIZE, VirtualMemory};

use super::error::{Failure, Reason, Step};
use super::place::{Placement, relocate};
use crate::linux::{GuestString, Layouts};
use crate::paging::AddressSpace;

/// Bytes of a banner at most. The kernel prints it in one line of its log, which holds 1,024.
const MAX_BANNER_BYTES: usize = 1024;
/// Compared or hashed at a time, in bytes; a multiple of 8.
const CHUNK_BYTES: usize = 64 << 10;

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
    digests: Digests,
    sections: Vec<Section>,
    /// The pages that were found unchanged last.
    unchanged: Mutex<Option<Pages>>,
}

/// The pages that the sections of a profile are in.
#[derive(Debug, PartialEq, Eq)]
struct Pages {
    kernel_offset: u64,
    /// What the archive calls their contents ([`PhysicalMemory::page_identity`](varve_formats::PhysicalMemory)).
    identities: Vec<u64>,
}

/// Bytes of the kernel image that symbols or types come from, as they were when they were parsed.
#[derive(Debug)]
struct Section {
    table: Table,
    /// Without KASLR, see [`without_kaslr`].
    bytes: Box<[u8]>,
}

/// The name under which BTF stands among the kallsyms tables.
const BTF_SECTION: &str = "BTF";

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
        let sections = sections(memory, &kallsyms, btf_at, &btf, placement.kernel_offset)
            .map_err(|fault| fail(Step::Kallsyms, Reason::Fault(fault)))?;
        let digests = Digests { kallsyms: digest(&sections, false), btf: digest(&sections, true) };
        let kernel_offset = placement.kernel_offset;
        let unchanged = Mutex::new(None);
        Ok(Self { kallsyms, btf, layouts, kernel_offset, banner, banner_at, digests, sections, unchanged })
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
        let mut same = Comparison { kallsyms: true, btf: true };
        let pages = self.pages(space, kernel_offset);
        if pages.is_some() && *self.unchanged.lock().unwrap_or_else(PoisonError::into_inner) == pages {
            return Ok(same);
        }
        for section in &self.sections {
            let equal = section.equals(space, self.kernel_offset, kernel_offset)?;
            match section.table.name {
                BTF_SECTION => same.btf &= equal,
                _ => same.kallsyms &= equal,
            }
        }
        if same.kallsyms && same.btf && pages.is_some() {
            *self.unchanged.lock().unwrap_or_else(PoisonError::into_inner) = pages;
        }
        Ok(same)
    }

    /// The pages that the sections are in. `None` where memory cannot name their contents.
    fn pages(&self, space: &AddressSpace<'_>, kernel_offset: u64) -> Option<Pages> {
        let mut identities = Vec::new();
        for section in &self.sections {
            let start = relocate(section.table.start, self.kernel_offset, kernel_offset);
            let end = start.checked_add(section.table.len)?;
            for page in (start.page_start().0..end.0).step_by(PAGE_SIZE) {
                let gfn = space.translate(Gva(page)).ok()?.gpa.gfn();
                identities.push(space.memory().page_identity(gfn)?);
            }
        }
        Some(Pages { kernel_offset, identities })
    }
}

impl Section {
    /// Whether the section of a kernel that KASLR moved by `to`, and not by `from` as when this was read, is the same.
    fn equals(&self, memory: &dyn VirtualMemory, from: u64, to: u64) -> Result<bool, Fault> {
        let table = Table { start: relocate(self.table.start, from, to), ..self.table };
        let mut rest = &*self.bytes;
        read_without_kaslr(memory, &table, to, |now| {
            let (before, later) = rest.split_at(now.len().min(rest.len()));
            rest = later;
            before == now
        })
    }
}

/// Which of a kernel's own descriptions are as they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Comparison {
    pub(super) kallsyms: bool,
    pub(super) btf: bool,
}

fn sections(
    memory: &dyn VirtualMemory,
    kallsyms: &Kallsyms,
    btf_at: Gva,
    btf: &Btf,
    kernel_offset: u64,
) -> Result<Vec<Section>, Fault> {
    let btf = Table { name: BTF_SECTION, start: btf_at, len: btf.bytes().len() as u64 };
    let tables = kallsyms.tables().iter().copied().chain([btf]);
    tables
        .map(|table| {
            let mut bytes = Vec::new();
            read_without_kaslr(memory, &table, kernel_offset, |chunk| {
                bytes.extend_from_slice(chunk);
                true
            })?;
            Ok(Section { table, bytes: bytes.into() })
        })
        .collect()
}

/// Hands the bytes of a table over in chunks, as they would be without KASLR, until `sink` says no. Returns whether it
/// never did.
fn read_without_kaslr(
    memory: &dyn VirtualMemory,
    table: &Table,
    kernel_offset: u64,
    mut sink: impl FnMut(&[u8]) -> bool,
) -> Result<bool, Fault> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut offset = 0;
    while offset < table.len {
        let len = usize::try_from(table.len - offset).map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES));
        let (chunk, _) = buffer.split_at_mut(len);
        memory.read(table.start.checked_add(offset).ok_or(Fault::Overflow { at: table.start.0 })?, chunk)?;
        without_kaslr(table.name, chunk, kernel_offset);
        if !sink(chunk) {
            return Ok(false);
        }
        offset += len as u64;
    }
    Ok(true)
}

/// Undoes what KASLR did to the two tables that hold whole addresses.
fn without_kaslr(table: &str, chunk: &mut [u8], kernel_offset: u64) {
    if !matches!(table, "addresses" | "relative_base") {
        return;
    }
    for word in chunk.as_chunks_mut::<8>().0 {
        *word = relocate(Gva(u64::from_le_bytes(*word)), kernel_offset, 0).0.to_le_bytes();
    }
}

/// Digest of the BTF section or of all other sections, each with its name and length.
fn digest(sections: &[Section], btf: bool) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for section in sections.iter().filter(|section| (section.table.name == BTF_SECTION) == btf) {
        hasher.update(section.table.name.as_bytes());
        hasher.update(&[0]);
        hasher.update(&section.table.len.to_le_bytes());
        hasher.update(&section.bytes);
    }
    *hasher.finalize().as_bytes()
}
