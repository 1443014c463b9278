//! Save files as memory images.

use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;
use varve_formats::image::Image;
use varve_formats::{FormatError, Gpa, PhysicalMemory, Region, TableRegister, Vcpu};

use super::build::*;

fn open(bytes: &[u8]) -> (TempDir, Result<Image, FormatError>) {
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("image");
    std::fs::write(&path, bytes).unwrap();
    (directory, Image::open(&path))
}

fn region(first: u64, frames: u64) -> Region {
    Region { start: Gpa(first << 12), len: frames << 12 }
}

fn frame(image: &Image, frame: u64) -> Option<&[u8]> {
    image.slice(Gpa(frame << 12), PAGE)
}

#[test]
fn of_a_page_sent_twice_the_last_counts_and_one_that_went_is_gone() {
    let (_directory, image) = open(&pvh());
    let image = image.unwrap();
    assert_eq!(image.format().name(), "xl-save");
    assert_eq!(image.regions(), [region(2, 2)]);
    assert_eq!(frame(&image, 2).unwrap(), page(2));
    assert_eq!(frame(&image, 3).unwrap(), page(33));
    assert!(image.notices().is_empty(), "{:?}", image.notices());
    let state = image.save_state().unwrap();
    assert_eq!(state.config.as_ref().unwrap().bytes, format!("{JSON}\0").into_bytes());
    assert_eq!(state.records().len(), 7);
}

#[test]
fn registers_come_from_the_hvm_context_by_number() {
    let (_directory, image) = open(&pvh());
    let image = image.unwrap();
    let salt = 1 << 32;
    let expected = Vcpu {
        index: 1,
        rip: salt | 1,
        rsp: salt | 2,
        rflags: salt | 3,
        cr0: salt | 4,
        cr3: salt | 5,
        cr4: salt | 6,
        gs_base: Some(salt | 7),
        gdtr: Some(TableRegister { base: salt | 8, limit: 0x7f }),
        idtr: Some(TableRegister { base: salt | 9, limit: 0xfff }),
        lstar: Some(salt | 10),
        efer: Some(salt | 11),
    };
    assert_eq!(image.vcpus().len(), 2);
    assert_eq!((image.vcpus()[0].index, image.vcpus()[1]), (0, expected));
}

#[test]
fn a_pv_domain_is_addressed_by_guest_frames() {
    let (_directory, image) = open(&pv());
    let image = image.unwrap();
    assert_eq!(image.regions(), [region(1, 1), region(5, 1), region(7, 1)]);
    assert_eq!(frame(&image, 7).unwrap(), page(4));
    assert_eq!(image.vcpus().len(), 2);
}

#[test]
fn a_stream_that_was_cut_off_holds_its_last_checkpoint() {
    let (bytes, [first, second]) = remus();
    let seen = |cut: usize| {
        let (_directory, image) = open(&bytes[..cut]);
        let image = image.ok()?;
        let salt = (0..=255u8).find(|salt| frame(&image, 1).unwrap() == page(*salt)).unwrap();
        let notices: Vec<_> = image.notices().iter().map(|notice| notice.reason.clone()).collect();
        Some((salt, image.vcpus()[0].index, notices.join("; ")))
    };
    assert_eq!(seen(first - 1), None);
    assert_eq!(seen(first), Some((11, 0, String::new())));
    assert_eq!(seen(second), Some((12, 1, String::new())));
    let (salt, vcpu, notice) = seen(second - 1).unwrap();
    assert_eq!((salt, vcpu), (11, 0));
    insta::assert_snapshot!(
        notice,
        @"memory is that of checkpoint 1: the stream ends in the head of a record: interrupted or truncated?"
    );
}

#[test]
fn no_part_of_a_save_file_is_taken_for_a_whole_one() {
    let bytes = pvh();
    for cut in (1..bytes.len()).filter(|cut| cut % 61 == 0 || *cut < 300 || bytes.len() - cut < 300) {
        let (_directory, image) = open(&bytes[..cut]);
        // Too short to be recognised: a raw image, which must be whole pages.
        assert!(image.is_err(), "cut at {cut}");
    }
}

#[test]
fn a_context_that_makes_no_sense_costs_the_registers_not_the_memory() {
    let mut bytes = pvh();
    let magic = bytes.windows(4).position(|at| at == 0x5438_1286u32.to_le_bytes()).unwrap();
    bytes[magic] ^= 1;
    let (_directory, image) = open(&bytes);
    let image = image.unwrap();
    assert!(image.vcpus().is_empty());
    insta::assert_snapshot!(
        image.notices()[0].reason,
        @"HVM context: offset 0x0: no HVM context: it does not begin with a header"
    );
    assert_eq!(frame(&image, 2).unwrap(), page(2));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_are_refused_or_readable(
        which in 0usize..3,
        patches in prop::collection::vec((0usize..600, any::<[u8; 4]>(), any::<bool>()), 1..4),
        cut in prop::option::of(0usize..0x8000),
    ) {
        let mut bytes = [pvh(), pv(), remus().0][which].clone();
        let len = bytes.len();
        for (at, patch, from_end) in patches {
            let at = if from_end { len - at - 4 } else { at };
            bytes[at..at + 4].copy_from_slice(&patch);
        }
        bytes.truncate(cut.unwrap_or(usize::MAX));
        if let (_directory, Ok(image)) = open(&bytes) {
            let mut buf = [0; PAGE];
            for region in image.regions() {
                for into in (0..region.len).step_by(PAGE).take(64) {
                    image.read(Gpa(region.start.0 + into), &mut buf).unwrap();
                }
            }
        }
    }
}
