//! Damaged and malicious tables: an error or other symbols, never a panic, never without end.

use proptest::prelude::*;
use varve_formats::Gva;
use varve_formats::symbols::kallsyms::{Kallsyms, KallsymsError};

use crate::guest::Guest;
use crate::kernel::{RODATA, TEXT, form, forms, kernel_symbols, window, write};

/// Uses everything that a decoded table offers.
fn walk(kallsyms: &Kallsyms) {
    let mut bytes = 0;
    kallsyms.content(|part| bytes += part.len());
    assert_eq!(kallsyms.iter().len(), kallsyms.len());
    for symbol in kallsyms.iter().take(64) {
        assert!(kallsyms.symbols(symbol.name).any(|found| found == symbol));
        assert_eq!(kallsyms.containing(symbol.address).map(|found| found.1), Some(0));
    }
    assert!(bytes >= kallsyms.len() * 10);
}

#[test]
fn tables_cut_short_anywhere_are_an_error_or_lack_only_what_follows() {
    for (release, form) in forms() {
        let written = write(&form, &kernel_symbols(&form));
        let end = |wanted| {
            written.tables.iter().position(|table| table.0 == wanted).map(|at| written.tables[at + 1].1)
        };
        // Whichever of them comes last; behind it there is padding, or the table that can be missed.
        let needed =
            ["kallsyms_token_index", "kallsyms_offsets", "kallsyms_addresses", "kallsyms_relative_base"];
        let needed = (needed.into_iter().filter_map(end).max().unwrap() - RODATA) as usize;
        let whole = written.guest.clone().piece(written.piece).len();
        for len in 0..whole {
            let mut guest = written.guest.clone();
            guest.piece(written.piece).truncate(len);
            let decoded = Kallsyms::decode(&guest, &written.hints);
            assert!(decoded.is_ok() || len < needed, "{release}: {len} of {whole} bytes: {decoded:?}");
            assert!(decoded.is_err() || len + 8 > needed, "{release}: {len} of {whole} bytes");
        }
    }
}

#[test]
fn counts_that_lie_are_refused() {
    for (release, form) in forms() {
        let written = write(&form, &kernel_symbols(&form));
        let at = (written.hints.num_syms.unwrap().0 - RODATA) as usize;
        for count in [0, 1, 0x10_0000, u32::MAX] {
            let mut guest = written.guest.clone();
            guest.piece(written.piece)[at..at + 4].copy_from_slice(&count.to_le_bytes());
            let result = Kallsyms::decode(&guest, &written.hints);
            assert!(matches!(result, Err(KallsymsError::Malformed { .. })), "{}: {count}", release);
        }
    }
}

#[test]
fn tokens_that_are_not_text_become_text() {
    let mut written = write(&form("6.4"), &kernel_symbols(&form("6.4")));
    let at = (written.hints.token_table.unwrap().0 - RODATA) as usize;
    // The token of `w`, which only "show" and "hot" tails use, becomes a byte that is not ASCII.
    let table = &written.guest.piece(written.piece)[at..];
    let w = table.windows(3).position(|bytes| bytes == b"\0w\0").unwrap();
    written.guest.piece(written.piece)[at + w + 1] = 0xff;
    let kallsyms = Kallsyms::decode(&written.guest, &written.hints).unwrap();
    assert!(kallsyms.iter().all(|symbol| symbol.name.is_ascii()));
}

#[test]
fn names_that_expand_without_measure_are_refused() {
    // One name of 127 tokens that all stand for the same 250 bytes.
    let mut rodata = vec![0; 0x200];
    let names_at = RODATA + rodata.len() as u64 + 8;
    rodata.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    rodata.extend_from_slice(&[0x7f]);
    rodata.resize(rodata.len() + 0x7f, 1);
    rodata.extend_from_slice(&[0; 4]);
    rodata.resize(rodata.len().next_multiple_of(8), 0);
    let table_at = RODATA + rodata.len() as u64;
    rodata.extend_from_slice(b"T\0");
    rodata.resize(rodata.len() + 250, b'x');
    rodata.extend_from_slice(&[0; 8]);
    let index_at = RODATA + rodata.len() as u64;
    rodata.extend_from_slice(&0u16.to_le_bytes());
    rodata.extend((1..256).flat_map(|_| 2u16.to_le_bytes()));
    let guest = Guest::new(vec![(TEXT, vec![0; 0x1000]), (RODATA, rodata)]);
    let mut hints = write(&form("6.4"), &kernel_symbols(&form("6.4"))).hints;
    hints.num_syms = Some(Gva(names_at - 8));
    hints.names = Some(Gva(names_at));
    hints.token_table = Some(Gva(table_at));
    hints.token_index = Some(Gva(index_at));
    let malformed = KallsymsError::Malformed { table: "names", at: Gva(names_at) };
    assert_eq!(Kallsyms::decode(&guest, &hints).unwrap_err(), malformed);
}

#[test]
fn a_sea_of_plausible_names_does_not_stall_the_search() {
    // Before the token table, words that are counts and names of three tokens alike, and at their end what could be
    // markers: every place is worth a try and every try goes far.
    let mut written = write(&form("6.4"), &kernel_symbols(&form("6.4")));
    let cut = (written.hints.token_table.unwrap().0 - RODATA) as usize;
    let piece = written.guest.piece(written.piece);
    let word = [3, b't', 1, 0];
    let mut flooded = word.repeat(1 << 19);
    let markers = flooded.len() - u32::from_le_bytes(word).div_ceil(256) as usize * 4;
    flooded[markers..markers + 8].copy_from_slice(&[0, 0, 0, 0, 0, 4, 0, 0]);
    flooded.extend_from_slice(&piece[cut..]);
    flooded.resize(flooded.len().next_multiple_of(0x1000), 0);
    *piece = flooded;
    assert!(Kallsyms::decode(&written.guest, &window()).is_err());
}

#[test]
fn many_rows_of_digits_do_not_stall_the_search() {
    let row = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\0";
    let guest = Guest::new(vec![(TEXT, row.repeat(50_000))]);
    assert!(Kallsyms::decode(&guest, &window()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn changed_bytes_never_panic(
        (_, form) in prop::sample::select(forms()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        searched in any::<bool>(),
    ) {
        let mut written = write(&form, &kernel_symbols(&form));
        let bytes = written.guest.piece(written.piece);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let hints = if searched { window() } else { written.hints };
        if let Ok(kallsyms) = Kallsyms::decode(&written.guest, &hints) {
            walk(&kallsyms);
        }
    }
}
