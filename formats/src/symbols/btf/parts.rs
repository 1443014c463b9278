//! What structures, unions and enumerations consist of.

use super::header::{Info, kind};
use super::{Btf, TypeId};

/// A type record without its name.
#[derive(Clone, Copy)]
pub(super) struct Record {
    pub(super) info: Info,
    /// Bytes, or the type that this one refers to.
    pub(super) size_or_type: u32,
    /// Where in the blob what follows the record begins.
    pub(super) tail: usize,
}

/// A structure or union.
#[derive(Clone, Copy)]
pub struct Composite<'a> {
    btf: &'a Btf,
    /// Bytes.
    pub size: u32,
    first: usize,
    count: usize,
    bit_fields: bool,
}

/// A member as it is declared; see [`Btf::member`] for looking one up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StructMember<'a> {
    /// Its name; empty for an anonymous structure or union and for padding.
    pub name: &'a str,
    /// Its type.
    pub ty: TypeId,
    /// Bits from the start of the structure.
    pub bit_offset: u32,
    /// Bits of a bit-field; `None` for an ordinary member.
    pub bit_size: Option<u32>,
}

/// An enumeration.
#[derive(Clone, Copy)]
pub struct Enum<'a> {
    btf: &'a Btf,
    /// Bytes.
    pub size: u32,
    /// Whether values are signed.
    pub signed: bool,
    wide: bool,
    first: usize,
    count: usize,
}

impl<'a> Composite<'a> {
    pub(super) const fn new(btf: &'a Btf, record: Record) -> Self {
        let Record { info, size_or_type, tail } = record;
        Self { btf, size: size_or_type, first: tail, count: info.vlen(), bit_fields: info.flag() }
    }

    /// The members, in the order of their declaration.
    pub fn members(&self) -> impl Iterator<Item = StructMember<'a>> + use<'a> {
        let Self { btf, first, count, bit_fields, .. } = *self;
        (0..count).map_while(move |member| {
            let at = first + member * 12;
            let offset = btf.word(at + 8)?;
            let (bit_offset, bits) =
                if bit_fields { (offset & 0x00ff_ffff, offset >> 24) } else { (offset, 0) };
            Some(StructMember {
                name: btf.string(btf.word(at)?),
                ty: TypeId(btf.word(at + 4)?),
                bit_offset,
                bit_size: (bits != 0).then_some(bits),
            })
        })
    }

    /// Number of members.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether it has no members.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl<'a> Enum<'a> {
    pub(super) fn new(btf: &'a Btf, record: Record) -> Self {
        let Record { info, size_or_type, tail } = record;
        let wide = info.kind() == kind::ENUM64;
        // Blobs before the flag (6.1) do not say whether an enumeration is signed.
        let negative = |enumerator| btf.word(tail + enumerator * 8 + 4).is_some_and(|value| value >> 31 != 0);
        let signed = info.flag() || !wide && (0..info.vlen()).any(negative);
        Self { btf, size: size_or_type, signed, wide, first: tail, count: info.vlen() }
    }

    /// Number of enumerators.
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether it has no enumerators.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The enumerators and their values, in the order of their declaration.
    pub fn enumerators(&self) -> impl Iterator<Item = (&'a str, i128)> + use<'a> {
        let Self { btf, signed, wide, first, count, .. } = *self;
        (0..count).map_while(move |enumerator| {
            let at = first + enumerator * if wide { 12 } else { 8 };
            let low = btf.word(at + 4)?;
            let high = if wide { btf.word(at + 8)? } else { 0 };
            let value = u64::from(high) << 32 | u64::from(low);
            let value = match (signed, wide) {
                (true, true) => value.cast_signed().into(),
                (true, false) => low.cast_signed().into(),
                (false, _) => value.into(),
            };
            Some((btf.string(btf.word(at)?), value))
        })
    }

    /// The value of one enumerator.
    pub fn value(&self, enumerator: &str) -> Option<i128> {
        self.enumerators().find(|entry| entry.0 == enumerator).map(|entry| entry.1)
    }
}
