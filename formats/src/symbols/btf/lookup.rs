//! Looking up types, members and enumerators by name.

use super::header::{Info, kind};
use super::{Btf, Enum, Kind, NameIndex, StructMember, Type, TypeId};

/// Anonymous structures and unions within each other at most.
const MAX_NESTING: u32 = 32;

/// Members looked at for one name at most. The kernel's largest structures have a few hundred.
const MAX_MEMBERS: u32 = 1 << 20;

/// A member and where it is, from the start of the structure that the lookup began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Offset in bytes; of the first byte that holds a bit of it, for a bit-field.
    pub offset: u64,
    /// Bytes of its type; 0 for a flexible array.
    pub size: u64,
    /// Its type as declared.
    pub ty: TypeId,
    /// Its bits, for a bit-field.
    pub bits: Option<BitField>,
    /// Its elements, for an array.
    pub array: Option<ArrayShape>,
}

/// Where in the little-endian bytes from [`Member::offset`] on a bit-field is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitField {
    /// Lowest bit, 0 to 7.
    pub shift: u32,
    /// Number of bits.
    pub width: u32,
}

/// The outermost dimension of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArrayShape {
    /// Elements; 0 for a flexible array.
    pub count: u64,
    /// Bytes of one element.
    pub element_size: u64,
    /// Type of one element.
    pub element: TypeId,
}

impl Btf {
    /// The types of this name: structures, unions, enumerations, typedefs, basic types and forward declarations.
    pub fn named(&self, name: &str) -> impl Iterator<Item = Type<'_>> {
        let of = |record: u32| self.type_name(record);
        let index = self.by_name.get_or_init(|| NameIndex::build(self.records.len() as u32, of));
        index.find(name, of).filter_map(|record| self.ty(TypeId(record + 1)))
    }

    /// The structure or union of this name, or the one that a typedef of this name stands for. Where several share the
    /// name, the first with members.
    pub fn struct_named(&self, name: &str) -> Option<TypeId> {
        let has_members = |ty: &Type<'_>| matches!(ty.kind, Kind::Struct(composite) | Kind::Union(composite) if !composite.is_empty());
        let direct = self.named(name).find(has_members);
        let found = direct.or_else(|| {
            self.named(name)
                .filter_map(|ty| self.resolve(ty.id))
                .find(|ty| matches!(ty.kind, Kind::Struct(_) | Kind::Union(_)))
        });
        found.map(|ty| ty.id)
    }

    /// Bytes of the structure, union or other type of this name.
    pub fn size_of(&self, name: &str) -> Option<u64> {
        match self.struct_named(name) {
            Some(id) => self.type_size(id),
            None => self.named(name).find_map(|ty| self.type_size(ty.id)),
        }
    }

    /// The member at the end of a dotted path, for instance `member("mm_struct", "mm_mt.ma_root")`. Each name is also
    /// found inside anonymous structures and unions; typedefs and modifiers are looked through, pointers are not.
    pub fn member(&self, structure: &str, path: &str) -> Option<Member> {
        self.member_of(self.struct_named(structure)?, path)
    }

    /// As [`Btf::member`], in the type of this number.
    pub fn member_of(&self, structure: TypeId, path: &str) -> Option<Member> {
        let mut at = Found { bit_offset: 0, member: None, ty: structure };
        for name in path.split('.') {
            let mut budget = MAX_MEMBERS;
            let (bit_offset, member) = self.find_member(at.ty, name, MAX_NESTING, &mut budget)?;
            at = Found { bit_offset: at.bit_offset + bit_offset, member: Some(member), ty: member.ty };
        }
        self.describe(at)
    }

    /// The value of an enumerator of the enumeration of this name, or of the one that a typedef of it stands for.
    pub fn enum_value(&self, enumeration: &str, enumerator: &str) -> Option<i128> {
        self.enumerations(enumeration).find_map(|of| of.value(enumerator))
    }

    /// The value of the first enumerator of this name in any enumeration. Slow: it looks at all of them.
    pub fn enumerator(&self, enumerator: &str) -> Option<i128> {
        self.types().find_map(|ty| match ty.kind {
            Kind::Enum(of) => of.value(enumerator),
            _ => None,
        })
    }

    /// The enumerators and values of the enumeration of this name; none when there is no such enumeration.
    pub fn enumerators(&self, enumeration: &str) -> impl Iterator<Item = (&str, i128)> {
        self.enumerations(enumeration).take(1).flat_map(|of| of.enumerators())
    }

    fn enumerations(&self, name: &str) -> impl Iterator<Item = Enum<'_>> {
        self.named(name).filter_map(|ty| match self.resolve(ty.id)?.kind {
            Kind::Enum(of) => Some(of),
            _ => None,
        })
    }

    /// The first member called `name` and its distance in bits from the start of `structure`.
    fn find_member(
        &self,
        structure: TypeId,
        name: &str,
        nesting: u32,
        budget: &mut u32,
    ) -> Option<(u64, StructMember<'_>)> {
        let (Kind::Struct(composite) | Kind::Union(composite)) = self.resolve(structure)?.kind else {
            return None;
        };
        if name.is_empty() {
            return None;
        }
        for member in composite.members() {
            *budget = budget.checked_sub(1)?;
            if member.name == name {
                return Some((member.bit_offset.into(), member));
            }
            if member.name.is_empty()
                && nesting > 0
                && let Some((inner, found)) = self.find_member(member.ty, name, nesting - 1, budget)
            {
                return Some((u64::from(member.bit_offset) + inner, found));
            }
        }
        None
    }

    fn describe(&self, found: Found<'_>) -> Option<Member> {
        let Found { bit_offset, member, ty } = found;
        let resolved = self.resolve(ty)?;
        let size = self.type_size(ty)?;
        let bits = match (member.and_then(|member| member.bit_size), resolved.kind) {
            (Some(width), _) => Some((bit_offset, width)),
            // The bit-fields of blobs before the flag (2019): an integer narrower than its storage.
            (None, Kind::Int(int))
                if u32::from(int.bits) < int.size.saturating_mul(8) || bit_offset % 8 != 0 =>
            {
                Some((bit_offset + u64::from(int.bit_offset), int.bits.into()))
            }
            _ => None,
        };
        let array = match resolved.kind {
            Kind::Array(array) => Some(ArrayShape {
                count: array.count.into(),
                element_size: self.type_size(array.element)?,
                element: array.element,
            }),
            _ => None,
        };
        let first_bit = bits.map_or(bit_offset, |bits| bits.0);
        let bits = bits.map(|(first, width)| BitField { shift: (first % 8) as u32, width });
        Some(Member { offset: first_bit / 8, size, ty, bits, array })
    }

    /// The name of a record that can be looked up by name.
    fn type_name(&self, record: u32) -> Option<&str> {
        let at = *self.records.get(record as usize)? as usize;
        let kind = Info(self.word(at + 4)?).kind();
        if matches!(kind, kind::FUNC | kind::VAR | kind::DATASEC | kind::DECL_TAG | kind::TYPE_TAG) {
            return None;
        }
        Some(self.string(self.word(at)?)).filter(|name| !name.is_empty())
    }
}

/// Where a lookup has got to.
struct Found<'a> {
    bit_offset: u64,
    member: Option<StructMember<'a>>,
    ty: TypeId,
}
