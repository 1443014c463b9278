//! The header of a BTF blob and the records of its type section.
//!
//! Source: `include/uapi/linux/btf.h`. The layout section, which tells the size of kinds that a reader does not know,
//! and the wider `vlen` and kind fields came with 7.x; the bits they took were zero before.

use crate::FormatError;
use crate::symbols::bytes::{array_at, u16_at, u32_at};

/// Name of the blob in errors.
const BLOB: &str = "BTF";

/// `BTF_MAGIC`, little-endian, and version 1.
const MAGIC: u16 = 0xeb9f;

/// Bytes of the header up to `str_len`.
const MIN_HEADER_BYTES: u32 = 24;

/// Bytes of the header with `layout_off` and `layout_len`.
const LAYOUT_HEADER_BYTES: u32 = 32;

/// Bytes of `struct btf_type`, with which each record begins.
pub(super) const RECORD_BYTES: usize = 12;

/// `BTF_MAX_TYPE`, the highest type id.
pub(super) const MAX_TYPES: usize = 0x000f_ffff;

/// Where the sections are, as offsets from the start of the blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) types: (usize, usize),
    pub(super) strings: (usize, usize),
    layout: (usize, usize),
}

impl Header {
    /// Checks the header. `len` is the length of the whole blob; `bytes` may be its beginning only.
    pub(super) fn parse(bytes: &[u8], len: usize) -> Result<Self, FormatError> {
        let at = |offset: usize| {
            u32_at(bytes, offset).ok_or_else(|| FormatError::new(BLOB, offset as u64, "header ends early"))
        };
        if u16_at(bytes, 0) != Some(MAGIC) {
            return Err(FormatError::new(BLOB, 0, "no BTF magic (9f eb)"));
        }
        if bytes.get(2) != Some(&1) {
            return Err(FormatError::new(BLOB, 2, "version is not 1"));
        }
        let header_len = at(4)?;
        if header_len < MIN_HEADER_BYTES {
            return Err(FormatError::new(BLOB, 4, format!("header of {header_len} bytes is too short")));
        }
        let section = |field: usize, what: &str| {
            let start = u64::from(header_len) + u64::from(at(field)?);
            let end = start + u64::from(at(field + 4)?);
            if end > len as u64 {
                let reason = format!("{what} section ends at {end:#x}, behind the blob's {len:#x} bytes");
                return Err(FormatError::new(BLOB, field as u64, reason));
            }
            Ok((start as usize, end as usize))
        };
        let types = section(8, "type")?;
        let strings = section(16, "string")?;
        let layout =
            if header_len >= LAYOUT_HEADER_BYTES { section(24, "layout")? } else { (types.1, types.1) };
        // Types, then layout, then strings, without gaps.
        if types.1 != layout.0 && layout.0 != layout.1 || layout.1.max(types.1) != strings.0 {
            return Err(FormatError::new(BLOB, 16, "sections overlap or leave a gap"));
        }
        Ok(Self { types, strings, layout })
    }

    /// Bytes of the blob.
    pub(super) const fn end(&self) -> usize {
        self.strings.1
    }

    /// Offsets of all type records; the one of type id `n` is entry `n - 1`.
    pub(super) fn records(&self, bytes: &[u8]) -> Result<Vec<u32>, FormatError> {
        let (mut offset, end) = self.types;
        let types = bytes.get(..end).unwrap_or(bytes);
        // Ordinary records take about 28 bytes.
        let mut records = Vec::with_capacity((end - offset) / 24);
        while offset < end {
            let fail = |reason: &str| Err(FormatError::new(BLOB, offset as u64, reason));
            if records.len() == MAX_TYPES {
                return fail("more types than BTF can number");
            }
            let Some(info) = u32_at(types, offset + 4).map(Info) else {
                return fail("type record ends early");
            };
            let Some(tail) = info.tail_bytes().or_else(|| self.unknown_tail_bytes(bytes, info)) else {
                return fail(&format!("unknown type kind {}", info.kind()));
            };
            let next = offset + RECORD_BYTES + tail;
            if next > end {
                return fail("type record reaches behind the type section");
            }
            records.push(offset as u32);
            offset = next;
        }
        Ok(records)
    }

    /// The tail of a kind that only the layout section knows: `info_sz + vlen * elem_sz`.
    fn unknown_tail_bytes(&self, bytes: &[u8], info: Info) -> Option<usize> {
        let entry = self.layout.0 + usize::from(info.kind()) * 4;
        let [info_bytes, element_bytes, _, _] = array_at(bytes.get(..self.layout.1)?, entry)?;
        let tail = usize::from(info_bytes) + info.vlen() * usize::from(element_bytes);
        tail.is_multiple_of(4).then_some(tail)
    }
}

/// The word `info` of a type record: what kind it is and how many elements follow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Info(pub(super) u32);

impl Info {
    /// `BTF_INFO_KIND`.
    pub(super) const fn kind(self) -> u8 {
        (self.0 >> 24) as u8 & 0x7f
    }

    /// `BTF_INFO_VLEN`.
    pub(super) const fn vlen(self) -> usize {
        (self.0 & 0x00ff_ffff) as usize
    }

    /// `BTF_INFO_KFLAG`: members are bit-fields, enumerators are signed, the forward declaration is of a union.
    pub(super) const fn flag(self) -> bool {
        self.0 >> 31 != 0
    }

    /// Bytes behind the record proper. `None` for a kind unknown here.
    fn tail_bytes(self) -> Option<usize> {
        let vlen = self.vlen();
        Some(match self.kind() {
            kind::INT | kind::VAR | kind::DECL_TAG => 4,
            kind::ARRAY => 12,
            kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => vlen * 12,
            kind::ENUM | kind::FUNC_PROTO => vlen * 8,
            kind::PTR
            | kind::FWD
            | kind::TYPEDEF
            | kind::VOLATILE
            | kind::CONST
            | kind::RESTRICT
            | kind::FUNC
            | kind::FLOAT
            | kind::TYPE_TAG => 0,
            _ => return None,
        })
    }
}

/// `BTF_KIND_*`.
pub(super) mod kind {
    pub(in super::super) const INT: u8 = 1;
    pub(in super::super) const PTR: u8 = 2;
    pub(in super::super) const ARRAY: u8 = 3;
    pub(in super::super) const STRUCT: u8 = 4;
    pub(in super::super) const UNION: u8 = 5;
    pub(in super::super) const ENUM: u8 = 6;
    pub(in super::super) const FWD: u8 = 7;
    pub(in super::super) const TYPEDEF: u8 = 8;
    pub(in super::super) const VOLATILE: u8 = 9;
    pub(in super::super) const CONST: u8 = 10;
    pub(in super::super) const RESTRICT: u8 = 11;
    pub(in super::super) const FUNC: u8 = 12;
    pub(in super::super) const FUNC_PROTO: u8 = 13;
    pub(in super::super) const VAR: u8 = 14;
    pub(in super::super) const DATASEC: u8 = 15;
    pub(in super::super) const FLOAT: u8 = 16;
    pub(in super::super) const DECL_TAG: u8 = 17;
    pub(in super::super) const TYPE_TAG: u8 = 18;
    pub(in super::super) const ENUM64: u8 = 19;
}
