//! Types as they are described in the blob.

use std::fmt;

use crate::symbols::bytes::u32_at;

use super::header::{Info, RECORD_BYTES, kind};
use super::parts::{Composite, Enum, Record};
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

impl Btf {
    /// The type of this number. `None` when there is none.
    pub fn ty(&self, id: TypeId) -> Option<Type<'_>> {
        if id == TypeId::VOID {
            return Some(Type { id, name: "void", kind: Kind::Void });
        }
        let at = *self.records.get(id.0 as usize - 1)? as usize;
        let name = self.string(self.word(at)?);
        let info = Info(self.word(at + 4)?);
        let record = Record { info, size_or_type: self.word(at + 8)?, tail: at + RECORD_BYTES };
        let (size, target) = (record.size_or_type, TypeId(record.size_or_type));
        let kind = match info.kind() {
            kind::INT => {
                let encoding = self.word(record.tail)?;
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
            kind::ARRAY => Kind::Array(Array {
                element: TypeId(self.word(record.tail)?),
                count: self.word(record.tail + 8)?,
            }),
            kind::STRUCT => Kind::Struct(Composite::new(self, record)),
            kind::UNION => Kind::Union(Composite::new(self, record)),
            kind::ENUM | kind::ENUM64 => Kind::Enum(Enum::new(self, record)),
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

    pub(super) fn word(&self, at: usize) -> Option<u32> {
        u32_at(&self.bytes, at)
    }
}
