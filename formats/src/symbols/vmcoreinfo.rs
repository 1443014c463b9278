//! VMCOREINFO: the note in which a kernel tells crash tools where it is.
//!
//! `kernel/vmcore_info.c` (`kernel/crash_core.c` before 6.9) keeps it as one page of `KEY=value` lines that begins
//! with `OSRELEASE=`. Symbols and `KERNELOFFSET` are hexadecimal without a prefix, numbers are decimal and signed or
//! hexadecimal with `0x`. The build id in it is wrong on some stable kernels.

use crate::{Fault, Gpa, Gva, PAGE_SIZE, PhysicalMemory, Region};

/// The first bytes of the note's page.
const MAGIC: &[u8] = b"OSRELEASE=";

/// Notes that [`VmCoreInfo::find_all`] returns at most. A machine holds one, or two with a crash kernel loaded.
pub const MAX_NOTES: usize = 1024;

/// The parsed note of one kernel. All of it was written by the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmCoreInfo {
    text: String,
}

impl VmCoreInfo {
    /// Parses the page of the note: at most [`PAGE_SIZE`] bytes, up to the first NUL. `None` when it does not begin as
    /// the note does. Bytes that are not UTF-8 become U+FFFD.
    pub fn parse(page: &[u8]) -> Option<Self> {
        if !page.starts_with(MAGIC) {
            return None;
        }
        let page = page.get(..PAGE_SIZE).unwrap_or(page);
        let text = page.split(|byte| *byte == 0).next()?;
        Some(Self { text: String::from_utf8_lossy(text).into_owned() })
    }

    /// Every note in `memory`, with its address, in ascending order and at most [`MAX_NOTES`]. More than one is
    /// ordinary (a crash kernel, a copy in the page cache) or hostile: the caller has to try which one describes the
    /// running kernel. Frames that cannot be read are passed over.
    pub fn find_all(memory: &dyn PhysicalMemory) -> Vec<(Gpa, Self)> {
        memory.regions().iter().flat_map(|region| Self::find_in(memory, *region)).take(MAX_NOTES).collect()
    }

    /// The notes in one part of `memory`, so that parts can be searched side by side.
    pub fn find_in(memory: &dyn PhysicalMemory, part: Region) -> impl Iterator<Item = (Gpa, Self)> {
        let frames = 0..part.len / PAGE_SIZE as u64;
        frames
            .map_while(move |frame| part.start.checked_add(frame * PAGE_SIZE as u64))
            .filter_map(|at| Self::at(memory, at).ok().flatten().map(|note| (at, note)))
    }

    /// The note whose page begins at `at`, if there is one.
    ///
    /// # Errors
    /// The fault that stopped the read.
    pub fn at(memory: &dyn PhysicalMemory, at: Gpa) -> Result<Option<Self>, Fault> {
        let mut start = [0; MAGIC.len()];
        memory.read(at, &mut start)?;
        if start != MAGIC {
            return Ok(None);
        }
        let mut page = [0; PAGE_SIZE];
        memory.read(at, &mut page)?;
        Ok(Self::parse(&page))
    }

    /// The note as text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The lines as keys and values, in the order of the note.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &str)> {
        self.text.lines().filter_map(|line| line.split_once('='))
    }

    /// The value of the first line with this key, for instance `PAGESIZE` or `SYMBOL(_stext)`.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.entries().find(|entry| entry.0 == key).map(|entry| entry.1)
    }

    /// The kernel release, as `uname -r` prints it.
    pub fn osrelease(&self) -> &str {
        self.value("OSRELEASE").unwrap_or_default()
    }

    /// The build id in hexadecimal. Wrong on some stable kernels: a hint, not an identity.
    pub fn build_id(&self) -> Option<&str> {
        self.value("BUILD-ID")
    }

    /// `SYMBOL(name)`: the run-time address of a kernel symbol.
    pub fn symbol(&self, name: &str) -> Option<Gva> {
        parse_hex(self.named("SYMBOL", name)?).map(Gva)
    }

    /// `NUMBER(name)`: a kernel constant or variable at the time the note was written.
    pub fn number(&self, name: &str) -> Option<i64> {
        parse_number(self.named("NUMBER", name)?)
    }

    /// `OFFSET(structure.member)`, in bytes.
    pub fn offset(&self, structure: &str, member: &str) -> Option<u64> {
        self.named("OFFSET", &format!("{structure}.{member}"))?.parse().ok()
    }

    /// `SIZE(structure)`, in bytes.
    pub fn size(&self, structure: &str) -> Option<u64> {
        self.named("SIZE", structure)?.parse().ok()
    }

    /// `LENGTH(array)`, in elements.
    pub fn length(&self, array: &str) -> Option<u64> {
        self.named("LENGTH", array)?.parse().ok()
    }

    /// `KERNELOFFSET`: how far KASLR moved the kernel's virtual addresses, in bytes.
    pub fn kernel_offset(&self) -> Option<u64> {
        parse_hex(self.value("KERNELOFFSET")?)
    }

    /// `NUMBER(phys_base)`: physical address of the kernel image minus its offset in the kernel map, in bytes; negative
    /// when the image was moved further in virtual than in physical memory.
    pub fn phys_base(&self) -> Option<i64> {
        self.number("phys_base")
    }

    /// `SYMBOL(swapper_pg_dir)`: virtual address of the kernel's page table root.
    pub fn swapper_pg_dir(&self) -> Option<Gva> {
        self.symbol("swapper_pg_dir")
    }

    /// Whether the kernel uses 5-level paging. `None` where the kernel does not say.
    pub fn five_level_paging(&self) -> Option<bool> {
        self.number("pgtable_l5_enabled").map(|enabled| enabled != 0)
    }

    fn named(&self, kind: &str, name: &str) -> Option<&str> {
        self.entries()
            .find(|(key, _)| {
                key.strip_prefix(kind)
                    .and_then(|rest| rest.strip_prefix('(')?.strip_suffix(')'))
                    .is_some_and(|inner| inner == name)
            })
            .map(|entry| entry.1)
    }
}

fn parse_hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok()
}

fn parse_number(text: &str) -> Option<i64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok().map(u64::cast_signed),
        None => text.parse().ok(),
    }
}
