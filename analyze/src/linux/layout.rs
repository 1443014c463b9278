//! Where members are, by the kernel's own BTF.
//!
//! Variants of a structure are told by the members it has, never by the kernel's version.

use varve_formats::symbols::btf::{Btf, Member};
use varve_formats::{Fault, Gva, VirtualMemory};

/// What this kernel does not have, or does not describe.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Missing {
    /// A symbol is not in kallsyms.
    #[error("the kernel has no symbol {0}")]
    Symbol(String),
    /// A structure is not in BTF.
    #[error("the kernel's BTF has no struct {0}")]
    Structure(&'static str),
    /// No member of these names is in a structure.
    #[error("struct {structure} has no member {member} in the kernel's BTF")]
    Member {
        /// The structure.
        structure: &'static str,
        /// The member, or the alternatives looked for.
        member: String,
    },
}

/// A member of a kernel structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Offset from the start of the structure, in bytes.
    pub offset: u64,
    /// Size in bytes; 0 for a flexible array.
    pub size: u64,
}

impl Field {
    /// Its address in the structure at `base`.
    ///
    /// # Errors
    /// [`Fault::Overflow`].
    pub fn of(self, base: Gva) -> Result<Gva, Fault> {
        base.checked_add(self.offset).ok_or(Fault::Overflow { at: base.0 })
    }

    /// Its value, as an unsigned integer of its own size.
    ///
    /// # Errors
    /// As reading; [`Fault::Malformed`] when the member is no integer of 1 to 8 bytes.
    pub fn read(self, memory: &dyn VirtualMemory, base: Gva) -> Result<u64, Fault> {
        let at = self.of(base)?;
        let mut bytes = [0; 8];
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        let field = bytes.get_mut(..size).filter(|field| !field.is_empty());
        memory.read(at, field.ok_or(Fault::Malformed { what: "integer member", at: at.0 })?)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The low 32 bits of its value: for `pid_t`, `uid_t` and flags.
    ///
    /// # Errors
    /// As [`Field::read`].
    pub fn read_u32(self, memory: &dyn VirtualMemory, base: Gva) -> Result<u32, Fault> {
        self.read(memory, base).map(|value| value as u32)
    }

    /// The pointer in it.
    ///
    /// # Errors
    /// As [`Field::read`].
    pub fn pointer(self, memory: &dyn VirtualMemory, base: Gva) -> Result<Gva, Fault> {
        self.read(memory, base).map(Gva)
    }

    /// The pointer in it, `None` for a null pointer.
    ///
    /// # Errors
    /// As [`Field::read`].
    pub fn pointer_or_null(self, memory: &dyn VirtualMemory, base: Gva) -> Result<Option<Gva>, Fault> {
        self.pointer(memory, base).map(|pointer| (pointer.0 != 0).then_some(pointer))
    }
}

/// Looks members of one structure up.
#[derive(Clone, Copy)]
pub(crate) struct Structure<'a> {
    btf: &'a Btf,
    name: &'static str,
}

impl<'a> Structure<'a> {
    pub(crate) fn named(btf: &'a Btf, name: &'static str) -> Result<Self, Missing> {
        btf.struct_named(name).map(|_| Self { btf, name }).ok_or(Missing::Structure(name))
    }

    /// Size in bytes.
    pub(crate) fn size(&self) -> Result<u64, Missing> {
        self.btf.size_of(self.name).ok_or(Missing::Structure(self.name))
    }

    /// The member at the end of a dotted path.
    pub(crate) fn field(&self, path: &str) -> Result<Field, Missing> {
        self.any(&[path])
    }

    /// The first of these members that exists.
    pub(crate) fn any(&self, paths: &[&str]) -> Result<Field, Missing> {
        let found = paths.iter().find_map(|path| self.optional(path));
        found.ok_or_else(|| Missing::Member { structure: self.name, member: paths.join(" or ") })
    }

    /// The member, where this kernel has it.
    pub(crate) fn optional(&self, path: &str) -> Option<Field> {
        self.member(path).map(|member| Field { offset: member.offset, size: member.size })
    }

    /// All that BTF says about a member.
    pub(crate) fn member(&self, path: &str) -> Option<Member> {
        self.btf.member(self.name, path)
    }

    /// Number and size in bytes of the elements of an array.
    pub(crate) fn array(&self, path: &str) -> Result<(Field, u64, u64), Missing> {
        let missing = || Missing::Member { structure: self.name, member: path.to_owned() };
        let member = self.member(path).ok_or_else(missing)?;
        let shape = member.array.ok_or_else(missing)?;
        Ok((Field { offset: member.offset, size: member.size }, shape.count, shape.element_size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Sparse;

    #[test]
    fn integers_are_read_at_their_own_size() {
        let mut memory = Sparse::default();
        memory.write(0x1008, &[0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
        let read = |size| Field { offset: 8, size }.read(&memory, Gva(0x1000));
        assert_eq!(read(1), Ok(0x11));
        assert_eq!(read(2), Ok(0x2211));
        assert_eq!(read(4), Ok(0x4433_2211));
        assert_eq!(read(8), Ok(0x8877_6655_4433_2211));
        assert_eq!(read(0), Err(Fault::Malformed { what: "integer member", at: 0x1008 }));
        assert_eq!(read(16), Err(Fault::Malformed { what: "integer member", at: 0x1008 }));
        assert_eq!(Field { offset: 8, size: 8 }.of(Gva(u64::MAX)), Err(Fault::Overflow { at: u64::MAX }));
    }
}
