//! Symbol files for Volatility: what it needs is in them, where it looks for it.

use proptest::prelude::*;
use serde_json::{Value, json};
use varve_fixtures::synth::kallsyms::Encoding as Form;
use varve_formats::symbols::btf::Btf;
use varve_formats::symbols::isf::{self, Source};
use varve_formats::symbols::kallsyms::Kallsyms;

use crate::btf_writer::{Writer, kernel_types};
use crate::kernel::{BANNER, DATA, Entry, RODATA, TEXT, form, kernel_symbols, write};

fn percpu_form() -> Form {
    form("6.4")
}

fn file_of(form: &Form, symbols: &[Entry], types: Vec<u8>, kernel_offset: u64) -> Vec<u8> {
    let written = write(form, symbols);
    let kallsyms = Kallsyms::decode(&written.guest, &written.hints).unwrap();
    let btf = Btf::parse(types).unwrap();
    let banner = kallsyms.banner(&written.guest).unwrap();
    let mut out = Vec::new();
    isf::write(&Source { kallsyms: &kallsyms, btf: &btf, banner: &banner, kernel_offset }, &mut out).unwrap();
    out
}

fn json_of(types: Vec<u8>) -> Value {
    serde_json::from_slice(&file_of(&percpu_form(), &kernel_symbols(&percpu_form()), types, 0)).unwrap()
}

#[test]
fn the_whole_file() {
    let file = file_of(&percpu_form(), &kernel_symbols(&percpu_form()), kernel_types(), 0);
    let version = format!("\"version\":\"{}\"", env!("CARGO_PKG_VERSION"));
    let json: Value = serde_json::from_slice(&file).unwrap();
    assert!(String::from_utf8(file).unwrap().contains(&version));
    let mut json = json;
    json["metadata"]["producer"]["version"] = "any".into();
    insta::assert_snapshot!(serde_json::to_string_pretty(&json).unwrap());
}

#[test]
fn equal_sources_give_equal_files() {
    let file = || file_of(&percpu_form(), &kernel_symbols(&percpu_form()), kernel_types(), 0);
    assert_eq!(file(), file());
}

#[test]
fn addresses_are_those_the_kernel_was_linked_at() {
    let file = file_of(&percpu_form(), &kernel_symbols(&percpu_form()), kernel_types(), 0x100_0000);
    let symbols = &serde_json::from_slice::<Value>(&file).unwrap()["symbols"];
    assert_eq!(symbols["_stext"]["address"], json!(TEXT - 0x100_0000));
    assert_eq!(symbols["init_task"]["address"], json!(DATA - 0x100_0000));
    assert_eq!(symbols["cpu_hot"]["address"], json!(0x2_0000), "KASLR does not move per-CPU offsets");
}

#[test]
fn the_banner_is_where_volatility_looks_for_it() {
    let symbols = &json_of(kernel_types())["symbols"];
    assert_eq!(symbols["linux_banner"]["address"], json!(RODATA));
    let encoded = symbols["linux_banner"]["constant_data"].as_str().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits: Vec<u32> =
        encoded.bytes().filter_map(|byte| alphabet.find(char::from(byte))).map(|v| v as u32).collect();
    let mut decoded: Vec<u8> = digits
        .chunks(4)
        .flat_map(|four| {
            let group = four.iter().fold(0, |group, digit| group << 6 | digit) << (6 * (4 - four.len()));
            group.to_be_bytes()[1..].to_vec()
        })
        .collect();
    decoded.truncate(BANNER.len());
    assert_eq!(decoded, BANNER.as_bytes());
}

#[test]
fn globals_have_their_types() {
    let symbols = &json_of(kernel_types())["symbols"];
    assert_eq!(symbols["init_task"]["type"], json!({"kind": "struct", "name": "task_struct"}));
    let pointer = json!({"kind": "pointer", "subtype": {"kind": "struct", "name": "mm_struct"}});
    assert_eq!(symbols["cpu_hot"]["type"], pointer, "a variable that BTF describes");
    assert_eq!(symbols["x64_sys_call"]["type"], json!({"kind": "function"}));
    assert_eq!(symbols["__bss_start"]["type"], json!({"kind": "base", "name": "void"}));
    assert_eq!(symbols["show"]["address"], json!(TEXT + 0x40), "the first of two");
    let banner = json!({"kind": "array", "count": 0x100, "subtype": {"kind": "base", "name": "char"}});
    assert_eq!(symbols["linux_banner"]["type"], banner, "an array up to the next symbol");
    assert_eq!(symbols["kallsyms_num_syms"]["type"], json!({"kind": "base", "name": "unsigned int"}));
    assert!(symbols["kallsyms_names"]["address"].is_u64());
}

