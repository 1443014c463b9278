//! Tables that the linker builds: an array of equal entries between two symbols, or in a module.

use varve_formats::{Fault, Gva, VirtualMemory};

/// Bytes of one table at most. The largest real one (`__static_call_sites` of a distribution's kernel) has half a MiB.
const MAX_TABLE_BYTES: u64 = 16 << 20;

/// A table in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// Its name, for faults.
    pub(super) what: &'static str,
    /// First entry.
    pub(super) start: Gva,
    /// Length in bytes.
    pub(super) len: u64,
}

impl Table {
    /// The table from `start` up to `stop`.
    pub(super) fn between(what: &'static str, start: Gva, stop: Gva) -> Result<Self, Fault> {
        let len = stop.offset_from(start).ok_or(Fault::Malformed { what, at: start.0 })?;
        Ok(Self { what, start, len })
    }

    /// Its entries of `size` bytes with their addresses, each handed to `read`.
    pub(super) fn each<T>(
        &self,
        memory: &dyn VirtualMemory,
        size: u64,
        mut read: impl FnMut(Gva, &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Fault> {
        let malformed = Fault::Malformed { what: self.what, at: self.start.0 };
        let limit = Fault::Limit { what: self.what, limit: MAX_TABLE_BYTES, at: self.start.0 };
        let len = usize::try_from(self.len).ok().filter(|len| *len as u64 <= MAX_TABLE_BYTES).ok_or(limit)?;
        let size = usize::try_from(size).ok().filter(|size| *size > 0).ok_or(malformed)?;
        // A module without sites has a null pointer.
        if len == 0 {
            return Ok(Vec::new());
        }
        let mut bytes = vec![0; len];
        memory.read(self.start, &mut bytes)?;
        let entries = bytes.chunks_exact(size).enumerate();
        Ok(entries
            .filter_map(|(index, entry)| read(Gva(self.start.0.wrapping_add((index * size) as u64)), entry))
            .collect())
    }
}

/// The address that a 32-bit distance in an entry leads to, counted from where the distance itself is.
pub(super) fn place_relative(entry: Gva, bytes: &[u8], offset: usize) -> Option<Gva> {
    let distance = bytes.get(offset..)?.first_chunk::<4>()?;
    let distance = i64::from(i32::from_le_bytes(*distance));
    Some(Gva(entry.0.wrapping_add(offset as u64).wrapping_add_signed(distance)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Sparse;

    #[test]
    fn entries_come_with_their_addresses() {
        let mut memory = Sparse::default();
        memory.write(0x1000, &[1, 2, 3, 4, 5]);
        let table = Table::between("test table", Gva(0x1000), Gva(0x1005)).unwrap();
        let entries = table.each(&memory, 2, |at, entry| Some((at, entry.to_vec()))).unwrap();
        assert_eq!(entries, [(Gva(0x1000), vec![1, 2]), (Gva(0x1002), vec![3, 4])]);
    }

    #[test]
    fn lying_bounds_are_faults() {
        let memory = Sparse::default();
        let each = |table: Table| table.each(&memory, 8, |at, _| Some(at));
        assert!(matches!(Table::between("t", Gva(2), Gva(1)), Err(Fault::Malformed { what: "t", at: 2 })));
        let endless = Table::between("t", Gva(0), Gva(u64::MAX)).unwrap();
        assert!(matches!(each(endless), Err(Fault::Limit { what: "t", .. })));
        assert!(matches!(each(Table { what: "t", start: Gva(0), len: 8 }), Err(Fault::NotPresent { .. })));
        assert_eq!(each(Table { what: "t", start: Gva(0), len: 0 }), Ok(vec![]));
    }

    #[test]
    fn distances_are_signed_and_count_from_their_own_place() {
        assert_eq!(place_relative(Gva(0x1000), &[0, 0, 0, 0, 0xfc, 0xff, 0xff, 0xff], 4), Some(Gva(0x1000)));
        assert_eq!(place_relative(Gva(0x1000), &[0; 7], 4), None);
    }
}
