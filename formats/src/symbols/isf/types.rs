//! The sections of the file that describe types.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{HashMap, HashSet};

use serde::ser::Error;
use serde::{Serialize, Serializer};

use crate::symbols::btf::{Composite, Enum, Kind, StructMember, TypeId};

use super::globals::TkCore;
use super::names::{Space, TypeNames};

/// Pointers to pointers, arrays of arrays and so on at most; what is deeper is written as `void`.
const MAX_DEPTH: u32 = 12;

/// Members and enumerators written at most. Debian's 7.3 has 200,000.
const MAX_FIELDS: usize = 1 << 22;

/// The type of a member or a symbol.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(super) enum Shape<'a> {
    Base { name: Cow<'a, str> },
    Pointer { subtype: Box<Self> },
    Array { count: u64, subtype: Box<Self> },
    Struct { name: Cow<'a, str> },
    Union { name: Cow<'a, str> },
    Enum { name: Cow<'a, str> },
    Function,
    Bitfield { bit_position: u64, bit_length: u32, r#type: Box<Self> },
}

impl<'a> Shape<'a> {
    pub(super) const VOID: Self = Self::Base { name: Cow::Borrowed("void") };

    /// How the file describes a type.
    pub(super) fn of(names: &TypeNames<'a>, id: TypeId) -> Self {
        Self::within(names, id, MAX_DEPTH)
    }

    fn within(names: &TypeNames<'a>, id: TypeId, depth: u32) -> Self {
        let Some(depth) = depth.checked_sub(1) else { return Self::VOID };
        let Some(ty) = names.btf.resolve(id) else { return Self::VOID };
        let subtype = |id| Box::new(Self::within(names, id, depth));
        match ty.kind {
            Kind::Int(_) | Kind::Float { .. } => Self::Base { name: names.name(&ty) },
            Kind::Pointer(target) => Self::Pointer { subtype: subtype(target) },
            Kind::Array(array) => Self::Array { count: array.count.into(), subtype: subtype(array.element) },
            Kind::Struct(_) => Self::Struct { name: names.name(&ty) },
            Kind::Union(_) => Self::Union { name: names.name(&ty) },
            Kind::Enum(_) => Self::Enum { name: names.name(&ty) },
            // The definition may be elsewhere in the blob; if it is not, all that can be said is "something".
            Kind::Forward { .. } => match names.btf.struct_named(ty.name) {
                Some(definition) => Self::within(names, definition, depth),
                None => Self::VOID,
            },
            Kind::Prototype(_) | Kind::Function(_) => Self::Function,
            _ => Self::VOID,
        }
    }
}

/// `base_types`.
pub(super) struct BaseTypes<'a>(pub(super) &'a TypeNames<'a>);

#[derive(Serialize)]
struct BaseType {
    size: u32,
    signed: bool,
    kind: &'static str,
    endian: &'static str,
}

impl Serialize for BaseTypes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let base = |size, signed, kind| BaseType { size, signed, kind, endian: "little" };
        let fixed = [("void", base(0, false, "void")), ("pointer", base(8, false, "int"))];
        let mut seen: HashSet<String> = fixed.iter().map(|(name, _)| (*name).to_owned()).collect();
        let found = self.0.types_in(Space::Base).filter_map(|(name, ty)| {
            let base = match ty.kind {
                Kind::Int(int) if int.is_bool => base(int.size, false, "bool"),
                Kind::Int(int) if int.is_char || ty.name.ends_with("char") => {
                    base(int.size, int.signed, "char")
                }
                Kind::Int(int) => base(int.size, int.signed, "int"),
                Kind::Float { size } => base(size, true, "float"),
                _ => return None,
            };
            seen.insert(name.clone().into_owned()).then_some((name, base))
        });
        let found: Vec<_> = found.collect();
        let fixed = fixed.map(|(name, base)| (Cow::Borrowed(name), base));
        serializer.collect_map(fixed.into_iter().chain(found))
    }
}

/// `user_types`: structures and unions.
pub(super) struct UserTypes<'a>(pub(super) &'a TypeNames<'a>);

#[derive(Serialize)]
struct UserType<'a> {
    kind: &'static str,
    size: u64,
    fields: Fields<'a>,
}

enum Fields<'a> {
    Declared { names: &'a TypeNames<'a>, of: Composite<'a>, left: &'a Cell<usize> },
    One(&'static str, Field<'a>),
}

#[derive(Serialize)]
struct Field<'a> {
    r#type: Shape<'a>,
    offset: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    anonymous: bool,
}

