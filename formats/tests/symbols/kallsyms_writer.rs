//! Writes kallsyms tables in every form that kernels have had (`scripts/kallsyms.c` of the releases named).

use varve_formats::Gva;
use varve_formats::symbols::kallsyms::{Encoding, Hints};

use crate::guest::Guest;

/// Where the kernel's text begins.
pub(crate) const TEXT: u64 = 0xffff_ffff_8100_0000;
/// Where its read-only data begins; the banner is first.
pub(crate) const RODATA: u64 = 0xffff_ffff_8220_0000;
/// Where its data begins.
pub(crate) const DATA: u64 = 0xffff_ffff_8260_0000;
/// `linux_banner`.
pub(crate) const BANNER: &str = "Linux version 6.0.0-synthetic (builder@nowhere) #1 SMP\n";

/// A form of the tables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    pub(crate) name: &'static str,
    pub(crate) encoding: Encoding,
    /// Addresses before the count rather than behind the token index.
    pub(crate) early: bool,
    pub(crate) marker_bytes: usize,
    /// Long names have a length of two bytes.
    pub(crate) big: bool,
    /// Alignment of the tables.
    pub(crate) align: usize,
    pub(crate) seqs: bool,
}

const fn form(name: &'static str, encoding: Encoding) -> Form {
    Form { name, encoding, early: false, marker_bytes: 4, big: true, align: 8, seqs: true }
}

/// The forms of real kernels.
pub(crate) const FORMS: [Form; 8] = [
    Form {
        early: true,
        marker_bytes: 8,
        big: false,
        seqs: false,
        ..form("4.5 absolute", Encoding::Absolute)
    },
    Form {
        early: true,
        marker_bytes: 8,
        big: false,
        seqs: false,
        ..form("4.19 percpu", Encoding::AbsolutePercpu)
    },
    Form { early: true, big: false, seqs: false, ..form("5.10 percpu", Encoding::AbsolutePercpu) },
    Form { early: true, ..form("6.2 percpu", Encoding::AbsolutePercpu) },
    form("6.4 percpu", Encoding::AbsolutePercpu),
    form("6.10 absolute", Encoding::Absolute),
    form("6.15 relative", Encoding::BaseRelative),
    Form { align: 4, ..form("7.0 place", Encoding::PlaceRelative) },
];

/// A symbol: address, type and name.
pub(crate) type Entry = (u64, char, String);

