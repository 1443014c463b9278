use proptest::prelude::*;

use super::*;
use crate::Gfn;

fn record() -> impl Strategy<Value = Record> {
    let level = prop_oneof![Just(Level::Libxc), Just(Level::Libxl)];
    let kind = prop_oneof![0u32..20, any::<u32>()];
    (level, kind, prop::collection::vec(any::<u8>(), 0..60)).prop_map(|(level, kind, body)| Record {
        level,
        kind,
        body,
    })
}

fn state() -> impl Strategy<Value = SaveState> {
    let domain = prop_oneof![Just(DomainType::Pv), Just(DomainType::Hvm)];
    let config = prop::option::of((any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)));
    let run = (0u64..1 << 20, 1u64..300, 0u8..16);
    let runs = prop::collection::vec(run, 0..20);
    (domain, any::<(u32, u32)>(), config, runs, prop::collection::vec(record(), 0..12)).prop_map(
        |(domain, xen, config, runs, records)| {
            let config = config.map(|(is_json, bytes)| Config { is_json, bytes });
            let mut state = SaveState::new(Header { domain, xen, config, libxc_version: 3 });
            for (first, count, bits) in runs {
                if let Some(kind) = PageType::from_bits(bits) {
                    state.types.set(Gfn(first), count, kind).unwrap();
                }
            }
            for record in records {
                let part = Record::is_state(record.level, record.kind);
                assert_eq!(state.keep(record).is_ok(), part);
            }
            state
        },
    )
}

proptest! {
    #[test]
    fn a_state_comes_back_and_no_part_of_its_bytes_is_one(state in state()) {
        let bytes = state.encode();
        prop_assert_eq!(&SaveState::decode(&bytes).unwrap(), &state);
        for cut in 0..bytes.len() {
            prop_assert!(SaveState::decode(&bytes[..cut]).is_err());
        }
        prop_assert!(SaveState::decode(&[bytes, vec![0]].concat()).is_err());
    }

    #[test]
    fn damaged_bytes_are_refused_or_have_one_meaning(
        state in state(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut bytes = state.encode();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(other) = SaveState::decode(&bytes) {
            prop_assert_eq!(other.encode(), bytes);
        }
    }
}

#[test]
fn the_bytes_are_those_of_the_description() {
    let config = Some(Config { is_json: true, bytes: b"{}\0".to_vec() });
    let header = Header { domain: DomainType::Pv, xen: (4, 200), config, libxc_version: 3 };
    let mut state = SaveState::new(header);
    state.types.set(Gfn(0x100), 2, PageType::Table { level: 4, pinned: true }).unwrap();
    state.keep(Record::tsc_info(1, 2, 3, 4)).unwrap();
    let expected: &[&[u8]] = &[
        b"vxenstat\x01\x01\x04\xc8\x01\x02\x03{}\0\x01\x80\x02\x01\x0c",
        b"\x01\0\x08\0\0\0\x18\x01\0\0\0\x02\0\0\0\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0",
    ];
    assert_eq!(state.encode(), expected.concat());
}

#[test]
fn counts_that_lie_are_refused_before_anything_is_allocated() {
    let head = b"vxenstat\x01\x02\x04\x11";
    let refused = |rest: &[u8]| SaveState::decode(&[head, rest].concat()).unwrap_err().to_string();
    let cases: &[&[u8]] = &[
        b"\x02\xff\xff\xff\xff\x0f",
        b"\0\xff\xff\xff\xff\x0f",
        b"\0\0\xff\xff\xff\xff\x0f",
        b"\0\0\x01\0\x08\0\0\0\xff\xff\xff\xff\x0f",
        b"\0\x01\xff\xff\xff\xff\xff\xff\x7f",
        b"\0\x01\0\0\x0f",
        b"\0\x01\xff\xff\xff\xff\xff\x1f\x01\x01",
        b"\0\x02\0\0\x01\0\0\x01\0",
        b"\0\0\x01\0\0\0\0\0\0",
        b"\0\0\x02\0\x08\0\0\0\0\0\x08\0\0\0\0",
    ];
    let said: Vec<_> = cases.iter().map(|case| refused(case)).collect();
    insta::assert_snapshot!(said.join("\n"));
}

#[test]
fn a_later_record_takes_the_place_of_an_earlier_one_of_the_same_vcpu() {
    let header = Header { domain: DomainType::Pv, xen: (4, 17), config: None, libxc_version: 2 };
    let mut state = SaveState::new(header);
    let basic = |vcpu: u8, value: u8| Record {
        level: Level::Libxc,
        kind: libxc::X86_PV_VCPU_BASIC,
        body: vec![vcpu, 0, 0, 0, 0, 0, 0, 0, value],
    };
    for record in [basic(0, 1), basic(1, 2), Record::tsc_info(0, 0, 0, 0), basic(0, 3)] {
        state.keep(record).unwrap();
    }
    assert_eq!(state.records(), [basic(0, 3), basic(1, 2), Record::tsc_info(0, 0, 0, 0)]);
}
