//! Builds image files from the formats' specifications, sharing no code with the readers.

use std::path::PathBuf;

use tempfile::TempDir;

pub(crate) const PAGE: usize = 4096;

/// A file in a directory of its own, which goes when this goes.
pub(crate) struct Scratch {
    _directory: TempDir,
    pub(crate) path: PathBuf,
}

pub(crate) fn file(bytes: &[u8]) -> Scratch {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    std::fs::write(&path, bytes).unwrap();
    Scratch { _directory: directory, path }
}

/// `pages` pages that differ from each other and, through `salt`, from those of other calls.
pub(crate) fn pages(salt: u8, pages: usize) -> Vec<u8> {
    (0..pages * PAGE).map(|at| (at / PAGE) as u8 ^ salt ^ (at as u8).wrapping_mul(31) | 1).collect()
}

/// A LiME file with these ranges.
pub(crate) fn lime(ranges: &[(u64, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (start, bytes) in ranges {
        lime_header(&mut out, *start, start + bytes.len() as u64 - 1);
        out.extend_from_slice(bytes);
    }
    out
}

pub(crate) fn lime_header(out: &mut Vec<u8>, first: u64, last: u64) {
    out.extend(b"EMiL");
    out.extend(1u32.to_le_bytes());
    out.extend(first.to_le_bytes());
    out.extend(last.to_le_bytes());
    out.extend([0; 8]);
}

/// A program header. `vaddr` is zero and `memsz` equals `filesz`, which the reader must not care about.
#[derive(Clone, Copy)]
pub(crate) struct Phdr {
    pub(crate) kind: u32,
    pub(crate) offset: u64,
    pub(crate) paddr: u64,
    pub(crate) filesz: u64,
}

pub(crate) const PT_LOAD: u32 = 1;
pub(crate) const PT_NOTE: u32 = 4;

/// The ELF and program headers of a core file, with section header 0 behind them when `phdrs` are too many for
/// `e_phnum`.
pub(crate) fn elf_headers(phdrs: &[Phdr]) -> Vec<u8> {
    let many = phdrs.len() >= 0xffff;
    let phnum = phdrs.len().min(0xffff) as u16;
    let shoff = if many { 64 + 56 * phdrs.len() as u64 } else { 0 };
    let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    out.extend(4u16.to_le_bytes()); // ET_CORE
    out.extend(62u16.to_le_bytes()); // EM_X86_64
    out.extend(1u32.to_le_bytes());
    out.extend(0u64.to_le_bytes()); // e_entry
    out.extend(64u64.to_le_bytes()); // e_phoff
    out.extend(shoff.to_le_bytes());
    out.extend(0u32.to_le_bytes()); // e_flags
    for half in [64, 56, phnum, if many { 64 } else { 0 }, u16::from(many), 0] {
        out.extend(half.to_le_bytes());
    }
    for phdr in phdrs {
        out.extend(phdr.kind.to_le_bytes());
        out.extend(0u32.to_le_bytes()); // p_flags
        for field in [phdr.offset, 0, phdr.paddr, phdr.filesz, phdr.filesz, 0] {
            out.extend(field.to_le_bytes());
        }
    }
    if many {
        let mut section = [0; 64];
        section[44..48].copy_from_slice(&(phdrs.len() as u32).to_le_bytes()); // sh_info
        out.extend(section);
    }
    out
}

/// A core file with `notes` and these segments of memory.
pub(crate) fn elf(notes: &[u8], segments: &[(u64, &[u8])]) -> Vec<u8> {
    let mut at = 64 + 56 * (segments.len() as u64 + 1);
    let mut phdrs = vec![Phdr { kind: PT_NOTE, offset: at, paddr: 0, filesz: notes.len() as u64 }];
    at += notes.len() as u64;
    for (paddr, bytes) in segments {
        phdrs.push(Phdr { kind: PT_LOAD, offset: at, paddr: *paddr, filesz: bytes.len() as u64 });
        at += bytes.len() as u64;
    }
    let mut out = elf_headers(&phdrs);
    out.extend_from_slice(notes);
    segments.iter().for_each(|(_, bytes)| out.extend_from_slice(bytes));
    out
}

/// An ELF note.
pub(crate) fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for field in [name.len() as u32 + 1, desc.len() as u32, kind] {
        out.extend(field.to_le_bytes());
    }
    out.extend_from_slice(name);
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(desc);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

/// A CPU as QEMU notes it, every field set to something of its own.
pub(crate) fn qemu_cpu(seed: u64) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(1u32.to_le_bytes());
    out.extend(440u32.to_le_bytes());
    for register in 0..18 {
        out.extend((seed + register).to_le_bytes());
    }
    for segment in 0..10u32 {
        for field in [segment, 0xfff, 0, 0] {
            out.extend(field.to_le_bytes());
        }
        out.extend((seed + 100 + u64::from(segment)).to_le_bytes());
    }
    for control in 0..5 {
        out.extend((seed + 200 + control).to_le_bytes());
    }
    out.extend((seed + 300).to_le_bytes());
    out
}
