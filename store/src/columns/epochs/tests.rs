use super::*;
use proptest::prelude::*;
use varve_formats::{TableRegister, Vcpu};

fn table() -> impl Strategy<Value = Option<TableRegister>> {
    proptest::option::of(any::<(u64, u16)>().prop_map(|(base, limit)| TableRegister { base, limit }))
}

fn vcpu() -> impl Strategy<Value = Vcpu> {
    (any::<(u32, [u64; 6])>(), any::<(Option<u64>, Option<u64>, Option<u64>)>(), table(), table()).prop_map(
        |((index, [rip, rsp, rflags, cr0, cr3, cr4]), (efer, gs_base, lstar), idtr, gdtr)| Vcpu {
            index,
            rip,
            rsp,
            rflags,
            cr0,
            cr3,
            cr4,
            efer,
            gs_base,
            idtr,
            gdtr,
            lstar,
        },
    )
}

prop_compose! {
    fn record()(
        (number, id) in any::<(u64, [u8; 32])>(),
        times in any::<(i64, i64)>(),
        counts in any::<[u64; 5]>(),
        root in any::<[u8; 32]>(),
        vm in "[A-Za-z0-9._-]{1,64}",
        source in ".{0,100}",
        varve_version in "[0-9.]{0,20}",
        runs in proptest::collection::vec((0u64..9, 1u64..9), 1..5),
        vcpus in proptest::collection::vec(vcpu(), 0..4),
        residue in proptest::collection::vec((0u64..9, 1u64..9), 0..4),
        state in proptest::option::of(any::<[u8; 32]>()),
        restorable: bool,
        disk_snapshot in proptest::option::of(".{0,50}"),
    ) -> EpochRecord {
        let mut next = 0;
        let regions = runs.into_iter().map(|(gap, frames)| {
            let start = Gpa((next + gap) << 12);
            next += gap + frames;
            Region { start, len: frames << 12 }
        }).collect();
        let [pages, pages_zero, pages_changed, pages_stored, bytes_stored] = counts;
        EpochRecord {
            id: EpochId([0; 32]), previous: (number > 0).then_some(EpochId(id)), number, vm, source, varve_version, regions,
            taken_at_ns: times.0, committed_at_ns: times.1, pages, pages_zero, pages_changed, pages_stored, bytes_stored,
            root: Digest(root), vcpus, restorable, state: state.map(Digest), disk_snapshot,
            residue: residue.into_iter().map(|(start, frames)| Region { start: Gpa(start << 12), len: frames << 12 }).collect(),
        }
    }
}

proptest! {
    #[test]
    fn records_come_back(record in record()) {
        let bytes = encode(&record).unwrap();
        let again = Epochs::decode(&(1, record.number), &bytes).unwrap();
        prop_assert_eq!(again.id, id_of(&bytes));
        prop_assert_eq!(encode(&again).unwrap(), bytes);
        prop_assert_eq!(EpochRecord { id: record.id, ..again }, record);
    }

    #[test]
    fn damaged_records_are_records_or_malformed(record in record(), at: proptest::sample::Index, value: u8) {
        let mut bytes = encode(&record).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = value;
        let _ = Epochs::decode(&(1, record.number), &bytes);
        prop_assert!(Epochs::decode(&(1, record.number), &bytes[..at]).is_err());
    }
}

fn sample() -> EpochRecord {
    EpochRecord {
        id: EpochId([0; 32]),
        previous: Some(EpochId([0xbb; 32])),
        vm: "web1".into(),
        number: 3,
        taken_at_ns: 1_000_000_000,
        committed_at_ns: 1_000_000_001,
        source: "image a.raw".into(),
        varve_version: "0.1.0".into(),
        regions: vec![Region { start: Gpa(0), len: 0x1000 }, Region { start: Gpa(0x10_0000), len: 0x2000 }],
        pages: 3,
        pages_zero: 1,
        pages_changed: 2,
        pages_stored: 1,
        bytes_stored: 500,
        root: Digest([0xaa; 32]),
        vcpus: vec![Vcpu {
            index: 0,
            rip: 0x11,
            cr3: 0x22,
            efer: Some(0x33),
            idtr: Some(TableRegister { base: 0x44, limit: 0x55 }),
            ..Vcpu::default()
        }],
        residue: Vec::new(),
        state: None,
        restorable: false,
        disk_snapshot: None,
    }
}

#[test]
fn the_bytes_of_a_record() {
    let bytes = encode(&sample()).unwrap();
    let rows: Vec<String> =
        bytes.chunks(16).map(|row| row.iter().map(|byte| format!("{byte:02x}")).collect()).collect();
    insta::assert_snapshot!(rows.join("\n"), @r"
    564550520100030000000000000000ca
    9a3b0000000001ca9a3b000000000300
    00000000000001000000000000000200
    0000000000000100000000000000f401
    000000000000aaaaaaaaaaaaaaaaaaaa
    aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa
    aaaaaaaaaaaabbbbbbbbbbbbbbbbbbbb
    bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb
    bbbbbbbbbbbb047765623105302e312e
    300b00696d61676520612e7261770200
    00000000000000000010000000000000
    00001000000000000020000000000000
    01000100490000000100000000000511
    00000000000000000000000000000000
    00000000000000000000000000000022
    00000000000000000000000000000033
    00000000000000440000000000000055
    00
    ");
}

#[test]
fn what_a_later_varve_may_write_is_refused_by_name() {
    let bytes = encode(&sample()).unwrap();
    let section = bytes.windows(8).position(|window| window[..4] == [1, 0, 1, 0]).unwrap();
    let refused = |at: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = value;
        Epochs::decode(&(1, 3), &bytes).unwrap_err().to_string()
    };
    assert_eq!(refused(4, 2), "layout version 2 is unknown to this varve");
    assert_eq!(refused(5, 2), "flags 0x02 are unknown to this varve");
    assert_eq!(refused(section + 2, 99), "section 99 is unknown to this varve");
    assert_eq!(refused(section + 2, 0), "sections are not ascending");
    assert_eq!(refused(6, 4), "it says it is epoch 4");
    assert_eq!(refused(6, 0), "every record but the first names the one before");
}

#[test]
fn oversized_fields_are_refused() {
    let long = EpochRecord { source: "x".repeat(MAX_SOURCE_LEN + 1), ..sample() };
    assert!(encode(&long).is_err());
    let many = EpochRecord { vcpus: vec![Vcpu::default(); 4097], ..sample() };
    assert!(encode(&many).is_err());
}
