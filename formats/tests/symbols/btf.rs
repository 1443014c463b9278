//! Every kind of type reads back as it was written; members are found where C puts them.

use proptest::prelude::*;
use varve_formats::Gva;
use varve_formats::symbols::btf::{ArrayShape, BitField, Btf, BtfError, Kind, Member, TypeId};
use varve_formats::symbols::kallsyms::Kallsyms;

use crate::btf_writer::{Writer, kernel_types};
use crate::guest::Guest;
use crate::kernel::{DATA, form, kernel_symbols, write};

fn kernel() -> Btf {
    Btf::parse(kernel_types()).unwrap()
}

fn member(structure: &str, path: &str) -> Member {
    kernel().member(structure, path).unwrap_or_else(|| panic!("{structure}.{path}"))
}

fn at(structure: &str, path: &str) -> (u64, u64) {
    let member = member(structure, path);
    (member.offset, member.size)
}

#[test]
fn members_are_found_where_c_puts_them() {
    assert_eq!(at("task_struct", "__state"), (0, 4));
    assert_eq!(at("task_struct", "usage"), (4, 4));
    assert_eq!(at("task_struct", "usage.counter"), (4, 4));
    assert_eq!(at("task_struct", "tasks"), (16, 16));
    assert_eq!(at("task_struct", "tasks.prev"), (24, 8));
    assert_eq!(at("task_struct", "mm"), (32, 8));
    assert_eq!(at("task_struct", "handler"), (64, 8));
    assert_eq!(at("task_struct", "kind"), (72, 4));
    assert_eq!(at("atomic_t", "counter"), (0, 4), "a typedef of a structure without a name");
}

#[test]
fn anonymous_structures_and_unions_are_looked_through() {
    assert_eq!(at("mm_struct", "mm_mt.ma_root"), (8, 8));
    assert_eq!(at("mm_struct", "mm_rb"), (0, 8));
    assert_eq!(at("mm_struct", "pgd"), (16, 8));
    assert_eq!(at("mm_struct", "flags"), (24, 4));
}

#[test]
fn arrays_tell_their_elements() {
    let btf = kernel();
    let char = btf.named("char").next().unwrap().id;
    let comm = member("task_struct", "comm");
    assert_eq!((comm.offset, comm.size), (40, 16));
    assert_eq!(comm.array, Some(ArrayShape { count: 16, element_size: 1, element: char }));
    let flexible = member("mm_struct", "cpu_bitmap");
    assert_eq!((flexible.offset, flexible.size), (40, 0));
    assert_eq!(flexible.array.map(|array| (array.count, array.element_size)), Some((0, 8)));
}

#[test]
fn bit_fields_tell_their_bits() {
    let bits = |path| (member("task_struct", path).offset, member("task_struct", path).bits);
    assert_eq!(bits("sched_reset_on_fork"), (8, Some(BitField { shift: 0, width: 1 })));
    assert_eq!(bits("in_execve"), (8, Some(BitField { shift: 2, width: 3 })));
    assert_eq!(member("task_struct", "mm").bits, None);
}

#[test]
fn bit_fields_of_old_blobs_are_narrow_integers() {
    let mut w = Writer::new();
    let narrow = w.record("unsigned int", 1, false, 0, 4, &[3 << 16 | 5]);
    w.structure("old", 8, &[("flags", narrow, 32, None)]);
    let member = Btf::parse(w.finish()).unwrap().member("old", "flags").unwrap();
    assert_eq!((member.offset, member.bits), (4, Some(BitField { shift: 3, width: 5 })));
}

#[test]
fn what_is_not_there_is_not_found() {
    let btf = kernel();
    for path in ["", ".", "pcpu", "tasks.", "tasks..next", "tasks.next.next", "mm.pgd", "comm.x", "__state.x"]
    {
        assert_eq!(btf.member("task_struct", path), None, "{path:?}");
    }
    for name in ["", "io_context", "do_work", "cpu_hot", "int", "task"] {
        assert_eq!(btf.struct_named(name), None, "{name:?}");
    }
    assert_eq!(btf.size_of("io_context"), None);
    assert!(btf.ty(TypeId(btf.len() as u32 + 1)).is_none());
    assert!(btf.ty(TypeId(u32::MAX)).is_none());
}

#[test]
fn sizes_by_name() {
    let btf = kernel();
    let sizes = ["task_struct", "list_head", "atomic_t", "int", "double", "pid_type", "wide"]
        .map(|name| btf.size_of(name));
    assert_eq!(sizes, [Some(80), Some(16), Some(4), Some(4), Some(8), Some(4), Some(8)]);
}

#[test]
fn enumerators_have_their_values() {
    let btf = kernel();
    assert_eq!(btf.enum_value("pid_type", "PIDTYPE_TGID"), Some(1));
    assert_eq!(btf.enum_value("pid_type", "WIDE_MIN"), None);
    assert_eq!(btf.enumerator("PIDTYPE_MAX"), Some(4));
    assert_eq!(btf.enumerator("WIDE_MIN"), Some(i64::MIN.into()));
    assert_eq!(btf.enum_value("wide", "WIDE_MAX"), Some(i64::MAX.into()));
    let all: Vec<_> = btf.enumerators("pid_type").collect();
    assert_eq!(all, [("PIDTYPE_PID", 0), ("PIDTYPE_TGID", 1), ("PIDTYPE_MAX", 4)]);
    assert_eq!(btf.enumerators("task_struct").count(), 0);
}

