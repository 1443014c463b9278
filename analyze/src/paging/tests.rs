//! The reader against a writer that shares no code with it: tables are built level by level from their definition.

use std::collections::BTreeMap;

use proptest::prelude::*;
use varve_formats::{Fault, Gpa, Gva, VirtualMemory};

use super::{AddressSpace, Levels, MAX_TABLES, Mapping};
use crate::testing::Flat;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const PS: u64 = 0x80;
const PROT_NONE: u64 = 0x100;
const NX: u64 = 1 << 63;

/// Memory with page tables: page 1 is the root, further tables follow it.
struct Tables {
    memory: Flat,
    next_table: u64,
    levels: u32,
}

impl Tables {
    fn new(levels: u32) -> Self {
        Self { memory: Flat::zeroed(2048), next_table: 2, levels }
    }

    /// Writes `entry` where the tables of `va` have their entry of `level`, making tables with `above` bits on the way.
    fn map(&mut self, va: u64, level: u32, entry: u64, above: u64) {
        let mut table = 0x1000;
        for at_level in (level + 1..=self.levels).rev() {
            let slot = table + slot_offset(va, at_level);
            if self.memory.read_u64(slot) == 0 {
                self.memory.write(slot, &((self.next_table << 12) | above).to_le_bytes());
                self.next_table += 1;
            }
            table = self.memory.read_u64(slot) & 0xf_ffff_ffff_f000;
        }
        self.memory.write(table + slot_offset(va, level), &entry.to_le_bytes());
    }

    fn space(&self) -> AddressSpace<'_> {
        let levels = if self.levels == 5 { Levels::Five } else { Levels::Four };
        AddressSpace::new(&self.memory, Gpa(0x1000), levels)
    }
}

fn slot_offset(va: u64, level: u32) -> u64 {
    ((va >> (12 + 9 * (level - 1))) % 512) * 8
}

#[test]
fn every_page_size_translates_with_the_rights_of_all_levels() {
    for levels in [4, 5] {
        let mut tables = Tables::new(levels);
        tables.map(0xffff_8880_0012_3000, 1, 0x5_6000 | P | W | NX, P | W | U);
        tables.map(0xffff_8880_4020_0000, 2, 0x8060_0000 | P | U | PS | 0x1000, P | W | U);
        tables.map(0xffff_c881_0000_0000, 3, 0x2_4000_0000 | P | W | PS, P | W | U | NX);
        let space = tables.space();
        let small = space.translate(Gva(0xffff_8880_0012_3abc)).unwrap();
        assert_eq!((small.gpa, small.page_shift, small.remaining()), (Gpa(0x5_6abc), 12, 0x544));
        assert!(small.access.writable && !small.access.user && !small.access.executable);
        let large = space.translate(Gva(0xffff_8880_4023_4567)).unwrap();
        assert_eq!((large.gpa, large.page_shift), (Gpa(0x8063_4567), 21), "bit 12 is PAT, not address");
        assert!(!large.access.writable && large.access.user && large.access.executable);
        let huge = space.translate(Gva(0xffff_c881_1234_5678)).unwrap();
        assert_eq!((huge.gpa, huge.page_shift), (Gpa(0x2_5234_5678), 30));
        assert!(huge.access.writable && !huge.access.user && !huge.access.executable);
    }
}

#[test]
fn each_way_not_to_translate_has_its_fault() {
    let mut tables = Tables::new(4);
    let swapped = 0x1234_5600;
    tables.map(0x4000_0000, 1, swapped, P | U);
    tables.map(0x4000_1000, 1, 0x7000 | P, P | U);
    tables.map(0x80_0000_0000, 4, 0x4000_0000 | P, 0);
    tables.map(0x100_0000_0000, 4, P | PS, 0);
    let space = tables.space();
    let root = Gpa(0x1000);
    let fault = |at| space.translate(Gva(at)).unwrap_err();
    assert_eq!(
        fault(0x4000_0123),
        Fault::NotPresent { at: Gva(0x4000_0123), level: 1, entry: swapped, root }
    );
    assert_eq!(fault(0x4020_0000), Fault::NotPresent { at: Gva(0x4020_0000), level: 2, entry: 0, root });
    assert_eq!(
        fault(0x180_0000_0000),
        Fault::NotPresent { at: Gva(0x180_0000_0000), level: 4, entry: 0, root }
    );
    assert_eq!(fault(0x8000_0000_0000), Fault::NonCanonical { at: Gva(0x8000_0000_0000) });
    let missing = Fault::TableMissing { at: Gva(0x80_0000_0000), level: 3, table: Gpa(0x4000_0000) };
    assert_eq!(fault(0x80_0000_0000), missing);
    assert!(matches!(fault(0x100_0000_0000), Fault::Malformed { .. }));
    let mut two_pages = [0; 8192];
    assert_eq!(
        space.read(Gva(0x4000_1800), &mut two_pages),
        Err(Fault::NotPresent { at: Gva(0x4000_2000), level: 1, entry: 0, root })
    );
    assert_eq!(space.read(Gva(u64::MAX - 3), &mut [0; 8]).unwrap_err(), fault(u64::MAX - 3));
}

