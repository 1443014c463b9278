//! Well-formed files of each format.

use varve_formats::image::{FORMATS, Format, Image};
use varve_formats::{Fault, Gpa, PhysicalMemory, Region, TableRegister};

use super::build::*;

fn region(start: u64, len: u64) -> Region {
    Region { start: Gpa(start), len }
}

#[test]
fn a_raw_file_is_flat_and_served_in_place() {
    let bytes = pages(7, 3);
    let scratch = file(&bytes);
    let image = Image::open(&scratch.path).unwrap();
    assert_eq!(image.format().name(), "raw");
    assert_eq!(image.regions(), [region(0, 0x3000)]);
    assert_eq!(image.slice(Gpa(0x0ff0), 0x20).unwrap(), &bytes[0x0ff0..0x1010]);
    assert_eq!(image.slice(Gpa(0x2ff0), 0x11), None);
    let mut buf = [0; 5];
    image.read(Gpa(0x2000), &mut buf).unwrap();
    assert_eq!(buf, bytes[0x2000..0x2005]);
    assert!(image.vcpus().is_empty() && image.notices().is_empty());
    let written = std::fs::metadata(&scratch.path).unwrap().modified().unwrap();
    assert_eq!(image.modified(), Some(written));
}

#[test]
fn a_read_crosses_ranges_that_are_neighbours_in_memory_only() {
    let (low, high) = (pages(1, 1), pages(2, 1));
    let scratch = file(&lime(&[(0x2000, &high), (0x1000, &low)]));
    let image = Image::open(&scratch.path).unwrap();
    assert_eq!(image.format().name(), "lime");
    assert_eq!(image.regions(), [region(0x1000, 0x2000)]);
    let mut buf = [0; 16];
    image.read(Gpa(0x1ff8), &mut buf).unwrap();
    assert_eq!(buf[..8], low[0xff8..]);
    assert_eq!(buf[8..], high[..8]);
    assert_eq!(image.slice(Gpa(0x1ff8), 16), None);
}

#[test]
fn a_read_past_a_region_names_the_first_missing_address() {
    let scratch = file(&lime(&[(0x1000, &pages(1, 1)), (0x5000, &pages(2, 1))]));
    let image = Image::open(&scratch.path).unwrap();
    let mut buf = [0; 16];
    assert_eq!(image.read(Gpa(0x1ff8), &mut buf), Err(Fault::NotCaptured { at: Gpa(0x2000) }));
    assert_eq!(image.read(Gpa(0), &mut buf), Err(Fault::NotCaptured { at: Gpa(0) }));
    assert_eq!(image.read(Gpa(u64::MAX), &mut buf), Err(Fault::NotCaptured { at: Gpa(u64::MAX) }));
}

#[test]
fn a_lime_range_that_ends_inside_a_frame_keeps_its_bytes_readable() {
    let bytes = &pages(1, 2)[..0x1c00];
    let scratch = file(&lime(&[(0x1000, bytes)]));
    let image = Image::open(&scratch.path).unwrap();
    assert_eq!(image.regions(), [region(0x1000, 0x1000)]);
    assert_eq!(image.slice(Gpa(0x2bff), 1).unwrap(), &bytes[0x1bff..]);
    assert_eq!(image.notices()[0].reason, "3072 bytes belong to frames that are not whole: left out");
}

