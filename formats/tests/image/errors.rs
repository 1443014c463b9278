//! What is said of files that cannot be read: where, and why.

use std::fmt::Write;
use std::path::Path;

use varve_formats::image::Image;

use super::build::*;

fn refusal(path: &Path) -> String {
    let error = Image::open(path).unwrap_err();
    assert_eq!(error.file, path);
    format!("{:#x}: {}", error.offset, error.reason)
}

fn of(bytes: &[u8]) -> String {
    refusal(&file(bytes).path)
}

fn lime_range(first: u64, last: u64) -> Vec<u8> {
    let mut out = Vec::new();
    lime_header(&mut out, first, last);
    out.extend(pages(1, 1));
    out
}

fn one_load(offset: u64, paddr: u64, filesz: u64) -> Vec<u8> {
    [elf_headers(&[Phdr { kind: PT_LOAD, offset, paddr, filesz }]), pages(1, 1)].concat()
}

fn patched(mut bytes: Vec<u8>, at: usize, patch: &[u8]) -> Vec<u8> {
    bytes[at..at + patch.len()].copy_from_slice(patch);
    bytes
}

#[test]
fn files_that_are_no_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name| directory.path().join(name);
    rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    std::fs::write(path("empty"), b"").unwrap();
    let said = [
        refusal(&path("absent")),
        refusal(directory.path()),
        refusal(&path("fifo")),
        refusal(Path::new("/dev/zero")),
        refusal(&path("empty")),
    ];
    insta::assert_snapshot!(said.join("\n"), @r"
    0x0: cannot open: No such file or directory (os error 2)
    0x0: is a directory, not a memory image file
    0x0: is a FIFO, not a memory image file
    0x0: is a character device, not a memory image file
    0x0: is empty
    ");
}

#[test]
fn files_that_lie() {
    let core = elf(&note(b"QEMU", 0, &qemu_cpu(1)), &[(0, &pages(1, 1))]);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("raw, cut", pages(1, 2)[..0x1800].to_vec()),
        ("gzip", vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0]),
        ("lime, header cut", lime(&[(0, &pages(1, 1))])[..20].to_vec()),
        ("lime, memory cut", lime(&[(0, &pages(1, 1))])[..0x1000].to_vec()),
        ("lime, second header wrong", [lime_range(0, 0xfff), vec![0xee; 40]].concat()),
        ("lime, backwards", lime_range(0x1000, 0)),
        ("lime, all of the address space", lime_range(0, u64::MAX)),
        ("lime, wraps", lime_range(u64::MAX - 0xfff, u64::MAX)),
        ("lime, overlap", [lime_range(0, 0xfff), lime_range(0x800, 0x17ff)].concat()),
        ("lime, version", patched(lime_range(0, 0xfff), 4, &[2])),
        ("lime, less than a frame", lime(&[(1, &[1; 100])])),
        ("elf, header only", b"\x7fELF\x02\x01\x01".to_vec()),
        ("elf, 32-bit", patched(core.clone(), 4, &[1])),
        ("elf, executable", patched(core.clone(), 16, &[2])),
        ("elf, aarch64", patched(core.clone(), 18, &[183])),
        ("elf, header size", patched(core.clone(), 54, &[32])),
        ("elf, table past the end", patched(core.clone(), 32, &[0xff; 8])),
        ("elf, more headers than bytes", patched(core.clone(), 56, &[0xfe, 0xff])),
        ("elf, headers counted nowhere", patched(core.clone(), 56, &[0xff, 0xff])),
        ("elf, no memory", elf_headers(&[])),
        ("elf, segment past the end", one_load(64 + 56, 0, 0x1001)),
        ("elf, segment offset wraps", one_load(u64::MAX, 0, 0x1000)),
        ("elf, address wraps", one_load(64 + 56, u64::MAX - 0xfff, 0x1000)),
        ("elf, overlap", elf(&[], &[(0, &pages(1, 2)), (0x1000, &pages(2, 1))])),
        ("elf, a process", elf(&[], &[(0, &pages(1, 1)), (0, &pages(2, 1))])),
    ];
    let mut said = String::new();
    for (case, bytes) in cases {
        writeln!(said, "{case}: {}", of(&bytes)).unwrap();
    }
    insta::assert_snapshot!(said);
}

#[test]
fn absurd_counts_are_refused_before_anything_is_allocated() {
    // Section header 0 claims 2^32 - 1 program headers.
    let mut bytes = elf_headers(&[]);
    bytes[56..58].copy_from_slice(&[0xff, 0xff]);
    bytes[40..48].copy_from_slice(&64u64.to_le_bytes());
    bytes.extend([0xff; 64]);
    insta::assert_snapshot!(of(&bytes), @"0x38: 4294967295 program headers, more than 4194304");
    // As many as are allowed, none of them there.
    bytes[64 + 44..64 + 48].copy_from_slice(&(1u32 << 22).to_le_bytes());
    insta::assert_snapshot!(of(&bytes), @"0x40: a table of 4194304 program headers reaches past the end of the file: truncated?");
}

#[test]
fn notes_that_make_no_sense_cost_the_cpus_not_the_image() {
    let good = note(b"QEMU", 0, &qemu_cpu(1));
    let mut long = note(b"VMCOREINFO", 0, b"x");
    long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let cases = [
        note(b"QEMU", 0, &qemu_cpu(1)[..400]),
        note(b"QEMU", 0, &[0; 440]),
        note(b"QE\xffU", 0, b""),
        long,
        good[..10].to_vec(),
    ];
    let mut said = String::new();
    for bad in cases {
        let scratch = file(&elf(&[good.clone(), bad].concat(), &[(0, &pages(1, 1))]));
        let image = Image::open(&scratch.path).unwrap();
        assert_eq!(image.vcpus().len(), 1);
        let notice = &image.notices()[0];
        writeln!(said, "{:#x}: {}", notice.offset, notice.reason).unwrap();
    }
    insta::assert_snapshot!(said);
}
