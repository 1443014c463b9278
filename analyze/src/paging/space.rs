//! One page table, and memory as it shows it.

use varve_formats::{Fault, Gpa, Gva, PAGE_SHIFT, PAGE_SIZE, PhysicalMemory, VirtualMemory};

use super::cache::{Upper, WalkCache};
use super::entry::{Access, Entry};

/// `log2` of the entries of a table.
const INDEX_BITS: u32 = 9;
/// `log2` of what a level 2 entry covers: 2 MiB.
pub(super) const RANGE_SHIFT: u32 = PAGE_SHIFT + INDEX_BITS;

/// How many levels of tables a guest uses (`CR4.LA57`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Levels {
    /// 48-bit virtual addresses.
    Four,
    /// 57-bit virtual addresses.
    Five,
}

impl Levels {
    /// The number of levels.
    pub const fn count(self) -> u8 {
        match self {
            Self::Four => 4,
            Self::Five => 5,
        }
    }

    /// Significant bits of a virtual address.
    pub const fn address_bits(self) -> u32 {
        match self {
            Self::Four => 48,
            Self::Five => 57,
        }
    }

    /// `address` with the bits above the significant ones made equal to the highest of these.
    pub const fn canonical(self, address: u64) -> Gva {
        let unused = 64 - self.address_bits();
        Gva(((address << unused).cast_signed() >> unused).cast_unsigned())
    }
}

/// Where a virtual address is in guest physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The physical address.
    pub gpa: Gpa,
    /// `log2` of the size of the page it lies in: 12, 21 or 30.
    pub page_shift: u32,
    /// What the tables allow.
    pub access: Access,
}

impl Translation {
    /// Bytes from the address to the end of its page.
    pub const fn remaining(&self) -> u64 {
        let size = 1 << self.page_shift;
        size - (self.gpa.0 & (size - 1))
    }
}

/// Guest virtual memory through one x86-64 page table.
///
/// Reads take `&self`, from any number of threads. Tables once walked are remembered: make a new `AddressSpace` when the
/// memory behind it may have changed, or when every read of a table has to be observed.
pub struct AddressSpace<'m> {
    memory: &'m dyn PhysicalMemory,
    root: Gpa,
    levels: Levels,
    inaccessible: bool,
    cache: WalkCache,
}

impl<'m> AddressSpace<'m> {
    /// The address space whose top table is at `root`. Flag bits in `root` (PCID, as in CR3) are dropped.
    pub fn new(memory: &'m dyn PhysicalMemory, root: Gpa, levels: Levels) -> Self {
        let root = Entry(root.0).address();
        Self { memory, root, levels, inaccessible: false, cache: WalkCache::new() }
    }

    /// The same, reading also the pages that are in memory while Linux keeps them out of the processor's reach
    /// (`PROT_NONE`, NUMA hinting). Without this they are [`Fault::NotPresent`], as they are to the processor.
    #[must_use]
    pub fn with_inaccessible(mut self) -> Self {
        self.inaccessible = true;
        self
    }

    /// Physical address of the top table.
    pub fn root(&self) -> Gpa {
        self.root
    }

    /// The paging depth.
    pub fn levels(&self) -> Levels {
        self.levels
    }

    /// The physical memory behind.
    pub fn memory(&self) -> &'m dyn PhysicalMemory {
        self.memory
    }

    /// Where `at` is in physical memory, and what the tables allow there.
    ///
    /// # Errors
    /// [`Fault::NonCanonical`], [`Fault::NotPresent`] (never mapped, or swapped out: the entry tells),
    /// [`Fault::TableMissing`], or [`Fault::Malformed`] for an entry with reserved bits set.
    pub fn translate(&self, at: Gva) -> Result<Translation, Fault> {
        if self.levels.canonical(at.0) != at {
            return Err(Fault::NonCanonical { at });
        }
        let range = at.0 >> RANGE_SHIFT;
        let upper = match self.cache.get(range) {
            Some(upper) => upper,
            None => {
                let upper = self.walk_upper(at)?;
                self.cache.put(range, upper);
                upper
            }
        };
        match upper {
            Upper::Page { start, shift, access } => Ok(translation(start, at, shift, access)),
            Upper::Table { table, access } => {
                let entry = self.entry(table, at, 1)?;
                Ok(translation(entry.address(), at, PAGE_SHIFT, access.and(entry.access())))
            }
        }
    }

    /// Follows the tables down to level 2.
    fn walk_upper(&self, at: Gva) -> Result<Upper, Fault> {
        let mut table = self.root;
        let mut access = Access::ALL;
        for level in (2..=self.levels.count()).rev() {
            let entry = self.entry(table, at, level)?;
            access = access.and(entry.access());
            if entry.is_large() {
                let shift = level_shift(level);
                if level > 3 {
                    return Err(Fault::Malformed { what: "page table entry", at: table.0 });
                }
                return Ok(Upper::Page { start: entry.page(shift), shift, access });
            }
            table = entry.address();
        }
        Ok(Upper::Table { table, access })
    }

    /// The entry for `at` in a table of `level`, if it leads on.
    fn entry(&self, table: Gpa, at: Gva, level: u8) -> Result<Entry, Fault> {
        let slot = Gpa(table.0 | (index(at, level) * 8));
        let mut bytes = [0; 8];
        if self.memory.read(slot, &mut bytes).is_err() {
            return Err(Fault::TableMissing { at, level, table: slot });
        }
        let entry = Entry(u64::from_le_bytes(bytes));
        self.usable(entry, level).ok_or(Fault::NotPresent { at, level, entry: entry.0, root: self.root })
    }

    /// The entry to follow, or `None` when it leads nowhere.
    pub(super) fn usable(&self, entry: Entry, level: u8) -> Option<Entry> {
        if entry.is_present() {
            return Some(entry);
        }
        // Only entries that map pages are made inaccessible, never pointers to tables.
        let resident = entry.resident().filter(|_| self.inaccessible)?;
        (level == 1 || resident.is_large()).then_some(resident)
    }
}

impl VirtualMemory for AddressSpace<'_> {
    fn read(&self, at: Gva, buf: &mut [u8]) -> Result<(), Fault> {
        let mut at = at;
        let mut rest = buf;
        loop {
            let found = self.translate(at)?;
            let here = rest.len().min(usize::try_from(found.remaining()).unwrap_or(PAGE_SIZE));
            let (now, later) = rest.split_at_mut(here);
            self.memory.read(found.gpa, now)?;
            if later.is_empty() {
                return Ok(());
            }
            at = at.checked_add(here as u64).ok_or(Fault::Overflow { at: at.0 })?;
            rest = later;
        }
    }
}

/// `log2` of what one entry of a table of `level` covers.
pub(super) const fn level_shift(level: u8) -> u32 {
    PAGE_SHIFT + INDEX_BITS * (level as u32 - 1)
}

/// The entry of a `level` table that `at` selects.
const fn index(at: Gva, level: u8) -> u64 {
    (at.0 >> level_shift(level)) & ((1 << INDEX_BITS) - 1)
}

fn translation(page: Gpa, at: Gva, page_shift: u32, access: Access) -> Translation {
    Translation { gpa: Gpa(page.0 | (at.0 & ((1 << page_shift) - 1))), page_shift, access }
}