#[test]
fn an_elf_core_has_its_segments_at_physical_addresses_and_its_cpus_in_notes() {
    let (low, high) = (pages(1, 2), pages(2, 1));
    let notes = [
        note(b"CORE", 1, &[0; 336]),
        note(b"QEMU", 0, &qemu_cpu(0x1_0000)),
        note(b"QEMU", 0, &qemu_cpu(0x2_0000)),
        note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\n"),
    ]
    .concat();
    let scratch = file(&elf(&notes, &[(0, &low), (0x1_0000_0000, &high)]));
    let image = Image::open(&scratch.path).unwrap();
    assert_eq!(image.format().name(), "elf");
    assert_eq!(image.regions(), [region(0, 0x2000), region(0x1_0000_0000, 0x1000)]);
    assert_eq!(image.slice(Gpa(0x1_0000_0000), PAGE).unwrap(), high);
    assert!(image.notices().is_empty(), "{:?}", image.notices());
    let [first, second] = image.vcpus() else { panic!("{:?}", image.vcpus()) };
    assert_eq!((first.index, second.index), (0, 1));
    assert_eq!((second.rsp, second.rip, second.rflags), (0x2_0006, 0x2_0010, 0x2_0011));
    assert_eq!((second.cr0, second.cr3, second.cr4), (0x2_00c8, 0x2_00cb, 0x2_00cc));
    assert_eq!(second.gs_base, Some(0x2_0068));
    assert_eq!(second.gdtr, Some(TableRegister { base: 0x2_006c, limit: 0xfff }));
    assert_eq!(second.idtr, Some(TableRegister { base: 0x2_006d, limit: 0xfff }));
    assert_eq!((second.efer, second.lstar), (None, None));
}

#[test]
fn segments_without_bytes_in_the_file_were_not_captured() {
    // What QEMU writes for memory outside the range asked for: p_offset -1, p_filesz 0.
    let bytes = pages(1, 1);
    let phdrs = [
        Phdr { kind: PT_LOAD, offset: u64::MAX, paddr: 0x8000, filesz: 0 },
        Phdr { kind: PT_LOAD, offset: 64 + 2 * 56, paddr: 0x1000, filesz: PAGE as u64 },
    ];
    let scratch = file(&[elf_headers(&phdrs), bytes].concat());
    assert_eq!(Image::open(&scratch.path).unwrap().regions(), [region(0x1000, 0x1000)]);
}

#[test]
fn a_vmcore_with_paging_names_the_same_memory_several_times() {
    let bytes = pages(1, 3);
    let at = 64 + 3 * 56;
    let load = |paddr, pages: u64| Phdr { kind: PT_LOAD, offset: at + paddr, paddr, filesz: pages * 0x1000 };
    let scratch =
        file(&[elf_headers(&[load(0x1000, 2), load(0, 3), load(0x1000, 1)]), bytes.clone()].concat());
    let image = Image::open(&scratch.path).unwrap();
    assert_eq!(image.slice(Gpa(0), 3 * PAGE).unwrap(), bytes);
}

#[test]
fn more_program_headers_than_the_file_header_can_count() {
    let count = 0x1_0000;
    let at = 64 + 56 * count + 64;
    let phdrs: Vec<Phdr> = (0..count)
        .map(|index| Phdr { kind: PT_LOAD, offset: at, paddr: index * 0x2000, filesz: 0x1000 })
        .collect();
    let bytes = pages(9, 1);
    let scratch = file(&[elf_headers(&phdrs), bytes.clone()].concat());
    let image = Image::open(&scratch.path).unwrap();
    assert_eq!(image.regions().len() as u64, count);
    assert_eq!(image.slice(Gpa((count - 1) * 0x2000), PAGE).unwrap(), bytes);
}

#[test]
fn a_raw_image_whose_guest_wrote_a_header_to_address_zero_opens_when_told_so() {
    let mut bytes = pages(3, 2);
    bytes[..4].copy_from_slice(b"EMiL");
    let scratch = file(&bytes);
    assert!(Image::open(&scratch.path).is_err());
    let image = Image::open_as(&scratch.path, Format::by_name("raw").unwrap()).unwrap();
    assert_eq!(image.slice(Gpa(0), 2 * PAGE).unwrap(), bytes);
}

#[test]
fn every_format_has_a_name_of_its_own() {
    let names: Vec<_> = FORMATS.iter().map(|format| format.name()).collect();
    assert_eq!(names, ["xen-core", "elf", "lime", "xl-save", "raw"]);
    assert!(Format::by_name("vmdk").is_none());
}
