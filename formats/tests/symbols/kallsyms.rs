//! Every form decodes to what was written.

use proptest::prelude::*;
use varve_formats::symbols::kallsyms::{Hints, Kallsyms, KallsymsError};
use varve_formats::{Gva, VirtualMemory};

use varve_fixtures::synth::kallsyms::Encoding as Form;

use crate::kernel::{
    BANNER, DATA, Entry, RODATA, TEXT, encoding, form, forms, kernel_symbols, window, write,
};

fn entries(kallsyms: &Kallsyms) -> Vec<Entry> {
    kallsyms.iter().map(|symbol| (symbol.address.0, symbol.kind, symbol.name.to_owned())).collect()
}

#[test]
fn every_form_decodes_with_hints_and_by_search() {
    for (release, form) in forms() {
        let symbols = kernel_symbols(&form);
        let written = write(&form, &symbols);
        for hints in [written.hints.clone(), window(), Hints { stext: Some(Gva(TEXT)), ..window() }] {
            let kallsyms = Kallsyms::decode(&written.guest, &hints)
                .unwrap_or_else(|error| panic!("{}: {error} with {hints:?}", release));
            assert_eq!(kallsyms.encoding(), encoding(&form), "{}", release);
            assert_eq!(entries(&kallsyms), symbols, "{}", release);
        }
    }
}

/// Kernel symbols with 2000 more functions.
fn many_symbols(form: &Form) -> Vec<Entry> {
    let mut symbols = kernel_symbols(form);
    let more = (0..2000).map(|n| (TEXT + 0x200 + n, 't', format!("function_{n}.isra.{}", n % 7)));
    let at = symbols.iter().position(|entry| entry.2 == "_etext").unwrap();
    symbols.splice(at..at, more);
    symbols
}

#[test]
fn the_tables_that_were_read_are_the_tables_that_were_written() {
    for (release, form) in forms() {
        let written = write(&form, &many_symbols(&form));
        let kallsyms = Kallsyms::decode(&written.guest, &window()).unwrap();
        assert_eq!(kallsyms.tables().len() + 1, written.tables.len(), "{release}");
        for (found, expected) in kallsyms.tables().iter().zip(written.tables.windows(2)) {
            let (name, start, next) = (expected[0].0, expected[0].1, expected[1].1);
            assert_eq!(
                (Some(found.name), found.start.0),
                (name.strip_prefix("kallsyms_"), start),
                "{release}"
            );
            // Nothing but padding lies between a table and the next.
            let end = found.start.0 + found.len;
            assert!(end <= next && next - end < 8, "{release}: {found:?} {next:#x}");
        }
    }
}

#[test]
fn many_symbols_need_many_markers() {
    for (release, form) in forms() {
        let symbols = many_symbols(&form);
        let written = write(&form, &symbols);
        for hints in [written.hints.clone(), window()] {
            assert_eq!(entries(&Kallsyms::decode(&written.guest, &hints).unwrap()), symbols, "{}", release);
        }
    }
}

#[test]
fn lengths_with_the_high_bit_set_are_read_as_the_form_means_them() {
    for (release, form) in forms() {
        let mut symbols = kernel_symbols(&form);
        // 200 characters that do not compress: one length byte before 6.1, two after.
        symbols.insert(4, (symbols[4].0, 't', "Q".repeat(200)));
        let written = write(&form, &symbols);
        for hints in [written.hints.clone(), window()] {
            assert_eq!(entries(&Kallsyms::decode(&written.guest, &hints).unwrap()), symbols, "{}", release);
        }
    }
}

/// A form with per-CPU symbols.
fn percpu_form() -> Form {
    form("6.4")
}

#[test]
fn lookups_by_name_and_address() {
    let written = write(&percpu_form(), &kernel_symbols(&percpu_form()));
    let kallsyms = Kallsyms::decode(&written.guest, &written.hints).unwrap();
    assert_eq!(kallsyms.address("init_task"), Some(Gva(DATA)));
    assert_eq!(kallsyms.address("cpu_hot"), Some(Gva(0x2_0000)));
    assert_eq!(kallsyms.address("missing"), None);
    assert_eq!(kallsyms.addresses("show").collect::<Vec<_>>(), [Gva(TEXT + 0x40), Gva(TEXT + 0x80)]);

    let containing = |at| kallsyms.containing(Gva(at)).map(|(symbol, offset)| (symbol.name, offset));
    assert_eq!(containing(TEXT), Some(("_stext", 0)), "the first alias");
    assert_eq!(containing(TEXT + 0x7f), Some(("show", 0x3f)));
    assert_eq!(containing(DATA + 8), Some(("init_task", 8)));
    assert_eq!(containing(0x2_0010), Some(("cpu_hot", 0x10)));
    assert_eq!(containing(0x3_5000), Some(("__per_cpu_end", 0)));
    assert_eq!(containing(0x7fff_0000_0000), None, "between per-CPU offsets and the image");
    assert_eq!(containing(DATA + 0x4000), Some(("_end", 0)));
    assert_eq!(containing(DATA + 0x4001), None, "behind the last symbol");
    assert_eq!(kallsyms.distance_to_next(Gva(DATA)), Some(0x1000));
    assert_eq!(kallsyms.distance_to_next(Gva(DATA + 0x4000)), None);
}

#[test]
fn the_banner_reads_without_its_nul() {
    let mut written = write(&percpu_form(), &kernel_symbols(&percpu_form()));
    let kallsyms = Kallsyms::decode(&written.guest, &written.hints).unwrap();
    assert_eq!(kallsyms.banner(&written.guest).unwrap(), BANNER.as_bytes());
    written.guest.piece(written.piece).fill(b'x');
    assert!(kallsyms.banner(&written.guest).is_err(), "without a NUL it is not a banner");
}