/// Symbols that any kernel has, and some that are awkward: per-CPU offsets (for forms that know them), aliases, names
/// that occur twice.
pub(crate) fn kernel_symbols(form: &Form) -> Vec<Entry> {
    let fixed: [(u64, char, &str); 14] = [
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
    let with_percpu = matches!(form.encoding, Encoding::Absolute | Encoding::AbsolutePercpu);
    let percpu = percpu.iter().filter(|_| with_percpu);
    percpu.chain(&fixed).map(|(address, kind, name)| (*address, *kind, (*name).to_owned())).collect()
}

/// A guest with the tables, and where they are.
pub(crate) struct Written {
    pub(crate) guest: Guest,
    /// What VMCOREINFO of a kernel since 6.0 tells.
    pub(crate) hints: Hints,
    /// Names and ranges of the tables, ascending.
    pub(crate) tables: Vec<(&'static str, u64, u64)>,
    /// Which piece of the guest they are in.
    pub(crate) piece: usize,
}

/// Substrings that byte values which no name contains stand for.
const SUBSTRINGS: [&str; 12] = [
    "__",
    "sys_",
    "_call",
    "Tx64",
    "per_cpu_",
    "init_",
    "task",
    "a_substring_of_many_chars",
    "t.",
    "sh",
    "ow",
    "_st",
];

/// What each byte value stands for: itself, one of [`SUBSTRINGS`], or something that is not used.
fn tokens() -> Vec<String> {
    let name_char = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'$');
    let mut substrings = SUBSTRINGS.iter();
    (0..=255u8)
        .map(|byte| match name_char(byte) {
            true => char::from(byte).to_string(),
            false => substrings.next().map_or(format!("unused{byte}"), |text| (*text).to_owned()),
        })
        .collect()
}

/// Compresses greedily.
fn compress(text: &str, tokens: &[String]) -> Vec<u8> {
    let mut rest = text;
    let mut bytes = Vec::new();
    while !rest.is_empty() {
        let longest = (0..256)
            .filter(|token| rest.starts_with(&tokens[*token]))
            .max_by_key(|token| tokens[*token].len());
        let token = longest.expect("every character of a name has a token");
        bytes.push(token as u8);
        rest = &rest[tokens[token].len()..];
    }
    bytes
}

/// The tables as they are put together.
struct Section {
    bytes: Vec<u8>,
    align: usize,
    tables: Vec<(&'static str, u64, u64)>,
}

impl Section {
    fn here(&mut self) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(self.align), 0);
        RODATA + self.bytes.len() as u64
    }

    fn table(&mut self, name: &'static str, bytes: &[u8]) -> u64 {
        let at = self.here();
        self.bytes.extend_from_slice(bytes);
        self.tables.push((name, at, bytes.len() as u64));
        at
    }

    fn addresses(&mut self, form: &Form, symbols: &[Entry]) {
        let base = symbols.iter().map(|entry| entry.0).find(|address| *address > 1 << 32).unwrap_or(0);
        let at = self.here();
        let entry = |(index, (address, ..)): (usize, &Entry)| match form.encoding {
            Encoding::Absolute => address.to_le_bytes().to_vec(),
            Encoding::AbsolutePercpu if *address < 1 << 31 => (*address as u32).to_le_bytes().to_vec(),
            Encoding::AbsolutePercpu => ((base - 1).wrapping_sub(*address) as u32).to_le_bytes().to_vec(),
            Encoding::BaseRelative => ((address - base) as u32).to_le_bytes().to_vec(),
            Encoding::PlaceRelative => {
                (address.wrapping_sub(at + index as u64 * 4) as u32).to_le_bytes().to_vec()
            }
        };
        let entries: Vec<u8> = symbols.iter().enumerate().flat_map(entry).collect();
        match form.encoding {
            Encoding::Absolute => self.table("addresses", &entries),
            _ => self.table("offsets", &entries),
        };
        if matches!(form.encoding, Encoding::AbsolutePercpu | Encoding::BaseRelative) {
            self.table("relative_base", &base.to_le_bytes());
        }
    }

    fn seqs(&mut self, symbols: &[Entry]) {
        let mut order: Vec<u32> = (0..symbols.len() as u32).collect();
        order.sort_by_key(|index| &symbols[*index as usize].2);
        let bytes: Vec<u8> = order.iter().flat_map(|index| index.to_be_bytes()[1..].to_vec()).collect();
        self.table("seqs_of_names", &bytes);
    }
}

/// Writes `symbols`, which ascend, into a kernel image.
pub(crate) fn write(form: &Form, symbols: &[Entry]) -> Written {
    let mut banner = BANNER.as_bytes().to_vec();
    banner.resize(0x200, 0);
    let mut section = Section { bytes: banner, align: form.align, tables: Vec::new() };
    if form.early {
        section.addresses(form, symbols);
    }
    section.table("num_syms", &(symbols.len() as u32).to_le_bytes());
    let tokens = tokens();
    let (mut names, mut markers) = (Vec::new(), Vec::new());
    for (index, (_, kind, name)) in symbols.iter().enumerate() {
        if index % 256 == 0 {
            markers.extend_from_slice(&(names.len() as u64).to_le_bytes()[..form.marker_bytes]);
        }
        let compressed = compress(&format!("{kind}{name}"), &tokens);
        match compressed.len() {
            len if form.big && len > 0x7f => names.extend([len as u8 | 0x80, (len >> 7) as u8]),
            len => names.push(u8::try_from(len).expect("a name that fits the form")),
        }
        names.extend(compressed);
    }
    section.table("names", &names);
    section.table("markers", &markers);
    if form.early && form.seqs {
        section.seqs(symbols);
    }
    let mut starts = Vec::new();
    let mut table = Vec::new();
    for token in &tokens {
        starts.extend((table.len() as u16).to_le_bytes());
        table.extend(token.bytes().chain([0]));
    }
    section.table("token_table", &table);
    section.table("token_index", &starts);
    if !form.early {
        section.addresses(form, symbols);
        if form.seqs {
            section.seqs(symbols);
        }
    }
    let at = |wanted: &str| section.tables.iter().find(|table| table.0 == wanted).map(|table| Gva(table.1));
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
    // Memory comes in pages.
    section.bytes.resize(section.bytes.len().next_multiple_of(0x1000), 0);
    let pieces = vec![(TEXT, vec![0xcc; 0x1000]), (RODATA, section.bytes), (DATA, vec![0; 0x4000])];
    Written { guest: Guest::new(pieces), hints, tables: section.tables, piece: 1 }
}

/// Hints that only say where the kernel image is.
pub(crate) fn window() -> Hints {
    Hints { window: Some((Gva(TEXT), 0x0200_0000)), ..Hints::default() }
}
