//! The note, as kernels write it and as they do not.

use proptest::prelude::*;
use varve_formats::symbols::vmcoreinfo::{MAX_NOTES, VmCoreInfo};
use varve_formats::symbols::{KERNEL_MAP, LinearMap};
use varve_formats::{Gpa, Gva, PAGE_SIZE, Region, VirtualMemory};

use crate::guest::Guest;

/// Lines of a 6.12 kernel's note.
const NOTE: &str = "OSRELEASE=6.12.100-amd64\n\
    BUILD-ID=0123456789abcdef0123456789abcdef01234567\n\
    PAGESIZE=4096\n\
    SYMBOL(init_uts_ns)=ffffffff8f0152c0\n\
    OFFSET(uts_namespace.name)=0\n\
    SYMBOL(swapper_pg_dir)=ffffffff8ec22000\n\
    SYMBOL(_stext)=ffffffff8d000000\n\
    NUMBER(VMALLOC_START)=0xffffaa0f00000000\n\
    SIZE(page)=64\n\
    OFFSET(page.flags)=0\n\
    OFFSET(list_head.prev)=8\n\
    LENGTH(zone.free_area)=11\n\
    NUMBER(PG_slab)=-1\n\
    SYMBOL(kallsyms_names)=ffffffff8e151668\n\
    NUMBER(phys_base)=-77594624\n\
    NUMBER(pgtable_l5_enabled)=0\n\
    KERNELOFFSET=c000000\n\
    NUMBER(KERNEL_IMAGE_SIZE)=1073741824\n";

fn page(text: &[u8]) -> Vec<u8> {
    let mut page = text.to_vec();
    page.resize(PAGE_SIZE, 0);
    page
}

#[test]
fn a_note_says_where_the_kernel_is() {
    let note = VmCoreInfo::parse(&page(NOTE.as_bytes())).unwrap();
    assert_eq!(note.text(), NOTE);
    assert_eq!(note.osrelease(), "6.12.100-amd64");
    assert_eq!(note.build_id(), Some("0123456789abcdef0123456789abcdef01234567"));
    assert_eq!(note.kernel_offset(), Some(0xc00_0000));
    assert_eq!(note.phys_base(), Some(-77_594_624));
    assert_eq!(note.swapper_pg_dir(), Some(Gva(0xffff_ffff_8ec2_2000)));
    assert_eq!(note.symbol("kallsyms_names"), Some(Gva(0xffff_ffff_8e15_1668)));
    assert_eq!(note.symbol("kallsyms"), None);
    assert_eq!(note.number("VMALLOC_START"), Some(0xffff_aa0f_0000_0000_u64.cast_signed()));
    assert_eq!(note.number("PG_slab"), Some(-1));
    assert_eq!(note.five_level_paging(), Some(false));
    assert_eq!(note.offset("list_head", "prev"), Some(8));
    assert_eq!(note.size("page"), Some(64));
    assert_eq!(note.length("zone.free_area"), Some(11));
    assert_eq!(note.value("PAGESIZE"), Some("4096"));
    assert_eq!(note.entries().count(), 18);
}

#[test]
fn a_note_ends_with_its_page_or_a_nul() {
    let mut long = b"OSRELEASE=".to_vec();
    long.resize(3 * PAGE_SIZE, b'x');
    assert_eq!(VmCoreInfo::parse(&long).unwrap().text().len(), PAGE_SIZE);
    let note = VmCoreInfo::parse(b"OSRELEASE=6.1\nKERNELOFFSET=10\0KERNELOFFSET=20\n").unwrap();
    assert_eq!(note.text(), "OSRELEASE=6.1\nKERNELOFFSET=10");
    assert_eq!(note.kernel_offset(), Some(0x10));
}

#[test]
fn lines_that_are_not_entries_do_no_harm() {
    let text = b"OSRELEASE=\n\n=\nSYMBOL(a=1\nSYMBOL b)=2\nSYMBOL()=3\nSYMBOL(c)=zz\nNUMBER(d)=99999999999999999999\n\
        KERNELOFFSET=\nNUMBER(\xff\xfe)=1\nSYMBOL(e)=4=5\nSYMBOL(f)=6\nSYMBOL(f)=7";
    let note = VmCoreInfo::parse(text).unwrap();
    assert_eq!(note.osrelease(), "");
    for name in ["a", "b", "c", "e"] {
        assert_eq!(note.symbol(name), None, "{name}");
    }
    assert_eq!(note.symbol(""), Some(Gva(3)));
    assert_eq!(note.symbol("f"), Some(Gva(6)), "the first of two");
    assert_eq!(note.number("d"), None);
    assert_eq!(note.number("\u{fffd}\u{fffd}"), Some(1));
    assert_eq!(note.kernel_offset(), None);
}