#[test]
fn the_timekeeper_is_found_whatever_holds_it() {
    let unnamed = json_of(kernel_types());
    assert_eq!(unnamed["symbols"]["tk_core"]["type"], json!({"kind": "struct", "name": "tk_core"}));
    let field = json!({"offset": 8, "type": {"kind": "struct", "name": "timekeeper"}});
    assert_eq!(unnamed["user_types"]["tk_core"]["fields"]["timekeeper"], field);

    // 6.17 on.
    let mut w = Writer::new();
    let int = w.int("int", 4, true);
    w.structure("tk_data", 0x100, &[("timekeeper", int, 64, None)]);
    let mut symbols = kernel_symbols(&percpu_form());
    symbols.iter_mut().find(|entry| entry.2 == "tk_core").unwrap().2 = "timekeeper_data".to_owned();
    let file = file_of(&percpu_form(), &symbols, w.finish(), 0);
    let json: Value = serde_json::from_slice(&file).unwrap();
    assert!(json["user_types"]["tk_core"].is_null());
    assert_eq!(json["symbols"]["tk_core"]["type"], json!({"kind": "struct", "name": "tk_data"}));
    assert_eq!(json["symbols"]["tk_core"]["address"], json["symbols"]["timekeeper_data"]["address"]);
}

#[test]
fn taint_flags_are_listed_when_volatility_understands_them() {
    let with = |member: &str| {
        let mut w = Writer::new();
        let char = w.int("char", 1, true);
        w.structure("taint_flag", 16, &[("c_true", char, 0, None), (member, char, 16, None)]);
        let mut symbols = kernel_symbols(&percpu_form());
        symbols.iter_mut().find(|entry| entry.2 == "tk_core").unwrap().2 = "taint_flags".to_owned();
        let file = file_of(&percpu_form(), &symbols, w.finish(), 0);
        serde_json::from_slice::<Value>(&file).unwrap()["symbols"]["taint_flags"]["type"]["count"].clone()
    };
    assert_eq!(with("module"), json!(0x2000 / 16));
    assert_eq!(with("desc"), json!(0));
}

#[test]
fn types_that_share_a_name_keep_apart() {
    let mut w = Writer::new();
    let int = w.int("int", 4, true);
    let first = w.structure("twin", 8, &[("a", int, 0, None)]);
    let second = w.structure("twin", 16, &[("b", int, 0, None)]);
    let same_union = w.union("twin", 4, &[("c", int, 0, None)]);
    let unnamed = w.structure("", 4, &[("d", int, 0, None)]);
    w.structure("", 12, &[("e", int, 0, None)]);
    w.typedef("twin_t", second);
    w.typedef("unnamed_t", unnamed);
    let fields = [
        ("x", first, 0, None),
        ("y", second, 64, None),
        ("z", same_union, 192, None),
        ("u", unnamed, 224, None),
    ];
    w.structure("holder", 32, &fields);
    let types = &json_of(w.finish())["user_types"];
    let name = |field: &str| types["holder"]["fields"][field]["type"]["name"].as_str().unwrap().to_owned();
    assert_eq!(["x", "y", "z", "u"].map(name), ["twin", "twin_3", "twin_4", "unnamed_t"]);
    assert_eq!(types["twin"]["size"], json!(8));
    assert_eq!(types["twin_3"], types["twin_t"]);
    assert_eq!(types["unnamed_6"]["size"], json!(12));
}

