//! A kernel image with kallsyms tables in any form that kernels have had.

use varve_fixtures::synth::kallsyms::{Addresses, Encoding as Form, encode};
use varve_formats::Gva;
use varve_formats::symbols::kallsyms::{Encoding, Hints};

use crate::guest::Guest;

/// Where the kernel's text begins.
pub(crate) const TEXT: u64 = 0xffff_ffff_8100_0000;
/// Where its read-only data begins: the banner, then the tables.
pub(crate) const RODATA: u64 = 0xffff_ffff_8220_0000;
/// Where its data begins.
pub(crate) const DATA: u64 = 0xffff_ffff_8260_0000;
/// `linux_banner`.
pub(crate) const BANNER: &str = "Linux version 6.0.0-synthetic (builder@nowhere) #1 SMP\n";
/// Bytes kept for the banner.
const BANNER_BYTES: u64 = 0x200;

/// The forms of real kernels, by the first release that had them.
pub(crate) fn forms() -> Vec<(&'static str, Form)> {
    let last = Form { addresses: Addresses::Absolute, ..form("6.4") };
    Form::ALL.into_iter().chain([("6.4 absolute", last)]).collect()
}

/// One of [`forms`].
pub(crate) fn form(release: &str) -> Form {
    Form::ALL.into_iter().find(|form| form.0 == release).unwrap().1
}

/// What the parser calls it.
pub(crate) fn encoding(form: &Form) -> Encoding {
    match form.addresses {
        Addresses::Absolute => Encoding::Absolute,
        Addresses::AbsolutePercpu => Encoding::AbsolutePercpu,
        Addresses::BaseRelative => Encoding::BaseRelative,
        Addresses::PlaceRelative => Encoding::PlaceRelative,
    }
}

/// A symbol: address, type and name.
pub(crate) type Entry = (u64, char, String);

/// Symbols that any kernel has, and some that are awkward: per-CPU offsets (for forms that know them), aliases, a name
/// that occurs twice.
pub(crate) fn kernel_symbols(form: &Form) -> Vec<Entry> {
    let fixed = [
        (TEXT, 'T', "_stext"),
        (TEXT, 'T', "_text"),
        (TEXT + 0x40, 't', "show"),
        (TEXT + 0x80, 't', "show"),
        (TEXT + 0x100, 'T', "x64_sys_call"),
        (TEXT + 0x123, 'W', "weak.cold"),
        (TEXT + 0xf00, 'T', "_etext"),
        (RODATA, 'R', "linux_banner"),
        (RODATA + 0x100, 'r', "tail0123456789"),
        (DATA, 'D', "init_task"),
        (DATA, 'D', "init_thread_union_alias"),
        (DATA + 0x1000, 'd', "tk_core"),
        (DATA + 0x3000, 'B', "__bss_start"),
        (DATA + 0x4000, 'B', "_end"),
    ];
    let percpu = [(0, 'A', "__per_cpu_start"), (0x2_0000, 'A', "cpu_hot"), (0x3_5000, 'A', "__per_cpu_end")];
    let with_percpu = matches!(form.addresses, Addresses::Absolute | Addresses::AbsolutePercpu);
    let percpu = percpu.iter().filter(|_| with_percpu);
    percpu.chain(&fixed).map(|(address, kind, name)| (*address, *kind, (*name).to_owned())).collect()
}

/// A guest with the tables, and where they are.
pub(crate) struct Written {
    pub(crate) guest: Guest,
    /// What VMCOREINFO of a kernel since 6.0 tells.
    pub(crate) hints: Hints,
    /// Names and addresses of the tables, ascending, and the end of the last.
    pub(crate) tables: Vec<(&'static str, u64)>,
    /// Which piece of the guest they are in.
    pub(crate) piece: usize,
}

/// Writes `symbols`, which ascend, into a kernel image.
pub(crate) fn write(form: &Form, symbols: &[Entry]) -> Written {
    let symbols: Vec<_> =
        symbols.iter().map(|(address, kind, name)| (*address, *kind, name.as_str())).collect();
    let encoded = encode(&symbols, RODATA + BANNER_BYTES, *form);
    let mut rodata = BANNER.as_bytes().to_vec();
    rodata.resize(BANNER_BYTES as usize, 0);
    rodata.extend(encoded.bytes);
    let mut tables = encoded.tables;
    tables.push(("end", RODATA + rodata.len() as u64));
    // Memory comes in pages.
    rodata.resize(rodata.len().next_multiple_of(0x1000), 0);
    let at = |wanted: &str| {
        tables
            .iter()
            .find(|table| table.0.strip_prefix("kallsyms_") == Some(wanted))
            .map(|table| Gva(table.1))
    };
    let hints = Hints {
        stext: Some(Gva(TEXT)),
        num_syms: at("num_syms"),
        names: at("names"),
        token_table: at("token_table"),
        token_index: at("token_index"),
        offsets: at("offsets"),
        relative_base: at("relative_base"),
        addresses: at("addresses"),
        window: None,
    };
    let guest = Guest::new(vec![(TEXT, vec![0xcc; 0x1000]), (RODATA, rodata), (DATA, vec![0; 0x4000])]);
    Written { guest, hints, tables, piece: 1 }
}

/// Hints that only say where the kernel image is.
pub(crate) fn window() -> Hints {
    Hints { window: Some((Gva(TEXT), 0x0200_0000)), ..Hints::default() }
}
