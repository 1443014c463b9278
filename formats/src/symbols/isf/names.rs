//! What each type is called in the file. Names there are keys; in C a structure may have none, and several may share
//! one.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use crate::symbols::btf::{Btf, Kind, Type, TypeId};

/// Words that Volatility's tables of basic types give a meaning of their own.
const RESERVED: [&str; 8] = ["array", "bitfield", "bytes", "enum", "function", "pointer", "string", "void"];

/// Names of the structures, unions and enumerations of a BTF blob.
pub(super) struct TypeNames<'a> {
    pub(super) btf: &'a Btf,
    /// Types that have their name, or that of a typedef, to themselves.
    unique: HashMap<TypeId, &'a str>,
    /// Further names of types, from typedefs, in order.
    pub(super) aliases: Vec<(&'a str, Type<'a>)>,
}

/// Structures and unions on the one hand, enumerations on the other, basic types on the third: each has names of its
/// own.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Space {
    Base,
    User,
    Enum,
}

/// The space of a type. `None` for what the file has no name for.
pub(super) fn space(kind: &Kind<'_>) -> Option<Space> {
    match kind {
        Kind::Int(_) | Kind::Float { .. } => Some(Space::Base),
        Kind::Struct(_) | Kind::Union(_) => Some(Space::User),
        Kind::Enum(_) => Some(Space::Enum),
        _ => None,
    }
}

impl<'a> TypeNames<'a> {
    pub(super) fn new(btf: &'a Btf) -> Self {
        let mut taken = HashSet::new();
        let mut unique = HashMap::new();
        // Names of types themselves first, then what typedefs add.
        for ty in btf.types().filter(|ty| !ty.name.is_empty()) {
            if let Some(space) = space(&ty.kind)
                && !is_empty(&ty)
                && taken.insert((space, ty.name))
            {
                unique.insert(ty.id, ty.name);
            }
        }
        let mut aliases = Vec::new();
        for ty in btf.types().filter(|ty| matches!(ty.kind, Kind::Typedef(_)) && !RESERVED.contains(&ty.name))
        {
            if let Some(target) = btf.resolve(ty.id)
                && let Some(space) = space(&target.kind)
                && taken.insert((space, ty.name))
            {
                if target.name.is_empty() && !unique.contains_key(&target.id) {
                    unique.insert(target.id, ty.name);
                } else {
                    aliases.push((ty.name, target));
                }
            }
        }
        Self { btf, unique, aliases }
    }

    /// The name of a structure, union, enumeration or basic type.
    pub(super) fn name(&self, ty: &Type<'a>) -> Cow<'a, str> {
        match self.unique.get(&ty.id) {
            Some(name) => Cow::Borrowed(name),
            None if ty.name.is_empty() => Cow::Owned(format!("unnamed_{}", ty.id.0)),
            // Old blobs repeat a basic type for each width of bit-field; the first of the name is the whole type.
            None if matches!(space(&ty.kind), Some(Space::Base)) => Cow::Borrowed(ty.name),
            None => Cow::Owned(format!("{}_{}", ty.name, ty.id.0)),
        }
    }

    /// The types of one space with their names, in the order of the blob, then the aliases.
    pub(super) fn types_in(&self, wanted: Space) -> impl Iterator<Item = (Cow<'a, str>, Type<'a>)> {
        let own =
            self.btf.types().filter(move |ty| space(&ty.kind) == Some(wanted)).map(|ty| (self.name(&ty), ty));
        let aliases = self.aliases.iter().filter(move |(_, ty)| space(&ty.kind) == Some(wanted));
        own.chain(aliases.map(|(name, ty)| (Cow::Borrowed(*name), *ty)))
    }
}

/// Whether a type of the same name with contents should have the name.
fn is_empty(ty: &Type<'_>) -> bool {
    matches!(ty.kind, Kind::Struct(composite) | Kind::Union(composite) if composite.is_empty())
}
