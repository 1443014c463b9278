//! Core files of Xen domains, as `xl dump-core` writes them: ELF files without program headers, whose sections hold the
//! pages and say which they are (`docs/misc/dump-core-format.txt` of Xen; written by `tools/libs/guest/xg_core.c`).
//!
//! ```text
//! .note.Xen      notes named "Xen": 0x2000001 magic, vCPUs, pages, page size (4 × u64); 0x2000003 format version (u64)
//! .xen_prstatus  the registers of each vCPU: struct vcpu_guest_context
//! .xen_pages     pages
//! .xen_pfn       of PVH and HVM domains: the frame of each page, u64
//! .xen_p2m       of PV domains: guest frame and machine frame of each page, 2 × u64
//! ```
//! Frames ascend; all ones means that the page is padding. Other sections are not needed.
//!
//! **A PV domain's addresses are machine addresses here.** Its page tables and its CR3 hold machine frames, which the file
//! does not translate as save streams do: only by machine frames can they be followed. What the guest itself calls a
//! physical address (its `struct page` indices, for example) is another number; the file's `.xen_p2m` relates the two, and
//! is not used.

use goblin::container::{Container, Ctx, Endian};
use goblin::elf::Elf;
use goblin::elf::header::{EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, ELFMAG, EM_X86_64, ET_CORE};
use goblin::elf::note::NoteDataIterator;
use goblin::elf::section_header::SectionHeader;

use super::segments::{MAX_SEGMENTS, Segment};
use super::{Contents, Format, Layout};
use crate::xen::pv_context::{self, Mode};
use crate::xen::u64_at;
use crate::{FormatError, Gfn, PAGE_SIZE};

/// The Xen core format. Before ELF cores in [`FORMATS`](super::FORMATS): it is one, of a kind that these refuse.
pub(super) static FORMAT: Format = Format { name: "xen-core", probe: has_sections_only, layout };

const CTX: Ctx = Ctx { container: Container::Big, le: Endian::Little };

/// Offsets in the ELF header.
const E_SHOFF: usize = 40;
const E_PHNUM: usize = 56;

/// `sizeof(Elf64_Shdr)`.
const SECTION_BYTES: u16 = 64;

/// Most bytes of notes looked at: they are 1384 bytes long.
const MAX_NOTE_BYTES: u64 = 1 << 20;

/// Most vCPUs of a domain (`MAX_VIRT_CPUS` of PV domains, the larger).
const MAX_VCPUS: u64 = 8192;

/// `XEN_ELFNOTE_DUMPCORE_HEADER`.
const NOTE_HEADER: u32 = 0x200_0001;
/// `XEN_ELFNOTE_DUMPCORE_FORMAT_VERSION`.
const NOTE_VERSION: u32 = 0x200_0003;

/// `XC_CORE_MAGIC`.
const MAGIC_PV: u64 = 0xf00f_ebed;
/// `XC_CORE_MAGIC_HVM`.
const MAGIC_HVM: u64 = 0xf00f_ebee;

/// `XC_CORE_INVALID_PFN`, `XC_CORE_INVALID_GMFN`.
const INVALID: u64 = u64::MAX;

fn has_sections_only(head: &[u8]) -> bool {
    let phnum = head.get(E_PHNUM..E_PHNUM + 2);
    head.starts_with(ELFMAG) && phnum == Some(&[0, 0]) && u64_at(head, E_SHOFF).is_some_and(|shoff| shoff > 0)
}

/// What the header note says.
struct Header {
    mode: Mode,
    vcpus: u64,
    pages: u64,
}

/// A part of the file, which is as long as it says.
#[derive(Clone, Copy)]
struct Section<'a> {
    at: u64,
    bytes: &'a [u8],
}