#[test]
fn enumerations_are_signed_when_they_say_so_or_hold_a_negative_value() {
    let value = |signed, wide: bool| {
        let mut w = Writer::new();
        match wide {
            true => w.enumeration64("e", signed, &[("A", -1)]),
            false => w.enumeration("e", signed, &[("A", -1)]),
        };
        Btf::parse(w.finish()).unwrap().enum_value("e", "A").unwrap()
    };
    assert_eq!(value(true, false), -1);
    assert_eq!(value(false, false), -1, "blobs before the flag");
    assert_eq!(value(true, true), -1);
    assert_eq!(value(false, true), u64::MAX.into());
}

#[test]
fn every_kind_is_what_it_is() {
    let btf = kernel();
    let kinds = btf.types().map(|ty| match ty.kind {
        Kind::Void => "void",
        Kind::Int(_) => "int",
        Kind::Float { size: 8 } => "float",
        Kind::Float { .. } => "float of another size",
        Kind::Pointer(_) => "pointer",
        Kind::Array(_) => "array",
        Kind::Struct(_) => "struct",
        Kind::Union(_) => "union",
        Kind::Enum(_) => "enum",
        Kind::Forward { .. } => "forward",
        Kind::Typedef(_) => "typedef",
        Kind::Modifier(_) => "modifier",
        Kind::Function(_) => "function",
        Kind::Prototype(_) => "prototype",
        Kind::Variable(_) => "variable",
        Kind::Section { .. } => "section",
        Kind::Tag(_) => "tag",
        Kind::Unknown => "unknown",
    });
    let kinds: Vec<_> = kinds.collect();
    let expected = "int int int int pointer struct array struct typedef struct typedef enum modifier struct struct \
        union struct array struct pointer forward pointer prototype pointer struct function variable section float \
        tag modifier enum";
    assert_eq!(kinds.join(" "), expected);
    assert_eq!(btf.len(), kinds.len());
    assert!(matches!(btf.ty(TypeId::VOID).unwrap().kind, Kind::Void));
}

#[test]
fn of_structures_that_share_a_name_the_first_with_members_counts() {
    let mut w = Writer::new();
    let int = w.int("int", 4, true);
    w.structure("twin", 0, &[]);
    let second = w.structure("twin", 8, &[("a", int, 32, None)]);
    w.structure("twin", 16, &[("a", int, 64, None)]);
    let btf = Btf::parse(w.finish()).unwrap();
    assert_eq!(btf.struct_named("twin"), Some(TypeId(second)));
    assert_eq!(btf.named("twin").count(), 3);
    assert_eq!(btf.member("twin", "a").unwrap().offset, 4);
}

#[test]
fn kinds_to_come_are_passed_over_when_the_blob_tells_their_length() {
    let unknown = |with_layout: bool| {
        let mut w = Writer::new();
        let int = w.int("int", 4, true);
        if with_layout {
            w.layout(99, 4, 8);
        }
        let info = w.record("future", 99, false, 2, 0, &[1, 2, 3, 4, 5]);
        let after = w.structure("after", 4, &[("x", int, 0, None)]);
        (w.finish(), info, after)
    };
    let (blob, future, after) = unknown(true);
    let btf = Btf::parse(blob).unwrap();
    assert!(matches!(btf.ty(TypeId(future)).unwrap().kind, Kind::Unknown));
    assert_eq!(btf.struct_named("after"), Some(TypeId(after)));
    let error = Btf::parse(unknown(false).0).unwrap_err();
    assert_eq!(error.to_string(), "BTF: offset 0x28: unknown type kind 99");
}

#[test]
fn the_bytes_of_a_blob_end_with_its_strings() {
    let blob = kernel_types();
    let mut longer = blob.clone();
    longer.extend([0xaa; 100]);
    assert_eq!(Btf::parse(longer).unwrap().bytes(), blob);
}

/// A guest whose symbols say that BTF is at [`DATA`].
fn guest_with_btf(blob: Vec<u8>, len: u64) -> (Guest, Kallsyms) {
    let mut symbols = kernel_symbols(&form("6.4"));
    symbols.retain(|entry| entry.0 < DATA);
    symbols.push((DATA, 'r', "__start_BTF".to_owned()));
    symbols.push((DATA + len, 'r', "__stop_BTF".to_owned()));
    let mut written = write(&form("6.4"), &symbols);
    let mut data = blob;
    data.resize(data.len().next_multiple_of(0x1000), 0);
    *written.guest.piece(2) = data;
    let kallsyms = Kallsyms::decode(&written.guest, &written.hints).unwrap();
    (written.guest, kallsyms)
}

