//! kallsyms: the symbol table that every kernel carries for its own stack traces.
//!
//! Its form depends on the release and on build options. Nothing here looks at a version: each form is tried, and the
//! one counts whose addresses make sense (see [`Kallsyms::decode`]). Module symbols are not part of it.

mod addresses;
mod layout;
mod names;
mod search;
mod tokens;

use std::fmt;
use std::sync::OnceLock;

use crate::{Fault, Gva, VirtualMemory};

use super::linear::{KERNEL_IMAGE_BYTES, KERNEL_MAP};
use super::names::NameIndex;
use super::vmcoreinfo::VmCoreInfo;
use addresses::Candidate;
use layout::Layout;
use names::{Extent, Names};
use tokens::Tokens;

/// Of how many symbols at least one may be out of order before the addresses count as misread.
const MIN_SYMBOLS_PER_DISORDER: usize = 64;

/// The bytes searched when nothing says where the tables are: behind `_text`, all images known end before this.
const DEFAULT_WINDOW_BYTES: u64 = 256 << 20;

/// Bytes of `linux_banner` at most.
pub const MAX_BANNER_BYTES: usize = 1024;

/// What is known about the tables before they are decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `_stext`. Given, it has to agree with the decoded one.
    pub stext: Option<Gva>,
    /// `kallsyms_num_syms`.
    pub num_syms: Option<Gva>,
    /// `kallsyms_names`.
    pub names: Option<Gva>,
    /// `kallsyms_token_table`.
    pub token_table: Option<Gva>,
    /// `kallsyms_token_index`.
    pub token_index: Option<Gva>,
    /// `kallsyms_offsets`.
    pub offsets: Option<Gva>,
    /// `kallsyms_relative_base`.
    pub relative_base: Option<Gva>,
    /// `kallsyms_addresses`.
    pub addresses: Option<Gva>,
    /// Where to search for the tables, and how many bytes: the kernel image from its beginning. It is searched when
    /// the addresses above are not all given or lead nowhere.
    pub window: Option<(Gva, u64)>,
}

impl Hints {
    /// What a VMCOREINFO note says: the tables since 6.0 (and where distributions backported that), `_stext` always.
    pub fn from_vmcoreinfo(note: &VmCoreInfo) -> Self {
        let table = |name: &str| note.symbol(&format!("kallsyms_{name}"));
        let stext = note.symbol("_stext");
        Self {
            stext,
            num_syms: table("num_syms"),
            names: table("names"),
            token_table: table("token_table"),
            token_index: table("token_index"),
            offsets: table("offsets"),
            relative_base: table("relative_base"),
            addresses: table("addresses"),
            window: stext.map(|stext| (stext.page_start(), DEFAULT_WINDOW_BYTES)),
        }
    }
}

/// How addresses are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Whole addresses.
    Absolute,
    /// Per-CPU symbols as they are, others relative to a base.
    AbsolutePercpu,
    /// Relative to a base.
    BaseRelative,
    /// Relative to the place of the entry.
    PlaceRelative,
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absolute => "absolute",
            Self::AbsolutePercpu => "absolute-percpu",
            Self::BaseRelative => "base-relative",
            Self::PlaceRelative => "place-relative",
        })
    }
}

/// Why there is no symbol table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KallsymsError {
    /// The hints hold neither the tables nor a window to search.
    #[error("nothing says where the kallsyms tables are")]
    NoHint,
    /// No token table with names before it is in the window.
    #[error("no kallsyms tables in the {len} bytes from {start}")]
    NotFound {
        /// First address searched.
        start: Gva,
        /// Bytes searched.
        len: u64,
    },
    /// A table cannot be read.
    #[error("kallsyms {table}: {source}")]
    Fault {
        /// Name of the table.
        table: &'static str,
        /// Why not.
        source: Fault,
    },
    /// A table cannot be what it should be.
    #[error("kallsyms {table} at {at} is malformed")]
    Malformed {
        /// Name of the table.
        table: &'static str,
        /// Where it is.
        at: Gva,
    },
    /// Names were decoded, but no encoding gives addresses that make sense.
    #[error("kallsyms: no known encoding gives plausible addresses for the {symbols} names at {at}")]
    NoEncoding {
        /// Names decoded.
        symbols: usize,
        /// First name.
        at: Gva,
    },
}

