//! Every page that a page table maps in a range of virtual memory.

use varve_formats::{Fault, Gpa, Gva, PAGE_SIZE};

use super::entry::{Access, Entry};
use super::space::{AddressSpace, level_shift};

/// Tables that one iteration reads at most: enough for every table of a guest of 128 GiB. A hostile table can point to
/// itself and otherwise seem to map all of the address space.
pub const MAX_TABLES: u64 = 1 << 16;

/// Entries of a table.
const ENTRIES: usize = 512;

/// One page, mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First virtual address of the page.
    pub gva: Gva,
    /// First physical address.
    pub gpa: Gpa,
    /// `log2` of the page's size in bytes: 12, 21 or 30.
    pub page_shift: u32,
    /// What the tables allow.
    pub access: Access,
}

/// A table being read, and the next of its entries to look at.
struct Frame {
    level: u8,
    access: Access,
    /// Virtual address that entry 0 stands for, not yet made canonical.
    base: u64,
    next: usize,
    table: Box<[u8; PAGE_SIZE]>,
}

/// Iterator over the pages mapped in a range, in ascending order. A table that cannot be read, or an entry that is
/// malformed, is an `Err`, and the iteration goes on behind it. After [`Fault::Limit`] it ends.
pub struct Mappings<'a, 'm> {
    space: &'a AddressSpace<'m>,
    /// First and last address, as the walk counts them: without the sign extension.
    first: u64,
    last: u64,
    stack: Vec<Frame>,
    tables_left: u64,
    /// A fault of the top table, not yet told.
    pending: Option<Fault>,
}

impl<'m> AddressSpace<'m> {
    /// The pages mapped from `first` to `last` (inclusive). Both must lie in the same half of the address space;
    /// addresses that are not canonical are taken by their significant bits.
    pub fn mappings(&self, first: Gva, last: Gva) -> Mappings<'_, 'm> {
        let significant = (1u64 << self.levels().address_bits()) - 1;
        let mut mappings = Mappings {
            space: self,
            first: first.0 & significant,
            last: last.0 & significant,
            stack: Vec::new(),
            tables_left: MAX_TABLES,
            pending: None,
        };
        mappings.pending = mappings.descend(self.root(), self.levels().count(), Access::ALL, 0).err();
        mappings
    }
}

impl Mappings<'_, '_> {
    /// Reads a table and makes it the one to go on with.
    fn descend(&mut self, table: Gpa, level: u8, access: Access, base: u64) -> Result<(), Fault> {
        let at = self.space.levels().canonical(base);
        let Some(left) = self.tables_left.checked_sub(1) else {
            self.stack.clear();
            return Err(Fault::Limit { what: "page tables", limit: MAX_TABLES, at: at.0 });
        };
        self.tables_left = left;
        let mut bytes = Box::new([0; PAGE_SIZE]);
        if self.space.memory().read(table, bytes.as_mut_slice()).is_err() {
            return Err(Fault::TableMissing { at, level, table });
        }
        let skipped = self.first.saturating_sub(base) >> level_shift(level);
        let next = usize::try_from(skipped).unwrap_or(ENTRIES);
        self.stack.push(Frame { level, access, base, next, table: bytes });
        Ok(())
    }

    /// Looks at the next entry. `None`: nothing mapped by it.
    fn step(&mut self) -> Option<Result<Mapping, Fault>> {
        let frame = self.stack.last_mut()?;
        let (level, shift) = (frame.level, level_shift(frame.level));
        let base = frame.base + ((frame.next as u64) << shift);
        let bytes = frame.table.get(frame.next * 8..).and_then(|tail| tail.first_chunk::<8>());
        let Some(bytes) = bytes.filter(|_| base <= self.last) else {
            self.stack.pop();
            return None;
        };
        frame.next += 1;
        let entry = self.space.usable(Entry(u64::from_le_bytes(*bytes)), level)?;
        let access = frame.access.and(entry.access());
        let gva = self.space.levels().canonical(base);
        match (level, entry.is_large()) {
            (1, _) | (2 | 3, true) => {
                Some(Ok(Mapping { gva, gpa: entry.page(shift), page_shift: shift, access }))
            }
            (_, true) => Some(Err(Fault::Malformed { what: "page table entry", at: gva.0 })),
            (_, false) => self.descend(entry.address(), level - 1, access, base).err().map(Err),
        }
    }
}

impl Iterator for Mappings<'_, '_> {
    type Item = Result<Mapping, Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(fault) = self.pending.take() {
            return Some(Err(fault));
        }
        while !self.stack.is_empty() {
            if let Some(found) = self.step() {
                return Some(found);
            }
        }
        None
    }
}