fn layout(file: &Contents<'_>) -> Result<Layout, FormatError> {
    let sections = Sections::read(file)?;
    let header = header(file, sections.find(".note.Xen")?)?;
    let pages = sections.find(".xen_pages")?;
    let is_pv = header.mode == Mode::Pv;
    // Of a pair the second number is the machine frame.
    let (table, entry, field) = if is_pv { (".xen_p2m", 16, 8) } else { (".xen_pfn", 8, 0) };
    let table = sections.find(table)?;
    let expected = |of: Section<'_>, each: u64| header.pages.checked_mul(each) == Some(of.bytes.len() as u64);
    if !expected(pages, PAGE_SIZE as u64) {
        return Err(
            file.error(pages.at, format!("the section of pages does not hold {} of them", header.pages))
        );
    }
    if !expected(table, entry) {
        return Err(
            file.error(table.at, format!("the table of frames does not have {} entries", header.pages))
        );
    }
    let frames =
        table.bytes.chunks_exact(entry as usize).map(|entry| u64_at(entry, field).unwrap_or(INVALID));
    let mut layout = Layout { segments: segments(file, frames, table, entry, pages)?, ..Layout::default() };
    match sections.find(".xen_prstatus") {
        Ok(contexts) => read_vcpus(file, contexts, &header, &mut layout),
        Err(missing) => layout.notices.push(missing),
    }
    Ok(layout)
}

/// The pages by frame, as runs that lie in one piece.
fn segments(
    file: &Contents<'_>,
    frames: impl Iterator<Item = u64>,
    table: Section<'_>,
    entry: u64,
    pages: Section<'_>,
) -> Result<Vec<Segment>, FormatError> {
    const PAGE: u64 = PAGE_SIZE as u64;
    let mut segments: Vec<Segment> = Vec::new();
    for (index, frame) in (0u64..).zip(frames).filter(|(_, frame)| *frame != INVALID) {
        let at = table.at + index * entry;
        let Some(start) = Gfn(frame).gpa() else {
            return Err(file.error(at, format!("frame {frame:#x} is past the 64-bit address space")));
        };
        let offset = pages.at + index * PAGE;
        let follows = |last: &&mut Segment| {
            last.start.checked_add(last.len) == Some(start) && last.offset + last.len == offset
        };
        if let Some(last) = segments.last_mut().filter(follows) {
            last.len += PAGE;
        } else if segments.len() < MAX_SEGMENTS {
            segments.push(Segment { start, len: PAGE, offset });
        } else {
            return Err(file.error(at, format!("frames in more than {MAX_SEGMENTS} pieces")));
        }
    }
    Ok(segments)
}

/// Takes the CPUs out of the section of registers. They are numbered as they stand: the file leaves out a vCPU that never
/// came up, and does not say which.
fn read_vcpus(file: &Contents<'_>, contexts: Section<'_>, header: &Header, layout: &mut Layout) {
    let bytes = contexts.bytes.len();
    if header.vcpus > MAX_VCPUS || header.vcpus * pv_context::BYTES as u64 != bytes as u64 {
        let reason = format!("{bytes} bytes of registers are not those of {} vCPUs of 64 bits", header.vcpus);
        layout.notices.push(file.error(contexts.at, reason));
        return;
    }
    let contexts = (0u32..).zip(contexts.bytes.chunks_exact(pv_context::BYTES));
    layout.vcpus =
        contexts.filter_map(|(index, context)| pv_context::vcpu(index, context, header.mode)).collect();
}