/// A symbol of the kernel image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its type as `nm` prints it: `T` global text, `d` local data, …
    pub kind: char,
    /// Its address; a per-CPU symbol's offset where the kernel links those at zero (to 6.14).
    pub address: Gva,
}

/// Bytes of guest memory that a decoded table came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Name without the prefix `kallsyms_`.
    pub name: &'static str,
    /// First address.
    pub start: Gva,
    /// Length in bytes.
    pub len: u64,
}

/// The symbols of the running kernel, in address order.
#[derive(Debug)]
pub struct Kallsyms {
    encoding: Encoding,
    names: Names,
    /// Ascending.
    addresses: Vec<u64>,
    /// The entry of `names` for each address; empty when they correspond one to one.
    order: Vec<u32>,
    tables: Vec<Table>,
    by_name: OnceLock<NameIndex>,
}

impl Kallsyms {
    /// Decodes the tables at the hinted addresses or, where these are missing or wrong, wherever the search window
    /// holds them.
    ///
    /// Each encoding is tried. It is accepted when addresses ascend, `_stext` (or `_text`) is readable, lies in the
    /// kernel image below the tables and agrees with its hint or, without one, `linux_banner` reads as a banner, and
    /// `init_task`, where it is listed, lies in the image.
    ///
    /// # Errors
    /// The failure of the last place tried; of the hinted one when the search finds nothing.
    pub fn decode(memory: &dyn VirtualMemory, hints: &Hints) -> Result<Self, KallsymsError> {
        let hinted = Layout::hinted(memory, hints)
            .map(|layout| layout.and_then(|layout| Self::decode_at(memory, &layout, hints)));
        let mut failure = match hinted {
            Some(Ok(kallsyms)) => return Ok(kallsyms),
            Some(Err(error)) => Some(error),
            None => None,
        };
        let Some((start, len)) = hints.window else { return Err(failure.unwrap_or(KallsymsError::NoHint)) };
        for layout in search::layouts(memory, start, len) {
            match Self::decode_at(memory, &layout, hints) {
                Ok(kallsyms) => return Ok(kallsyms),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or(KallsymsError::NotFound { start, len }))
    }

    fn decode_at(memory: &dyn VirtualMemory, layout: &Layout, hints: &Hints) -> Result<Self, KallsymsError> {
        let tokens = Tokens::read(memory, layout.token_table, layout.token_index)?;
        let (bytes, extent) = layout.read_names(memory)?;
        let names = Names::expand(&bytes, layout.count as usize, extent.length, &tokens, layout.names)?;
        let anchors = Anchors::find(&names);
        for candidate in addresses::candidates(layout, hints) {
            let accepted = candidate
                .decode(memory, layout)
                .into_iter()
                .find(|decoded| anchors.plausible(memory, &decoded.addresses, layout, hints));
            if let Some(decoded) = accepted {
                let tables = tables(memory, layout, &extent, &candidate);
                let (addresses, order) = sorted(decoded.addresses);
                let by_name = OnceLock::new();
                return Ok(Self { encoding: decoded.encoding, names, addresses, order, tables, by_name });
            }
        }
        Err(KallsymsError::NoEncoding { symbols: names.len(), at: layout.names })
    }

    /// The encoding that was accepted.
    pub const fn encoding(&self) -> Encoding {
        self.encoding
    }

    /// How many symbols there are.
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Whether there is no symbol. Never true of a decoded table.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// The symbols by ascending address; those that share one in the order of the table.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Symbol<'_>> {
        (0..self.len()).map(|position| {
            // Both vectors and the names have `len` entries.
            self.symbol(position).unwrap_or(Symbol { name: "", kind: '?', address: Gva(0) })
        })
    }

