//! Damaged and malicious blobs: an error or other types, never a panic, never without end.

use proptest::prelude::*;
use varve_formats::symbols::btf::{Btf, Kind, MAX_BTF_BYTES, TypeId};

use crate::btf_writer::{Writer, kernel_types};

/// Looks at everything that a blob offers.
fn walk(btf: &Btf) {
    for ty in btf.types() {
        let _ = (btf.type_size(ty.id), btf.resolve(ty.id).map(|ty| ty.id), btf.size_of(ty.name));
        match ty.kind {
            Kind::Struct(composite) | Kind::Union(composite) => {
                assert!(composite.members().count() <= composite.len());
                for member in composite.members() {
                    let _ = btf.member_of(ty.id, member.name);
                }
            }
            Kind::Enum(of) => assert!(of.enumerators().count() <= of.len()),
            _ => {}
        }
    }
}

#[test]
fn a_blob_cut_short_anywhere_is_an_error() {
    let blob = kernel_types();
    for len in 0..blob.len() {
        assert!(Btf::parse(&blob[..len]).is_err(), "{len} of {} bytes", blob.len());
    }
    walk(&Btf::parse(blob).unwrap());
}

#[test]
fn errors_say_where_and_what() {
    let blob = kernel_types();
    let error = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut changed = blob.clone();
        change(&mut changed);
        Btf::parse(changed).unwrap_err().to_string()
    };
    let word = |at: usize, value: u32| {
        move |blob: &mut Vec<u8>| blob[at..at + 4].copy_from_slice(&value.to_le_bytes())
    };
    assert_eq!(error(&|blob| blob[0] = 0), "BTF: offset 0x0: no BTF magic (9f eb)");
    assert_eq!(error(&|blob| blob[2] = 2), "BTF: offset 0x2: version is not 1");
    assert_eq!(error(&word(4, 8)), "BTF: offset 0x4: header of 8 bytes is too short");
    let end = blob.len();
    let beyond = format!(
        "BTF: offset 0x10: string section ends at 0x100000{:03x}, behind the blob's {end:#x} bytes",
        0
    );
    let strings = u32::from_le_bytes(blob[16..20].try_into().unwrap());
    assert_eq!(error(&word(20, 0x1000_0000 - 24 - strings)), beyond.replace("0x100000000", "0x10000000"));
    assert_eq!(error(&word(8, 4)), "BTF: offset 0x10: sections overlap or leave a gap");
    assert_eq!(error(&word(28, 0)), "BTF: offset 0x18: unknown type kind 0");
    assert_eq!(
        error(&word(28, 0x0400_ffff)),
        "BTF: offset 0x18: type record reaches behind the type section"
    );
    let huge = Btf::parse(vec![0; MAX_BTF_BYTES + 1]).unwrap_err().to_string();
    assert_eq!(huge, "BTF: offset 0x0: 67108865 bytes are more than the limit of 67108864");
}

#[test]
fn circles_end() {
    let mut w = Writer::new();
    let int = w.int("int", 4, true);
    let typedef = w.typedef("round", 3);
    w.typedef("and_round", typedef);
    w.modifier(10, 4);
    let array = w.array(5, 7);
    w.structure("itself", 8, &[("", 6, 0, None), ("x", int, 0, None)]);
    w.record("v", 14, false, 0, 7, &[0]);
    let btf = Btf::parse(w.finish()).unwrap();
    assert!(btf.resolve(TypeId(typedef)).is_none());
    assert_eq!(btf.size_of("round"), None);
    assert_eq!(btf.type_size(TypeId(array)), None);
    assert_eq!(btf.type_size(TypeId(7)), None, "a variable of its own type");
    assert_eq!(btf.member("itself", "missing"), None);
    walk(&btf);
}

#[test]
fn anonymous_structures_that_multiply_end() {
    // Each holds a thousand of the next: 1000^32 members to look at.
    let mut w = Writer::new();
    for level in 1..=40 {
        let fields: Vec<_> = (0..1000).map(|_| ("", level + 1, 0, None)).collect();
        w.structure(if level == 1 { "bomb" } else { "" }, 8, &fields);
    }
    let btf = Btf::parse(w.finish()).unwrap();
    assert_eq!(btf.member("bomb", "x"), None);
}

#[test]
fn sizes_that_overflow_are_not_sizes() {
    let mut w = Writer::new();
    w.structure("page", u32::MAX, &[("x", 2, u32::MAX, None)]);
    w.array(1, u32::MAX);
    w.array(2, u32::MAX);
    w.structure("outer", 8, &[("inner", 1, u32::MAX, None)]);
    let btf = Btf::parse(w.finish()).unwrap();
    assert_eq!(btf.type_size(TypeId(2)), Some(u64::from(u32::MAX) * u64::from(u32::MAX)));
    assert_eq!(btf.type_size(TypeId(3)), None);
    assert_eq!(btf.member("outer", "inner.x").unwrap().offset, (2 * u64::from(u32::MAX)) / 8);
}

#[test]
fn one_name_for_every_type_does_not_slow_lookups() {
    let mut w = Writer::new();
    w.int("same", 4, true);
    for _ in 0..200_000 {
        w.record("same", 7, false, 0, 0, &[]);
    }
    let btf = Btf::parse(w.finish()).unwrap();
    assert_eq!(btf.named("same").count(), 200_001);
    assert_eq!(btf.size_of("same"), Some(4));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn changed_bytes_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut blob = kernel_types();
        for (at, value) in changes {
            let at = at.index(blob.len());
            blob[at] = value;
        }
        if let Ok(btf) = Btf::parse(blob) {
            walk(&btf);
        }
    }

    #[test]
    fn changed_types_never_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0u32..64), 1..20),
    ) {
        // Small numbers in the type section: references and counts that exist.
        let mut blob = kernel_types();
        let words = u32::from_le_bytes(blob[12..16].try_into().unwrap()) as usize / 4;
        for (at, value) in changes {
            let at = 24 + at.index(words) * 4;
            blob[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        if let Ok(btf) = Btf::parse(blob) {
            walk(&btf);
        }
    }
}