#[test]
fn all_notes_in_memory_are_found_at_page_starts_only() {
    let mut memory = vec![0; 16 * PAGE_SIZE];
    for at in [3 * PAGE_SIZE, 9 * PAGE_SIZE, 12 * PAGE_SIZE + 8] {
        memory[at..at + NOTE.len()].copy_from_slice(NOTE.as_bytes());
    }
    let guest = Guest::new(vec![(0x10_0000, memory), (0x100_0000, page(b"OSRELEASE=kdump\n"))]);
    let found: Vec<_> = VmCoreInfo::find_all(&guest)
        .into_iter()
        .map(|(at, note)| (at, note.osrelease().to_owned()))
        .collect();
    let expected = [(0x10_3000, "6.12.100-amd64"), (0x10_9000, "6.12.100-amd64"), (0x100_0000, "kdump")];
    assert_eq!(found, expected.map(|(at, release)| (Gpa(at), release.to_owned())));
}

#[test]
fn notes_without_number_do_not_fill_memory() {
    let note = page(b"OSRELEASE=fake\n");
    let guest = Guest::new(vec![(0, note.repeat(MAX_NOTES + 10))]);
    assert_eq!(VmCoreInfo::find_all(&guest).len(), MAX_NOTES);
}

#[test]
fn frames_that_cannot_be_read_are_passed_over() {
    let guest = Guest::new(vec![(0, page(b"OSRELEASE=here\n"))]);
    let beyond = Region { start: Gpa(0), len: 4 * PAGE_SIZE as u64 };
    assert_eq!(VmCoreInfo::find_in(&guest, beyond).count(), 1);
    let end = Region { start: Gpa(u64::MAX - 0xfff), len: !0xfff };
    assert_eq!(VmCoreInfo::find_in(&guest, end).take(3).count(), 0);
    assert!(VmCoreInfo::at(&guest, Gpa(0x1000)).is_err());
}

#[test]
fn the_kernel_image_reads_without_page_tables() {
    let guest = Guest::new(vec![(0x200_0000, vec![1, 2, 3, 4, 5, 6, 7, 8])]);
    let map = LinearMap::new(&guest, 0x100_0000);
    let at = Gva(KERNEL_MAP.0 + 0x100_0000);
    assert_eq!(map.translate(at), Some(Gpa(0x200_0000)));
    assert_eq!(map.read_u64(at).unwrap(), 0x0807_0605_0403_0201);
    assert!(map.read_u64(Gva(at.0 + 1)).is_err(), "not captured");
    assert_eq!(map.translate(Gva(KERNEL_MAP.0 - 1)), None);
    assert_eq!(map.translate(Gva(KERNEL_MAP.0 + (1 << 30))), None);
    assert!(map.read_u8(Gva(u64::MAX)).is_err());
    let shifted_down = LinearMap::new(&guest, -0x1000);
    assert_eq!(shifted_down.translate(KERNEL_MAP), None, "below zero");
    assert_eq!(shifted_down.translate(Gva(KERNEL_MAP.0 + 0x3000)), Some(Gpa(0x2000)));
}

proptest! {
    #[test]
    fn any_bytes_parse_or_do_not(tail in prop::collection::vec(any::<u8>(), 0..6000)) {
        let mut bytes = b"OSRELEASE=".to_vec();
        bytes.extend(&tail);
        let note = VmCoreInfo::parse(&bytes).unwrap();
        let _ = (note.kernel_offset(), note.phys_base(), note.number("x"), note.entries().count());
        prop_assert_eq!(VmCoreInfo::parse(&tail).is_some(), tail.starts_with(b"OSRELEASE="));
    }

    #[test]
    fn symbols_and_numbers_survive(entries in prop::collection::btree_map("[a-z_]{1,20}", any::<u64>(), 0..30)) {
        let mut text = "OSRELEASE=x\n".to_owned();
        for (name, value) in &entries {
            text += &format!("SYMBOL({name})={value:x}\nNUMBER({name})={}\n", value.cast_signed());
        }
        let note = VmCoreInfo::parse(text.as_bytes()).unwrap();
        for (name, value) in &entries {
            prop_assert_eq!(note.symbol(name), Some(Gva(*value)));
            prop_assert_eq!(note.number(name), Some(value.cast_signed()));
        }
    }
}