    /// The address of the first symbol of this name.
    pub fn address(&self, name: &str) -> Option<Gva> {
        self.symbols(name).next().map(|symbol| symbol.address)
    }

    /// The addresses of every symbol of this name, ascending: static functions share names.
    pub fn addresses(&self, name: &str) -> impl Iterator<Item = Gva> {
        self.symbols(name).map(|symbol| symbol.address)
    }

    /// Every symbol of this name, by ascending address.
    pub fn symbols(&self, name: &str) -> impl Iterator<Item = Symbol<'_>> {
        let of = |position: u32| self.symbol(position as usize).map(|symbol| symbol.name);
        let index = self.by_name.get_or_init(|| NameIndex::build(self.len() as u32, of));
        index.find(name, of).filter_map(|position| self.symbol(position as usize))
    }

    /// The symbol that `address` lies in and the offset from it in bytes: as the kernel does, the first of those with
    /// the greatest address that is not above. `None` before the first symbol, behind the last one, and between
    /// per-CPU offsets and the kernel image.
    pub fn containing(&self, address: Gva) -> Option<(Symbol<'_>, u64)> {
        let behind = self.addresses.partition_point(|start| *start <= address.0);
        let start = *self.addresses.get(behind.checked_sub(1)?)?;
        let offset = address.0 - start;
        let bounded = self.addresses.get(behind).is_some_and(|next| (next ^ start) >> 63 == 0);
        if offset != 0 && !bounded {
            return None;
        }
        let first = self.addresses.partition_point(|other| *other < start);
        Some((self.symbol(first)?, offset))
    }

    /// The distance in bytes from an address to the next symbol: the size of the object or function there, with the
    /// padding behind it. `None` behind the last symbol.
    pub fn distance_to_next(&self, address: Gva) -> Option<u64> {
        let behind = self.addresses.partition_point(|start| *start <= address.0);
        self.addresses.get(behind).map(|next| next - address.0)
    }

    /// `linux_banner`, the text of `/proc/version` with its newline and without a NUL.
    ///
    /// # Errors
    /// The fault that stopped the read, [`Fault::Malformed`] when there is no such symbol or no NUL within
    /// [`MAX_BANNER_BYTES`].
    pub fn banner(&self, memory: &dyn VirtualMemory) -> Result<Vec<u8>, Fault> {
        let missing = Fault::Malformed { what: "linux_banner", at: 0 };
        let at = self.address("linux_banner").ok_or(missing)?;
        let mut bytes = Vec::new();
        for here in (at.0..).take(MAX_BANNER_BYTES) {
            match memory.read_u8(Gva(here))? {
                0 => return Ok(bytes),
                byte => bytes.push(byte),
            }
        }
        Err(Fault::Malformed { what: "linux_banner", at: at.0 })
    }

    /// The guest memory that the symbols came from. Equal bytes there decode to equal symbols, in any epoch in which
    /// the kernel is where it was.
    pub fn tables(&self) -> &[Table] {
        &self.tables
    }

    /// Hands over the decoded symbols as bytes, for a digest: for each symbol in order its address (little-endian),
    /// its type, its name and a NUL.
    pub fn content(&self, mut sink: impl FnMut(&[u8])) {
        const BATCH_BYTES: usize = 64 << 10;
        let mut batch = Vec::with_capacity(BATCH_BYTES + 1024);
        for symbol in self.iter() {
            batch.extend_from_slice(&symbol.address.0.to_le_bytes());
            batch.extend_from_slice(symbol.kind.encode_utf8(&mut [0; 4]).as_bytes());
            batch.extend_from_slice(symbol.name.as_bytes());
            batch.push(0);
            if batch.len() >= BATCH_BYTES {
                sink(&batch);
                batch.clear();
            }
        }
        sink(&batch);
    }

    fn symbol(&self, position: usize) -> Option<Symbol<'_>> {
        let entry = if self.order.is_empty() { position } else { *self.order.get(position)? as usize };
        let (kind, name) = self.names.get(entry)?;
        Some(Symbol { name, kind, address: Gva(*self.addresses.get(position)?) })
    }
}

