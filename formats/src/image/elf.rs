//! ELF core files of whole guests (vmcores), as QEMU's `dump-guest-memory` and `virsh dump --memory-only` write them.
//!
//! Each `PT_LOAD` segment holds guest physical memory from `p_paddr` on. Only its `p_filesz` bytes count: what a
//! filtered dump left out was not captured, which is not the same as zero. A file with 0xffff (`PN_XNUM`) or more
//! program headers has the true number in `sh_info` of section header 0 (`dump/dump.c`, `write_elf_section`). The
//! CPUs are in notes: see [`qemu_note`].
//!
//! goblin does the parsing, header by header; its whole-file `Elf::parse` would also read tables we do not need.

use goblin::container::{Container, Ctx, Endian};
use goblin::elf::Elf;
use goblin::elf::header::{EI_CLASS, EI_DATA, ELFCLASS64, ELFDATA2LSB, ELFMAG, EM_X86_64, ET_CORE, Header};
use goblin::elf::note::NoteDataIterator;
use goblin::elf::program_header::{PT_LOAD, PT_NOTE, ProgramHeader};
use goblin::elf::section_header::SectionHeader;

use super::segments::{MAX_SEGMENTS, Segment};
use super::{Contents, Format, Layout, qemu_note};
use crate::{FormatError, Gpa};

/// The ELF core format.
pub(super) static FORMAT: Format = Format { name: "elf", probe: |head| head.starts_with(ELFMAG), layout };

const CTX: Ctx = Ctx { container: Container::Big, le: Endian::Little };

/// `PN_XNUM`: "more program headers than fit here".
const PN_XNUM: u16 = 0xffff;

/// `sizeof(Elf64_Phdr)`.
const PHDR_BYTES: u16 = 56;

/// Most bytes of notes looked at. A CPU takes under 1 KiB, and QEMU itself bounds a guest's own note to 1 MiB.
const MAX_NOTE_BYTES: u64 = 16 << 20;

fn layout(file: &Contents<'_>) -> Result<Layout, FormatError> {
    let headers = program_headers(file)?;
    let mut layout = Layout::default();
    for header in &headers {
        match header.p_type {
            PT_LOAD if header.p_filesz > 0 => layout.segments.push(Segment {
                start: Gpa(header.p_paddr),
                len: header.p_filesz,
                offset: header.p_offset,
            }),
            PT_NOTE => read_notes(file, header, &mut layout),
            _ => {}
        }
    }
    let all_at_zero = layout.segments.iter().all(|segment| segment.start == Gpa(0));
    if layout.segments.len() > 1 && all_at_zero {
        return Err(file.error(0, "has no physical addresses: the core of a process, not of a guest?"));
    }
    if layout.segments.is_empty() {
        return Err(file.error(0, "an ELF file without PT_LOAD segments is not supported"));
    }
    Ok(layout)
}

fn program_headers(file: &Contents<'_>) -> Result<Vec<ProgramHeader>, FormatError> {
    let header = file_header(file)?;
    let count = program_header_count(file, &header)?;
    if count > MAX_SEGMENTS {
        return Err(file.error(0x38, format!("{count} program headers, more than {MAX_SEGMENTS}")));
    }
    if header.e_phentsize != PHDR_BYTES {
        return Err(
            file.error(0x36, format!("program headers of {} bytes, not {PHDR_BYTES}", header.e_phentsize))
        );
    }
    // The table's end is checked before goblin allocates for it.
    let table = (count as u64).checked_mul(PHDR_BYTES.into()).and_then(|len| file.slice(header.e_phoff, len));
    let Some(table) = table else {
        let reason =
            format!("a table of {count} program headers reaches past the end of the file: truncated?");
        return Err(file.error(header.e_phoff, reason));
    };
    ProgramHeader::parse(table, 0, count, CTX)
        .map_err(|error| file.error(header.e_phoff, format!("bad program header table: {error}")))
}

fn file_header(file: &Contents<'_>) -> Result<Header, FormatError> {
    let header =
        Elf::parse_header(file.bytes()).map_err(|error| file.error(0, format!("bad ELF header: {error}")))?;
    let ident = |index: usize| header.e_ident.get(index).copied().unwrap_or(0);
    if ident(EI_CLASS) != ELFCLASS64 || ident(EI_DATA) != ELFDATA2LSB {
        let reason = "not a 64-bit little-endian ELF file (a guest dumped before it entered long mode?)";
        return Err(file.error(EI_CLASS as u64, reason));
    }
    if header.e_type != ET_CORE {
        return Err(file.error(0x10, format!("ELF type {} is not a core file (4)", header.e_type)));
    }
    if header.e_machine != EM_X86_64 {
        return Err(file.error(0x12, format!("ELF machine {} is not x86-64 (62)", header.e_machine)));
    }
    Ok(header)
}

fn program_header_count(file: &Contents<'_>, header: &Header) -> Result<usize, FormatError> {
    if header.e_phnum != PN_XNUM {
        return Ok(header.e_phnum.into());
    }
    let at = header.e_shoff;
    let section = file
        .slice(at, SectionHeader::size(CTX) as u64)
        .filter(|_| at > 0)
        .and_then(|bytes| SectionHeader::parse_from(bytes, 0, 1, CTX).ok())
        .and_then(|sections| sections.last().map(|section| section.sh_info));
    match section {
        Some(count) if count >= PN_XNUM.into() => Ok(count as usize),
        Some(count) => {
            Err(file
                .error(at, format!("section header 0 says {count} program headers, the file header more")))
        }
        None => Err(file
            .error(at, "section header 0, which counts the program headers, is not in the file: truncated?")),
    }
}

/// Takes the CPUs out of a note segment. The guest may have written the last note itself (QEMU copies a
/// `VMCOREINFO` note out of its memory), so bad notes cost their contents and are reported, not the whole image.
fn read_notes(file: &Contents<'_>, header: &ProgramHeader, layout: &mut Layout) {
    let at = header.p_offset;
    let Some(bytes) = file.slice(at, header.p_filesz).filter(|_| header.p_filesz <= MAX_NOTE_BYTES) else {
        layout
            .notices
            .push(file.error(at, format!("notes of {:#x} bytes are not readable", header.p_filesz)));
        return;
    };
    let mut notes = NoteDataIterator { data: bytes, size: bytes.len(), offset: 0, ctx: (4, CTX) };
    loop {
        let note_at = at.saturating_add(notes.offset as u64);
        match notes.next() {
            Some(Ok(note)) if note.name == qemu_note::NAME => {
                match qemu_note::parse(note.desc, layout.vcpus.len()) {
                    Some(vcpu) => layout.vcpus.push(vcpu),
                    None => layout
                        .notices
                        .push(file.error(note_at, "a QEMU CPU note is of an unknown version or too short")),
                }
            }
            Some(Ok(_)) => {}
            Some(Err(_)) => {
                layout
                    .notices
                    .push(file.error(note_at, "a note is cut off or its name is not text: no more are read"));
            }
            None => return,
        }
    }
}