#[test]
fn content_changes_with_every_part_of_a_symbol() {
    let content = |symbols: &[Entry]| {
        let written = write(&percpu_form(), symbols);
        let mut bytes = Vec::new();
        Kallsyms::decode(&written.guest, &written.hints)
            .unwrap()
            .content(|part| bytes.extend_from_slice(part));
        bytes
    };
    let symbols = kernel_symbols(&percpu_form());
    let reference = content(&symbols);
    assert_eq!(reference, content(&symbols));
    for change in [
        |entry: &mut Entry| entry.0 += 1,
        |entry: &mut Entry| entry.1 = 'V',
        |entry: &mut Entry| entry.2.push('_'),
    ] {
        let mut changed = symbols.clone();
        change(&mut changed[6]);
        assert_ne!(reference, content(&changed));
    }
}

#[test]
fn symbols_out_of_order_are_put_in_order() {
    let mut symbols = kernel_symbols(&percpu_form());
    symbols.extend((0..500).map(|n| (DATA + 0x5000 + n * 8, 'b', format!("later_{n}"))));
    let expected = symbols.clone();
    symbols.swap(200, 201);
    let written = write(&percpu_form(), &symbols);
    let kallsyms = Kallsyms::decode(&written.guest, &written.hints).unwrap();
    assert_eq!(entries(&kallsyms), expected);
    assert_eq!(kallsyms.address("later_190").map(|at| at.0), Some(DATA + 0x5000 + 190 * 8));
}

#[test]
fn hints_that_lead_nowhere_give_way_to_the_search() {
    let written = write(&percpu_form(), &kernel_symbols(&percpu_form()));
    let window = Some((Gva(TEXT), 0x0200_0000));
    let lost = Hints { names: Some(Gva(RODATA)), window, ..written.hints.clone() };
    assert!(Kallsyms::decode(&written.guest, &lost).is_ok());
    let alone = Hints { window: None, ..lost };
    assert!(matches!(Kallsyms::decode(&written.guest, &alone), Err(KallsymsError::Malformed { .. })));
    let unmapped = Hints { num_syms: Some(Gva(0x1000)), ..written.hints.clone() };
    assert!(matches!(
        Kallsyms::decode(&written.guest, &unmapped),
        Err(KallsymsError::Fault { table: "symbol count", .. })
    ));
}

#[test]
fn nothing_to_go_by_and_nothing_to_find_are_told_apart() {
    let written = write(&percpu_form(), &kernel_symbols(&percpu_form()));
    assert_eq!(Kallsyms::decode(&written.guest, &Hints::default()).unwrap_err(), KallsymsError::NoHint);
    let elsewhere = Hints { window: Some((Gva(DATA), 0x10_0000)), ..Hints::default() };
    let not_found = KallsymsError::NotFound { start: Gva(DATA), len: 0x10_0000 };
    assert_eq!(Kallsyms::decode(&written.guest, &elsewhere).unwrap_err(), not_found);
}

#[test]
fn an_encoding_counts_only_when_its_addresses_make_sense() {
    let refused = |symbols: &[Entry], hints: &dyn Fn(Hints) -> Hints| {
        let written = write(&percpu_form(), symbols);
        let result = Kallsyms::decode(&written.guest, &hints(written.hints.clone()));
        assert!(matches!(result, Err(KallsymsError::NoEncoding { .. })), "{result:?}");
    };
    let symbols = kernel_symbols(&percpu_form());
    refused(&symbols, &|hints| Hints { stext: Some(Gva(TEXT + 0x1000)), ..hints });
    let without_text: Vec<_> = symbols.iter().filter(|entry| !entry.2.ends_with("text")).cloned().collect();
    refused(&without_text, &|hints| hints);
    let renamed = |name: &str, address: u64| {
        let mut symbols = symbols.clone();
        symbols.iter_mut().find(|entry| entry.2 == name).unwrap().0 = address;
        symbols
    };
    refused(&renamed("init_task", 0x10), &|hints| hints);
    refused(&renamed("linux_banner", RODATA + 1), &|hints| Hints { stext: None, ..hints });
    let shuffled: Vec<_> = symbols.iter().rev().cloned().collect();
    refused(&shuffled, &|hints| hints);
}

#[test]
fn unreadable_pages_in_the_window_do_not_hide_the_tables() {
    let written = write(&percpu_form(), &kernel_symbols(&percpu_form()));
    assert!(written.guest.read_u8(Gva(TEXT + 0x10_0000)).is_err(), "the window has holes");
    assert!(Kallsyms::decode(&written.guest, &window()).is_ok());
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![9 => "[a-zA-Z_][a-zA-Z0-9_.$]{0,30}", 1 => "[a-z_]{100,126}"]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_is_written_is_read(
        (_, form) in prop::sample::select(forms()),
        more in prop::collection::vec((0u64..0x3000, prop::sample::select(vec!['T', 't', 'd', 'r', 'B']), name()), 0..700),
    ) {
        let mut symbols = kernel_symbols(&form);
        symbols.extend(more.into_iter().map(|(offset, kind, name)| (DATA + 0x1000 + offset, kind, name)));
        symbols.sort_by_key(|entry| entry.0);
        let written = write(&form, &symbols);
        for hints in [written.hints.clone(), window()] {
            let kallsyms = Kallsyms::decode(&written.guest, &hints).unwrap();
            prop_assert_eq!(entries(&kallsyms), symbols.clone());
            for (address, _, name) in &symbols {
                prop_assert!(kallsyms.addresses(name).any(|found| found.0 == *address));
                prop_assert_eq!(kallsyms.containing(Gva(*address)).map(|found| found.1), Some(0));
            }
        }
    }
}