/// Addresses in order, and which entry each came from when that is not plain.
fn sorted(addresses: Vec<u64>) -> (Vec<u64>, Vec<u32>) {
    if addresses.is_sorted() {
        return (addresses, Vec::new());
    }
    let mut pairs: Vec<(u64, u32)> = addresses.into_iter().zip(0..).collect();
    pairs.sort_unstable();
    pairs.into_iter().unzip()
}

fn tables(memory: &dyn VirtualMemory, layout: &Layout, extent: &Extent, from: &Candidate) -> Vec<Table> {
    let offset = |bytes: usize| Gva(layout.names.0.wrapping_add(bytes as u64));
    let table = |name, start, len| Table { name, start, len };
    let entries = if matches!(from.form, addresses::Form::Absolute) { "addresses" } else { "offsets" };
    let mut tables = vec![
        table("num_syms", layout.num_syms, 4),
        table("names", layout.names, extent.names_end as u64),
        table("markers", offset(extent.markers), (extent.markers_end - extent.markers) as u64),
        table("token_table", layout.token_table, layout.token_index.0.wrapping_sub(layout.token_table.0)),
        table("token_index", layout.token_index, tokens::INDEX_BYTES as u64),
        table(entries, from.table, from.len(layout)),
    ];
    let mut end = Gva(from.table.0.wrapping_add(from.len(layout)));
    if let addresses::Form::Based(base) = from.form {
        tables.push(table("relative_base", base, 8));
        end = Gva(base.0.wrapping_add(8));
    }
    if let Some(seqs) = layout.seqs(memory, extent, end) {
        tables.push(table("seqs_of_names", seqs, layout.seqs_len()));
    }
    tables.sort_unstable_by_key(|table| table.start);
    tables
}

/// Symbols whose addresses tell whether an encoding was read rightly.
struct Anchors {
    stext: Option<usize>,
    text: Option<usize>,
    init_task: Option<usize>,
    banner: Option<usize>,
}

impl Anchors {
    fn find(names: &Names) -> Self {
        let [stext, text, init_task, banner] =
            names.positions(["_stext", "_text", "init_task", "linux_banner"]);
        Self { stext, text, init_task, banner }
    }

    fn plausible(
        &self,
        memory: &dyn VirtualMemory,
        addresses: &[u64],
        layout: &Layout,
        hints: &Hints,
    ) -> bool {
        let at = |symbol: Option<usize>| symbol.and_then(|symbol| addresses.get(symbol)).copied().map(Gva);
        let in_image = |at: Gva| at.offset_from(KERNEL_MAP).is_some_and(|offset| offset < KERNEL_IMAGE_BYTES);
        let Some(start) = at(self.stext).or_else(|| at(self.text)) else { return false };
        let disorder = addresses.windows(2).filter(|pair| pair.first() > pair.last()).count();
        in_image(start)
            && start < layout.names
            && memory.read_u8(start).is_ok()
            && disorder <= addresses.len() / MIN_SYMBOLS_PER_DISORDER
            && at(self.init_task).is_none_or(in_image)
            && match (hints.stext, at(self.stext), at(self.banner)) {
                (Some(hint), Some(decoded), _) => hint == decoded,
                (_, _, Some(banner)) => {
                    let mut start = *b"Linux version ";
                    memory.read(banner, &mut start).is_ok() && start == *b"Linux version "
                }
                _ => true,
            }
    }
}
