//! Files from somebody who wants the reader to fall over: mutated and truncated ones must be refused or be readable
//! to the end.

use proptest::prelude::*;
use varve_formats::PhysicalMemory;
use varve_formats::image::Image;

use super::build::*;

/// Opens the file; if it is accepted, every byte of every region must be there, and nothing may lie behind the
/// file's end.
fn survives(bytes: &[u8]) -> bool {
    let scratch = file(bytes);
    let Ok(image) = Image::open(&scratch.path) else { return false };
    let mut page = [0; PAGE];
    let mut budget = 4096;
    for region in image.regions() {
        for into in (0..region.len).step_by(PAGE).take(budget) {
            image.read(region.start.checked_add(into).unwrap(), &mut page).unwrap();
            budget -= 1;
        }
    }
    true
}

fn samples() -> [Vec<u8>; 3] {
    let (low, high) = (pages(1, 3), pages(2, 2));
    let notes = [note(b"QEMU", 0, &qemu_cpu(1)), note(b"VMCOREINFO", 0, b"OSRELEASE=6.1\n")].concat();
    [
        pages(5, 4),
        lime(&[(0x1000, &low), (0x10_0000, &high)]),
        elf(&notes, &[(0x1000, &low), (0x1_0000_0000, &high)]),
    ]
}

#[test]
fn no_truncated_file_is_taken_for_a_whole_one() {
    let [_, lime, elf] = samples();
    let first_range = 32 + 3 * PAGE;
    let near = |at: usize| at.saturating_sub(2)..at + 3;
    let cuts = (1..600).chain(near(first_range)).chain(near(lime.len() - PAGE));
    for cut in cuts.filter(|cut| *cut != first_range) {
        assert!(!survives(&lime[..cut]), "LiME, cut at {cut}");
    }
    // A LiME file has no end mark: cut between ranges it is a smaller LiME file.
    assert!(survives(&lime[..first_range]));
    for cut in (4..900).chain(near(elf.len() - PAGE)).chain([elf.len() - 1]) {
        assert!(!survives(&elf[..cut]), "ELF, cut at {cut}");
    }
    assert!(survives(&lime) && survives(&elf));
}

/// Where the fields are that decide anything: headers, program headers, notes, and the second LiME header.
fn place() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0usize..900, 1 => 32 + 3 * PAGE..64 + 3 * PAGE]
}

/// Bytes that overflow sums, and ordinary noise.
fn patch() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(vec![0xff; 8]),
        Just(vec![0; 8]),
        Just((u64::MAX - 0xfff).to_le_bytes().to_vec()),
        Just((1u64 << 63).to_le_bytes().to_vec()),
        any::<u32>().prop_map(|word| word.to_le_bytes().to_vec()),
        any::<u8>().prop_map(|byte| vec![byte]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn mutated_files_are_refused_or_readable(
        which in 0usize..3,
        patches in prop::collection::vec((place(), patch()), 1..4),
        cut in prop::option::of(0usize..0x6000),
    ) {
        let mut bytes = samples()[which].clone();
        for (at, patch) in patches {
            let end = (at + patch.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&patch[..end - at]);
        }
        bytes.truncate(cut.unwrap_or(usize::MAX));
        survives(&bytes);
    }
}
