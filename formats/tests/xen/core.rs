//! Core files of Xen domains.

use proptest::prelude::*;
use varve_fixtures::synth::xen_core::Core;
use varve_fixtures::synth::xl_save::vcpu_context;
use varve_formats::image::Image;
use varve_formats::{FormatError, Gpa, PhysicalMemory};

use super::build::*;

fn open(bytes: &[u8]) -> Result<Image, FormatError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    std::fs::write(&path, bytes).unwrap();
    Image::open(&path)
}

/// Kernel mode, user mode; guest frames 1, 2, 5 and one of padding, on machine frames that descend.
fn core(pv: bool) -> Core {
    let contexts = if pv {
        vec![vcpu_context(&cpu(0), 1 << 2, 0xe033, 99, true), vcpu_context(&cpu(1), 0, 0xe033, 99, false)]
    } else {
        vec![vcpu_context(&cpu(0), 0, 0x10, 99, true), vcpu_context(&cpu(1), 0, 0x33, 99, false)]
    };
    let invalid = u64::MAX;
    let pages = vec![
        (1, 0x101, page(1)),
        (2, 0x100, page(2)),
        (5, 0x205, page(5)),
        (invalid, invalid, vec![0; PAGE]),
    ];
    Core { pv, contexts, pages }
}

fn frame(image: &Image, frame: u64) -> Option<&[u8]> {
    image.slice(Gpa(frame << 12), PAGE)
}

#[test]
fn a_pvh_domain_is_addressed_by_guest_frames() {
    let image = open(&core(false).bytes()).unwrap();
    assert_eq!(image.format().name(), "xen-core");
    assert_eq!([1, 2, 5].map(|number| frame(&image, number).unwrap() == page(number as u8)), [true; 3]);
    assert_eq!(image.regions().iter().map(|region| region.len >> 12).sum::<u64>(), 3);
    assert!(image.notices().is_empty() && image.save_state().is_none());
    let [first, second] = image.vcpus() else { panic!("{:?}", image.vcpus()) };
    assert_eq!((first.index, second.index), (0, 1));
    assert_eq!((first.gs_base, second.gs_base), (Some(7), Some(1 << 32 | 7)));
    assert_eq!((second.rip, second.rsp, second.rflags), (1 << 32 | 1, 1 << 32 | 2, 1 << 32 | 3));
    assert_eq!((second.cr0, second.cr3, second.cr4), (1 << 32 | 4, 1 << 32 | 5, 1 << 32 | 6));
}

#[test]
fn a_pv_domain_is_addressed_by_machine_frames() {
    let image = open(&core(true).bytes()).unwrap();
    assert_eq!(frame(&image, 0x101).unwrap(), page(1));
    assert_eq!(frame(&image, 0x100).unwrap(), page(2));
    assert_eq!(frame(&image, 0x205).unwrap(), page(5));
    assert_eq!(frame(&image, 5), None);
    assert_eq!((image.vcpus()[0].gs_base, image.vcpus()[1].gs_base), (Some(7), Some(1 << 32 | 7)));
}

#[test]
fn refusals_say_where_and_why() {
    let whole = core(true).bytes();
    let find = |what: &[u8]| whole.windows(what.len()).position(|at| at == what).unwrap();
    let patched = |at: usize, patch: &[u8]| {
        let mut bytes = whole.clone();
        bytes[at..at + patch.len()].copy_from_slice(patch);
        bytes
    };
    let note = find(&0xf00f_ebedu64.to_le_bytes());
    let twice = Core { pages: vec![(1, 7, page(1)), (2, 7, page(2))], ..core(true) };
    let far = Core { pages: vec![(1, u64::MAX - 1, page(1))], ..core(true) };
    let cases = [
        ("executable", patched(16, &[2])),
        ("aarch64", patched(18, &[183])),
        ("header size", patched(58, &[32])),
        ("table past the end", patched(40, &[0xff; 8])),
        ("names nowhere", patched(62, &[9])),
        ("no pages", patched(find(b".xen_pages"), b"?")),
        ("kind of domain", patched(note, &[0])),
        ("more pages than there are", patched(note + 16, &[0xff; 8])),
        ("one page less", patched(note + 16, &[3])),
        ("page size", patched(note + 25, &[0x20])),
        ("version", patched(find(&0x200_0003u32.to_le_bytes()) + 12, &[1])),
        ("no version", patched(find(&0x200_0003u32.to_le_bytes()), &[9])),
        ("one frame twice", twice.bytes()),
        ("far away", far.bytes()),
        ("cut", whole[..whole.len() - 1].to_vec()),
    ];
    let mut said = String::new();
    for (case, bytes) in cases {
        let error = open(&bytes).unwrap_err();
        said.push_str(&format!("{case}: {:#x}: {}\n", error.offset, error.reason));
    }
    insta::assert_snapshot!(said);
}

#[test]
fn registers_of_another_size_cost_the_registers_not_the_memory() {
    let short = Core { contexts: vec![vec![0; 2800]], ..core(true) };
    let image = open(&short.bytes()).unwrap();
    assert!(image.vcpus().is_empty());
    insta::assert_snapshot!(image.notices()[0].reason, @"2800 bytes of registers are not those of 1 vCPUs of 64 bits");
    assert_eq!(frame(&image, 0x101).unwrap(), page(1));
}

#[test]
fn no_part_of_a_core_is_taken_for_a_whole_one() {
    let whole = core(false).bytes();
    // Below the ELF magic a file is raw memory.
    for cut in (4..whole.len()).filter(|cut| cut % 17 == 0 || *cut < 900 || whole.len() - cut < 300) {
        assert!(open(&whole[..cut]).is_err(), "cut at {cut}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_are_refused_or_readable(
        pv in any::<bool>(),
        patches in prop::collection::vec((0usize..700, any::<[u8; 8]>(), any::<bool>()), 1..4),
    ) {
        let mut bytes = core(pv).bytes();
        let len = bytes.len();
        for (at, patch, from_end) in patches {
            let at = if from_end { len - at - 8 } else { at };
            bytes[at..(at + 8).min(len)].copy_from_slice(&patch[..8.min(len - at)]);
        }
        if let Ok(image) = open(&bytes) {
            let mut buf = [0; PAGE];
            for region in image.regions() {
                for into in (0..region.len).step_by(PAGE).take(64) {
                    image.read(Gpa(region.start.0 + into), &mut buf).unwrap();
                }
            }
        }
    }
}
