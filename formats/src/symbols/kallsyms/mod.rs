//! kallsyms: the symbol table that every kernel carries for its own stack traces.
//!
//! Its form depends on the release and on build options. Nothing here looks at a version: each form is tried, and the
//! one counts whose addresses make sense (see [`Kallsyms::decode`]). Module symbols are not part of it.

mod addresses;
mod decode;
mod hints;
mod layout;
mod names;
mod search;
mod tokens;

use std::fmt;
use std::sync::OnceLock;

use crate::{Fault, Gva, VirtualMemory};

use super::names::NameIndex;
pub use hints::Hints;
use names::Names;

/// Bytes of `linux_banner` at most.
pub const MAX_BANNER_BYTES: usize = 1024;

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
