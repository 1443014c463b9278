//! BTF: the types of the running kernel, which it carries for BPF programs (`CONFIG_DEBUG_INFO_BTF`).
//!
//! One pass over the blob finds where each type begins; everything else is read on demand. The blob of the kernel
//! image stands alone; those of modules continue it and are not read here.

mod header;
mod locate;
mod lookup;
mod parts;
mod types;

use std::sync::{Arc, OnceLock};

use crate::FormatError;

use super::bytes::until_nul;
use super::names::NameIndex;
use header::Header;
pub use locate::BtfError;
pub use lookup::{ArrayShape, BitField, Member};
pub use parts::{Composite, Enum, StructMember};
pub use types::{Array, Int, Kind, Type, TypeId};

/// Bytes of a blob at most. Debian's 6.12 has 4.9 MB.
pub const MAX_BTF_BYTES: usize = 64 << 20;

/// x86-64 pointers.
const POINTER_BYTES: u64 = 8;

/// The types of one BTF blob.
#[derive(Debug)]
pub struct Btf {
    bytes: Arc<[u8]>,
    header: Header,
    /// Where the record of type `n + 1` begins.
    records: Vec<u32>,
    by_name: OnceLock<NameIndex>,
}

impl Btf {
    /// Takes a blob apart. Bytes behind its last section are ignored.
    ///
    /// # Errors
    /// The offset and what is wrong there: not BTF, sections or records that do not fit, an unknown kind of type.
    pub fn parse(bytes: impl Into<Arc<[u8]>>) -> Result<Self, FormatError> {
        let bytes = bytes.into();
        if bytes.len() > MAX_BTF_BYTES {
            let reason = format!("{} bytes are more than the limit of {MAX_BTF_BYTES}", bytes.len());
            return Err(FormatError::new("BTF", 0, reason));
        }
        let header = Header::parse(&bytes, bytes.len())?;
        let records = header.records(&bytes)?;
        Ok(Self { bytes, header, records, by_name: OnceLock::new() })
    }

    /// The blob, without what may have followed it.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.header.end()).unwrap_or_default()
    }

    /// Number of types, `void` not counted.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is no type.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Every type but `void`, by ascending number.
    pub fn types(&self) -> impl Iterator<Item = Type<'_>> {
        (1..=self.records.len() as u32).filter_map(|id| self.ty(TypeId(id)))
    }

    /// A name by its offset; empty when it has none or it is not UTF-8.
    fn string(&self, offset: u32) -> &str {
        let (start, end) = self.header.strings;
        let bytes = self.bytes.get(start..end).and_then(|strings| until_nul(strings, offset as usize));
        bytes.and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}