/// The header note. The format's version must be one that is known.
fn header(file: &Contents<'_>, section: Section<'_>) -> Result<Header, FormatError> {
    if section.bytes.len() as u64 > MAX_NOTE_BYTES {
        return Err(file.error(section.at, format!("notes of more than {MAX_NOTE_BYTES} bytes")));
    }
    let (mut header, mut version) = (None, None);
    let notes = NoteDataIterator { data: section.bytes, size: section.bytes.len(), offset: 0, ctx: (4, CTX) };
    for note in notes {
        let note = note.map_err(|_| file.error(section.at, "a note is cut off or its name is not text"))?;
        match note.n_type {
            NOTE_HEADER if note.name == "Xen" => header = Some(note.desc),
            NOTE_VERSION if note.name == "Xen" => version = u64_at(note.desc, 0),
            _ => {}
        }
    }
    // Major version above, minor below: that may grow.
    if version.is_none_or(|version| version >> 32 != 0) {
        let version = version.map_or("none".to_owned(), |version| format!("{version:#x}"));
        return Err(file.error(section.at, format!("version {version} of Xen's core format, not 0.1")));
    }
    let field = |at| header.and_then(|desc| u64_at(desc, at));
    let (Some(magic), Some(vcpus), Some(pages), Some(page_size)) = (field(0), field(8), field(16), field(24))
    else {
        return Err(
            file.error(section.at, "the note that says how many pages there are is missing or too short")
        );
    };
    let mode = match magic {
        MAGIC_PV => Mode::Pv,
        MAGIC_HVM => Mode::Hvm,
        _ => return Err(file.error(section.at, format!("{magic:#x} is no kind of Xen domain"))),
    };
    if page_size != PAGE_SIZE as u64 {
        return Err(file.error(section.at, format!("pages of {page_size} bytes, not {PAGE_SIZE}")));
    }
    Ok(Header { mode, vcpus, pages })
}

/// The sections of the file and their names.
struct Sections<'a, 'f> {
    file: &'f Contents<'a>,
    headers: Vec<SectionHeader>,
    names: &'a [u8],
}

impl<'a, 'f> Sections<'a, 'f> {
    fn read(file: &'f Contents<'a>) -> Result<Self, FormatError> {
        let bad = |at, reason: &str| file.error(at, reason);
        let header =
            Elf::parse_header(file.bytes()).map_err(|error| bad(0, &format!("bad ELF header: {error}")))?;
        let ident = |index: usize| header.e_ident.get(index).copied().unwrap_or(0);
        if ident(EI_CLASS) != ELFCLASS64 || ident(EI_DATA) != ELFDATA2LSB || header.e_machine != EM_X86_64 {
            return Err(bad(EI_CLASS as u64, "not a 64-bit x86-64 ELF file"));
        }
        if header.e_type != ET_CORE {
            return Err(bad(0x10, &format!("ELF type {} is not a core file (4)", header.e_type)));
        }
        if header.e_shentsize != SECTION_BYTES {
            let reason = format!("section headers of {} bytes, not {SECTION_BYTES}", header.e_shentsize);
            return Err(bad(0x3a, &reason));
        }
        let len = u64::from(header.e_shnum) * u64::from(SECTION_BYTES);
        let table = file.slice(header.e_shoff, len);
        let table =
            table.ok_or_else(|| bad(header.e_shoff, "the table of sections is cut off: truncated?"))?;
        let headers = SectionHeader::parse_from(table, 0, header.e_shnum.into(), CTX)
            .map_err(|error| bad(header.e_shoff, &format!("bad section header table: {error}")))?;
        let names = headers.get(usize::from(header.e_shstrndx));
        let names = names.and_then(|names| file.slice(names.sh_offset, names.sh_size));
        let names = names.ok_or_else(|| {
            bad(header.e_shoff, "the names of the sections, which stand at the end, are missing: truncated?")
        })?;
        Ok(Self { file, headers, names })
    }

    fn find(&self, name: &str) -> Result<Section<'a>, FormatError> {
        let is_named = |header: &&SectionHeader| {
            let rest = self.names.get(header.sh_name..).and_then(|rest| rest.strip_prefix(name.as_bytes()));
            rest.is_some_and(|rest| rest.first() == Some(&0))
        };
        let Some(header) = self.headers.iter().find(is_named) else {
            return Err(self.file.error(0, format!("no section {name}: no core of a Xen domain")));
        };
        let at = header.sh_offset;
        let bytes = self.file.slice(at, header.sh_size);
        let bytes = bytes.ok_or_else(|| {
            self.file.error(at, format!("section {name} reaches past the end of the file: truncated?"))
        })?;
        Ok(Section { at, bytes })
    }
}