#[test]
fn a_read_past_the_last_address_overflows() {
    let mut tables = Tables::new(4);
    tables.map(0xffff_ffff_ffff_f000, 1, 0x7000 | P, P);
    let read = tables.space().read(Gva(u64::MAX - 3), &mut [0; 8]);
    assert_eq!(read, Err(Fault::Overflow { at: u64::MAX - 3 }));
}

#[test]
fn resident_but_inaccessible_pages_are_read_only_when_asked_for() {
    let mut tables = Tables::new(4);
    tables.memory.write(0x7000, b"hinting fault");
    let inverted = (0x7000 ^ 0xf_ffff_ffff_f000) | PROT_NONE | U;
    tables.map(0x4000_0000, 1, inverted, P | U);
    let mut text = [0; 13];
    let fault = tables.space().read(Gva(0x4000_0000), &mut text).unwrap_err();
    assert!(matches!(fault, Fault::NotPresent { level: 1, entry, .. } if entry == inverted));
    tables.space().with_inaccessible().read(Gva(0x4000_0000), &mut text).unwrap();
    assert_eq!(&text, b"hinting fault");
}

#[test]
fn zero_bytes_at_an_unmapped_address_are_a_fault_still() {
    assert!(Tables::new(4).space().read(Gva(0x1000), &mut []).is_err());
}

#[test]
fn a_table_that_points_to_itself_ends_in_a_limit() {
    let mut memory = Flat::zeroed(2);
    for slot in 0..512 {
        memory.write(0x1000 + slot * 8, &(0x1000 | P | W).to_le_bytes());
    }
    let space = AddressSpace::new(&memory, Gpa(0x1000), Levels::Four);
    let last = space.mappings(Gva(0), Gva(0x7fff_ffff_ffff)).last().unwrap();
    assert!(matches!(last, Err(Fault::Limit { limit: MAX_TABLES, .. })));
}

#[test]
fn mappings_go_on_behind_a_table_that_is_missing() {
    let mut tables = Tables::new(4);
    tables.map(0x4000_0000, 1, 0x7000 | P, P);
    tables.map(0x4020_0000, 2, 0x4000_0000 | P, P);
    tables.map(0x4040_0000, 2, 0x40_0000 | P | PS, P);
    let space = tables.space();
    let found: Vec<_> = space.mappings(Gva(0), Gva(0x7fff_ffff_ffff)).collect();
    assert_eq!(found.len(), 3);
    assert!(matches!(found[0], Ok(Mapping { gva: Gva(0x4000_0000), gpa: Gpa(0x7000), page_shift: 12, .. })));
    assert!(matches!(found[1], Err(Fault::TableMissing { at: Gva(0x4020_0000), level: 1, .. })));
    assert!(matches!(found[2], Ok(Mapping { gva: Gva(0x4040_0000), page_shift: 21, .. })));
    let part: Vec<_> = space.mappings(Gva(0x4040_1000), Gva(0x4040_1000)).collect();
    assert_eq!(part, [found[2]], "a large page that only overlaps the range");
}

/// A few regions of the address space in which random pages collide with some probability.
fn page() -> impl Strategy<Value = (u64, u32)> {
    let region =
        prop_oneof![Just(0u64), Just(0x7f12_3400_0000), Just(0xffff_8880_0000_0000), Just(!0u64 << 31)];
    (region, 0u64..1 << 13, 1u32..=3).prop_filter_map("not canonical", |(base, page, level)| {
        let size = 1u64 << (12 + 9 * (level - 1));
        let va = base.checked_add(page % 1024 * size)? & !(size - 1);
        matches!(va.cast_signed() >> 47, 0 | -1).then_some((va, level))
    })
}

proptest! {
    #[test]
    fn translation_and_mappings_agree_with_what_was_mapped(
        pages in prop::collection::vec(page(), 1..24),
        five in any::<bool>(),
    ) {
        let mut tables = Tables::new(if five { 5 } else { 4 });
        let mut model: BTreeMap<u64, (u64, u32)> = BTreeMap::new();
        for (number, (va, level)) in pages.into_iter().enumerate() {
            if model.iter().any(|(start, (_, shift))| {
                // One page table per gigabyte at most, so that no large page is mapped over a table.
                start >> 30 == va >> 30 && (*shift != 12 + 9 * (level - 1) || *start == va)
            }) {
                continue;
            }
            let frame = (number as u64 + 1) << 30;
            let large = if level > 1 { PS } else { 0 };
            tables.map(va, level, frame | P | large, P);
            model.insert(va, (frame, 12 + 9 * (level - 1)));
        }
        let space = tables.space();
        for (start, (frame, shift)) in &model {
            for offset in [0, 0x123, (1u64 << shift) - 1] {
                let found = space.translate(Gva(start + offset)).unwrap();
                prop_assert_eq!((found.gpa, found.page_shift), (Gpa(frame + offset), *shift));
            }
        }
        let listed = |first, last| -> Vec<(u64, (u64, u32))> {
            space.mappings(Gva(first), Gva(last))
                .map(|mapping| mapping.unwrap())
                .map(|mapping| (mapping.gva.0, (mapping.gpa.0, mapping.page_shift)))
                .collect()
        };
        let mut all = listed(0, (1 << 47) - 1);
        all.extend(listed(!0 << 47, !0));
        prop_assert_eq!(all, model.into_iter().collect::<Vec<_>>());
    }
}