impl Serialize for UserTypes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let left = &Cell::new(MAX_FIELDS);
        let names = self.0;
        let declared = names.types_in(Space::User).filter_map(|(name, ty)| {
            let (kind, of) = match ty.kind {
                Kind::Struct(of) => ("struct", of),
                Kind::Union(of) => ("union", of),
                _ => return None,
            };
            Some((
                name,
                UserType { kind, size: of.size.into(), fields: Fields::Declared { names, of, left } },
            ))
        });
        let inferred = TkCore::of(names).map(|TkCore { offset, size, timekeeper }| {
            let field = Field { r#type: timekeeper, offset, anonymous: false };
            (TkCore::NAME.into(), UserType { kind: "struct", size, fields: Fields::One("timekeeper", field) })
        });
        serializer.collect_map(declared.chain(inferred))
    }
}

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::One(name, field) => serializer.collect_map([(name, field)]),
            Self::Declared { names, of, left } => {
                spend(left, of.len())?;
                let members = of.members().enumerate();
                serializer
                    .collect_map(members.filter_map(|(position, member)| field(names, position, &member)))
            }
        }
    }
}

/// A member and what it is called: anonymous structures and unions get a name of their own. `None` for padding.
fn field<'a>(
    names: &TypeNames<'a>,
    position: usize,
    member: &StructMember<'a>,
) -> Option<(Cow<'a, str>, Field<'a>)> {
    let anonymous = member.name.is_empty();
    let (r#type, offset) = match member.bit_size {
        Some(width) => bit_field(names, member, width),
        None => (Shape::of(names, member.ty), u64::from(member.bit_offset / 8)),
    };
    let name = match (anonymous, &r#type) {
        (false, _) => Cow::Borrowed(member.name),
        (true, Shape::Struct { .. } | Shape::Union { .. }) => Cow::Owned(format!("unnamed_field_{position}")),
        (true, _) => return None,
    };
    Some((name, Field { r#type, offset, anonymous }))
}

/// A bit-field and the offset of the storage unit that holds it, as the compiler chose it: aligned to its size.
fn bit_field<'a>(names: &TypeNames<'a>, member: &StructMember<'a>, width: u32) -> (Shape<'a>, u64) {
    let bit = u64::from(member.bit_offset);
    let unit = names.btf.type_size(member.ty).filter(|size| (1..=16).contains(size)).unwrap_or(1) * 8;
    // In a packed structure the bits may reach into the next unit: count from their first byte instead.
    let unit = if bit % unit + u64::from(width) > unit { 8 } else { unit };
    let r#type = Box::new(Shape::of(names, member.ty));
    (Shape::Bitfield { bit_position: bit % unit, bit_length: width, r#type }, bit / unit * (unit / 8))
}

/// `enums`.
pub(super) struct Enums<'a>(pub(super) &'a TypeNames<'a>);

#[derive(Serialize)]
struct Enumeration<'a> {
    size: u32,
    base: Cow<'a, str>,
    constants: Constants<'a>,
}

struct Constants<'a> {
    of: Enum<'a>,
    left: &'a Cell<usize>,
}

impl Serialize for Enums<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let left = &Cell::new(MAX_FIELDS);
        let names = self.0;
        // The integer types that enumerations are stored as.
        let mut integers = HashMap::new();
        for ty in names.btf.types() {
            if let Kind::Int(int) = ty.kind
                && !int.is_bool
            {
                integers.entry((int.size, int.signed)).or_insert(ty);
            }
        }
        let base = |of: &Enum<'_>| {
            let signs = [of.signed, !of.signed];
            let found = signs.into_iter().find_map(|signed| integers.get(&(of.size, signed)));
            found.map_or(Cow::Borrowed("void"), |ty| names.name(ty))
        };
        serializer.collect_map(names.types_in(Space::Enum).filter_map(|(name, ty)| {
            let Kind::Enum(of) = ty.kind else { return None };
            Some((name, Enumeration { size: of.size, base: base(&of), constants: Constants { of, left } }))
        }))
    }
}

impl Serialize for Constants<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        spend(self.left, self.of.len())?;
        serializer.collect_map(self.of.enumerators())
    }
}

fn spend<E: Error>(left: &Cell<usize>, fields: usize) -> Result<(), E> {
    let rest = left.get().checked_sub(fields);
    left.set(rest.ok_or_else(|| E::custom(format!("the types have more than {MAX_FIELDS} members")))?);
    Ok(())
}