#[test]
fn bit_fields_count_from_their_storage_unit() {
    let mut w = Writer::new();
    let byte = w.int("unsigned char", 1, false);
    let word = w.int("unsigned int", 4, false);
    let fields = [("a", byte, 9, Some(3)), ("b", word, 37, Some(4)), ("packed", word, 62, Some(6))];
    w.structure("s", 12, &fields);
    let fields = &json_of(w.finish())["user_types"]["s"]["fields"];
    let place = |name: &str| {
        let field = &fields[name];
        let number = |value: &Value| value.as_u64().unwrap();
        [&field["offset"], &field["type"]["bit_position"], &field["type"]["bit_length"]].map(number)
    };
    assert_eq!(place("a"), [1, 1, 3]);
    assert_eq!(place("b"), [4, 5, 4]);
    assert_eq!(place("packed"), [7, 6, 6], "across two units: from its first byte");
}

#[test]
fn types_in_circles_end_in_void() {
    let mut w = Writer::new();
    let pointer = w.pointer(2);
    w.typedef("endless", pointer);
    w.structure("s", 8, &[("p", pointer, 0, None)]);
    let file = json_of(w.finish());
    let mut shape = &file["user_types"]["s"]["fields"]["p"]["type"];
    let mut depth = 0;
    while shape["kind"] == "pointer" {
        shape = &shape["subtype"];
        depth += 1;
    }
    assert_eq!(*shape, json!({"kind": "base", "name": "void"}));
    assert_eq!(depth, 12);
}

#[test]
fn types_that_multiply_are_an_error() {
    // A thousand names for a structure of 60,000 members.
    let mut w = Writer::new();
    let int = w.int("int", 4, true);
    let fields: Vec<_> = (0..60_000).map(|n| ("m", int, n * 32, None)).collect();
    let big = w.structure("big", 240_000, &fields);
    for n in 0..1000 {
        w.typedef(&format!("alias_{n}"), big);
    }
    let written = write(&percpu_form(), &kernel_symbols(&percpu_form()));
    let kallsyms = Kallsyms::decode(&written.guest, &written.hints).unwrap();
    let btf = Btf::parse(w.finish()).unwrap();
    let source = Source { kallsyms: &kallsyms, btf: &btf, banner: b"", kernel_offset: 0 };
    let error = isf::write(&source, std::io::sink()).unwrap_err();
    assert_eq!(error.to_string(), "the types have more than 4194304 members");
}

#[test]
fn a_full_disk_is_an_error() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let written = write(&percpu_form(), &kernel_symbols(&percpu_form()));
    let kallsyms = Kallsyms::decode(&written.guest, &written.hints).unwrap();
    let btf = Btf::parse(kernel_types()).unwrap();
    let source = Source { kallsyms: &kallsyms, btf: &btf, banner: b"", kernel_offset: 0 };
    assert_eq!(isf::write(&source, Full).unwrap_err().kind(), std::io::ErrorKind::StorageFull);
}

/// Every type that something refers to is described.
fn assert_closed(json: &Value, shape: &Value) {
    let name = || shape["name"].as_str().unwrap();
    let described = match shape["kind"].as_str().unwrap() {
        "pointer" | "array" => return assert_closed(json, &shape["subtype"]),
        "bitfield" => return assert_closed(json, &shape["type"]),
        "function" => return,
        "base" => &json["base_types"][name()],
        "enum" => &json["enums"][name()],
        "struct" | "union" => &json["user_types"][name()],
        other => panic!("kind {other}"),
    };
    assert!(described.is_object(), "{shape}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn whatever_the_types_the_file_is_whole(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0u32..48), 0..12),
    ) {
        let mut types = kernel_types();
        let words = u32::from_le_bytes(types[12..16].try_into().unwrap()) as usize / 4;
        for (at, value) in changes {
            let at = 24 + at.index(words) * 4;
            types[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        prop_assume!(Btf::parse(types.clone()).is_ok());
        let json = json_of(types);
        for of in json["user_types"].as_object().unwrap().values() {
            for field in of["fields"].as_object().unwrap().values() {
                assert_closed(&json, &field["type"]);
            }
        }
        for of in json["enums"].as_object().unwrap().values() {
            prop_assert!(json["base_types"][of["base"].as_str().unwrap()].is_object());
        }
        for symbol in json["symbols"].as_object().unwrap().values() {
            assert_closed(&json, &symbol["type"]);
        }
    }
}
