//! Static branches: `struct jump_entry` (`include/linux/jump_label.h`).

use varve_formats::symbols::btf::Btf;
use varve_formats::{Fault, Gva, VirtualMemory};

use super::site::Kind;
use super::table::{Table, place_relative};
use crate::linux::layout::{Field, Missing, Structure};

/// Members of `struct jump_entry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JumpEntryLayout {
    size: u64,
    /// Where the branch is. 4 bytes wide: relative to the member itself (4.19 on); 8 bytes: absolute.
    code: Field,
    /// Where it leads when taken.
    target: Field,
}

impl JumpEntryLayout {
    pub(super) fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let entry = Structure::named(btf, "jump_entry")?;
        Ok(Self { size: entry.size()?, code: entry.field("code")?, target: entry.field("target")? })
    }

    /// Bytes of one entry.
    pub(super) const fn size(&self) -> u64 {
        self.size
    }

    /// The sites of a table. Those of the kernel's init sections are among them; nothing is there any more.
    pub(super) fn sites(&self, memory: &dyn VirtualMemory, table: &Table) -> Result<Vec<(Gva, Kind)>, Fault> {
        table.each(memory, self.size, |at, entry| {
            Some((
                address(self.code, at, entry)?,
                Kind::JumpLabel { target: address(self.target, at, entry)? },
            ))
        })
    }
}

fn address(field: Field, at: Gva, entry: &[u8]) -> Option<Gva> {
    let offset = usize::try_from(field.offset).ok()?;
    if field.size == 4 {
        return place_relative(at, entry, offset);
    }
    entry.get(offset..)?.first_chunk::<8>().map(|bytes| Gva(u64::from_le_bytes(*bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Sparse;

    #[test]
    fn both_forms_of_entries_are_read() {
        let mut memory = Sparse::default();
        memory.write_u32(0x2000, (-0x1000i32).cast_unsigned());
        memory.write_u32(0x2004, (-0x0fc4i32).cast_unsigned());
        memory.write_u64(0x2008, 0x1234);
        let field = |offset, size| Field { offset, size };
        let relative = JumpEntryLayout { size: 16, code: field(0, 4), target: field(4, 4) };
        let table = Table { what: "__jump_table", start: Gva(0x2000), len: 16 };
        let site = (Gva(0x1000), Kind::JumpLabel { target: Gva(0x1040) });
        assert_eq!(relative.sites(&memory, &table), Ok(vec![site.clone()]));

        memory.write_u64(0x3000, 0x1000);
        memory.write_u64(0x3008, 0x1040);
        memory.write_u64(0x3010, 0x1234);
        let absolute = JumpEntryLayout { size: 24, code: field(0, 8), target: field(8, 8) };
        let table = Table { what: "__jump_table", start: Gva(0x3000), len: 24 };
        assert_eq!(absolute.sites(&memory, &table), Ok(vec![site]));
    }
}