#[test]
fn the_kernels_blob_lies_between_its_symbols() {
    let blob = kernel_types();
    let (guest, kallsyms) = guest_with_btf(blob.clone(), blob.len() as u64);
    let (at, btf) = Btf::locate(&guest, &kallsyms).unwrap();
    assert_eq!((at, btf.bytes()), (Gva(DATA), &blob[..]));
}

#[test]
fn what_stands_in_the_way_of_the_blob_is_told() {
    let located = |blob: Vec<u8>, len| {
        let (guest, kallsyms) = guest_with_btf(blob, len);
        Btf::locate(&guest, &kallsyms).map(|found| found.0)
    };
    let blob = kernel_types();
    assert!(matches!(located(blob.clone(), 0), Err(BtfError::Bounds { .. })));
    assert!(matches!(located(blob.clone(), 1 << 30), Err(BtfError::Bounds { .. })));
    assert!(matches!(located(blob.clone(), 0x10_0000), Err(BtfError::Fault { at: Gva(DATA), .. })));
    assert!(matches!(located(blob, 100), Err(BtfError::Format { at: Gva(DATA), .. })));
    let written = write(&form("6.4"), &kernel_symbols(&form("6.4")));
    let kallsyms = Kallsyms::decode(&written.guest, &written.hints).unwrap();
    let result = Btf::locate(&written.guest, &kallsyms);
    assert!(matches!(result, Err(BtfError::NoSymbol { symbol: "__start_BTF" })));
}

#[test]
fn a_search_finds_the_kernels_blob_and_no_others() {
    let mut w = Writer::new();
    w.int("int", 4, true);
    let module = w.finish();
    let kernel = kernel_types();
    let mut memory = vec![0; 0x8000];
    memory[0x123..0x123 + module.len()].copy_from_slice(&module);
    memory[0x2ff4..0x2ff8].copy_from_slice(&[0x9f, 0xeb, 1, 0]);
    // Across the end of a page, and not aligned.
    memory[0x3ff1..0x3ff1 + kernel.len()].copy_from_slice(&kernel);
    let guest = Guest::new(vec![(DATA, memory)]);
    let (at, btf) = Btf::search(&guest, Gva(DATA - 0x1000), 0x10_0000).unwrap();
    assert_eq!((at, btf.bytes()), (Gva(DATA + 0x3ff1), &kernel[..]));
    assert!(Btf::search(&guest, Gva(DATA), 0x3000).is_none());
}

#[test]
fn another_writer_is_understood() {
    let mut w = varve_fixtures::synth::btf::BtfWriter::default();
    let int = w.int("int", 4, true);
    let array = w.array(int, int, 3);
    let constant = w.constant(array);
    let whole = varve_fixtures::synth::btf::Member::new;
    let union = w.union("", 12, &[whole("triple", constant, 0), whole("single", int, 0)]);
    let flags = varve_fixtures::synth::btf::Member { name: "flags", kind: int, bit_offset: 133, bits: 7 };
    w.structure("s", 20, &[whole("first", int, 0), whole("", union, 4), flags]);
    w.enumeration("e", &[("LOW", -5), ("HIGH", 5)]);
    w.enumeration64("wide", &[("ALL", u64::MAX)]);
    let btf = Btf::parse(w.finish()).unwrap();
    let triple = btf.member("s", "triple").unwrap();
    assert_eq!((triple.offset, triple.size, triple.array.unwrap().count), (4, 12, 3));
    assert_eq!(btf.member("s", "single").unwrap().offset, 4);
    let flags = btf.member("s", "flags").unwrap();
    assert_eq!((flags.offset, flags.bits), (16, Some(BitField { shift: 5, width: 7 })));
    assert_eq!((btf.enumerator("LOW"), btf.enumerator("ALL")), (Some(-5), Some(u64::MAX.into())));
}

proptest! {
    #[test]
    fn members_of_any_structure_are_found(
        members in prop::collection::btree_map("[a-z_][a-z0-9_]{0,12}", (0u32..1000, prop::option::of(1u32..32)), 1..40),
        depth in 0u32..6,
    ) {
        let mut w = Writer::new();
        let int = w.int("unsigned int", 4, false);
        let with_bits = members.values().any(|member| member.1.is_some());
        let fields: Vec<_> = members.iter().map(|(name, (word, bits))| (name.as_str(), int, word * 32, *bits)).collect();
        let mut outer = w.structure(if depth == 0 { "s" } else { "" }, 4000, &fields);
        for level in (0..depth).rev() {
            outer = w.structure(if level == 0 { "s" } else { "" }, 8000, &[("", outer, 64, None)]);
        }
        let btf = Btf::parse(w.finish()).unwrap();
        for (name, (word, bits)) in &members {
            let found = btf.member("s", name).unwrap();
            prop_assert_eq!(found.offset, u64::from(word * 4 + depth * 8));
            prop_assert_eq!(found.bits.map(|bits| bits.width), *bits);
            prop_assert_eq!(found.size, 4);
        }
        prop_assert!(with_bits || btf.member("s", "not there").is_none());
    }
}
