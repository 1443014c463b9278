//! Types as they are described in the blob.

use std::fmt;

use crate::symbols::bytes::u32_at;

use super::header::{Info, RECORD_BYTES, kind};
use super::{Btf, POINTER_BYTES};

/// Number of a type in its blob. 0 is `void`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct TypeId(pub u32);

impl TypeId {
    /// `void`.
    pub const VOID: Self = Self(0);
}

impl fmt::Display for TypeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// One type.
#[derive(Clone, Copy)]
pub struct Type<'a> {
    /// Its number.
    pub id: TypeId,
    /// Its name; empty when it has none.
    pub name: &'a str,
    /// What it is.
    pub kind: Kind<'a>,
}

/// What a type is. The variants correspond to `BTF_KIND_*`.
#[derive(Clone, Copy)]
pub enum Kind<'a> {
    /// No type.
    Void,
    /// An integer, character or boolean.
    Int(Int),
    /// A floating-point number.
    Float {
        /// Bytes.
        size: u32,
    },
    /// A pointer to this type.
    Pointer(TypeId),
    /// An array.
    Array(Array),
    /// A structure.
    Struct(Composite<'a>),
    /// A union.
    Union(Composite<'a>),
    /// An enumeration of either width.
    Enum(Enum<'a>),
    /// A declaration without members.
    Forward {
        /// Of a union rather than a structure.
        is_union: bool,
    },
    /// Another name for this type.
    Typedef(TypeId),
    /// `const`, `volatile`, `restrict` or a type tag on this type.
    Modifier(TypeId),
    /// A function with this prototype.
    Function(TypeId),
    /// A function type that returns this type.
    Prototype(TypeId),
    /// A variable of this type.
    Variable(TypeId),
    /// A section of variables.
    Section {
        /// Bytes.
        size: u32,
    },
    /// A tag on this type or on a part of it.
    Tag(TypeId),
    /// A kind that the blob declares and this parser does not know.
    Unknown,
}

/// An integer type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Int {
    /// Bytes.
    pub size: u32,
    /// Bits of value; fewer than `8 * size` in the bit-fields of old blobs.
    pub bits: u8,
    /// Where in the storage the bits begin.
    pub bit_offset: u8,
    /// Signed.
    pub signed: bool,
    /// A character.
    pub is_char: bool,
    /// A boolean.
    pub is_bool: bool,
}

/// An array type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Array {
    /// Type of an element.
    pub element: TypeId,
    /// Number of elements; 0 for a flexible array.
    pub count: u32,
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

impl Btf {
    /// The type of this number. `None` when there is none.
    pub fn ty(&self, id: TypeId) -> Option<Type<'_>> {
        if id == TypeId::VOID {
            return Some(Type { id, name: "void", kind: Kind::Void });
        }
        let at = *self.records.get(id.0 as usize - 1)? as usize;
        let name = self.string(self.word(at)?);
        let info = Info(self.word(at + 4)?);
        let size = self.word(at + 8)?;
        let target = TypeId(size);
        let first = at + RECORD_BYTES;
        let composite = || Composite { btf: self, size, first, count: info.vlen(), bit_fields: info.flag() };
        let kind = match info.kind() {
            kind::INT => {
                let encoding = self.word(first)?;
                Kind::Int(Int {
                    size,
                    bits: encoding as u8,
                    bit_offset: (encoding >> 16) as u8,
                    signed: encoding >> 24 & 1 != 0,
                    is_char: encoding >> 24 & 2 != 0,
                    is_bool: encoding >> 24 & 4 != 0,
                })
            }
            kind::PTR => Kind::Pointer(target),
            kind::ARRAY => {
                Kind::Array(Array { element: TypeId(self.word(first)?), count: self.word(first + 8)? })
            }
            kind::STRUCT => Kind::Struct(composite()),
            kind::UNION => Kind::Union(composite()),
            wide @ (kind::ENUM | kind::ENUM64) => Kind::Enum(Enum {
                btf: self,
                size,
                signed: info.flag() || (wide == kind::ENUM && self.has_negative(first, info)),
                wide: wide == kind::ENUM64,
                first,
                count: info.vlen(),
            }),
            kind::FWD => Kind::Forward { is_union: info.flag() },
            kind::TYPEDEF => Kind::Typedef(target),
            kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => Kind::Modifier(target),
            kind::FUNC => Kind::Function(target),
            kind::FUNC_PROTO => Kind::Prototype(target),
            kind::VAR => Kind::Variable(target),
            kind::DATASEC => Kind::Section { size },
            kind::FLOAT => Kind::Float { size },
            kind::DECL_TAG => Kind::Tag(target),
            _ => Kind::Unknown,
        };
        Some(Type { id, name, kind })
    }

    /// Bytes of a value of this type, through typedefs, modifiers and arrays. `None` for what has no size.
    pub fn type_size(&self, id: TypeId) -> Option<u64> {
        let mut count = 1u64;
        let mut id = id;
        // Array dimensions; more than a handful is not real.
        for _ in 0..16 {
            let size = match self.resolve(id)?.kind {
                Kind::Array(array) => {
                    count = count.checked_mul(array.count.into())?;
                    id = array.element;
                    continue;
                }
                Kind::Int(int) => int.size.into(),
                Kind::Float { size } | Kind::Section { size } => size.into(),
                Kind::Pointer(_) => POINTER_BYTES,
                Kind::Struct(composite) | Kind::Union(composite) => composite.size.into(),
                Kind::Enum(of) => of.size.into(),
                Kind::Variable(of) => {
                    id = of;
                    continue;
                }
                _ => return None,
            };
            return count.checked_mul(size);
        }
        None
    }

    /// The type behind typedefs and modifiers. `None` when the blob is broken or they go in a circle.
    pub fn resolve(&self, id: TypeId) -> Option<Type<'_>> {
        let mut ty = self.ty(id)?;
        // The longest chain in a real kernel has fewer than ten links.
        for _ in 0..64 {
            match ty.kind {
                Kind::Typedef(target) | Kind::Modifier(target) => ty = self.ty(target)?,
                _ => return Some(ty),
            }
        }
        None
    }

    /// Blobs before the flag (6.1) do not say whether an enumeration is signed.
    fn has_negative(&self, first: usize, info: Info) -> bool {
        (0..info.vlen())
            .any(|enumerator| self.word(first + enumerator * 8 + 4).is_some_and(|value| value >> 31 != 0))
    }

    pub(super) fn word(&self, at: usize) -> Option<u32> {
        u32_at(&self.bytes, at)
    }
}
