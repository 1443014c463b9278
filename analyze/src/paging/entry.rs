//! Page table entries as the processor and as Linux read them.
//!
//! Bits: Intel SDM volume 3A, "4-Level Paging and 5-Level Paging"; AMD APM volume 2, "Long-Mode Page Translation".
//! Linux' use of non-present entries: `arch/x86/include/asm/pgtable_types.h` and `pgtable-invert.h`.

use varve_formats::Gpa;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
/// At levels 2 and 3: the entry maps a page instead of pointing to a table.
const LARGE: u64 = 1 << 7;
/// In an entry that is not present, Linux says with this bit that the page is in memory all the same and only out of
/// the processor's reach: `mprotect(PROT_NONE)` or a NUMA hinting fault. The address bits are then inverted, so that the
/// processor cannot speculate on them (L1TF).
const PROT_NONE: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
/// Bits 51..12. Above are ignored bits, protection keys and [`NO_EXECUTE`]; below are flags.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// One raw page table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry(pub(super) u64);

impl Entry {
    /// Whether the processor would use the entry.
    pub(super) const fn is_present(self) -> bool {
        self.0 & PRESENT != 0
    }

    /// The entry as it would be were its page accessible, when it is one of Linux' resident but inaccessible pages.
    pub(super) const fn resident(self) -> Option<Self> {
        if self.is_present() || self.0 & PROT_NONE == 0 {
            return None;
        }
        Some(Self((self.0 ^ ADDRESS) | PRESENT))
    }

    /// Whether the entry maps a page of its level's size.
    pub(super) const fn is_large(self) -> bool {
        self.0 & LARGE != 0
    }

    /// The table the entry points to, or the 4 KiB page it maps.
    pub(super) const fn address(self) -> Gpa {
        Gpa(self.0 & ADDRESS)
    }

    /// The page of `2^shift` bytes the entry maps. Address bits below the page size hold flags (PAT) or are reserved.
    pub(super) const fn page(self, shift: u32) -> Gpa {
        Gpa(self.0 & ADDRESS & !((1 << shift) - 1))
    }

    /// What the entry alone allows.
    pub(super) const fn access(self) -> Access {
        Access {
            writable: self.0 & WRITABLE != 0,
            user: self.0 & USER != 0,
            executable: self.0 & NO_EXECUTE == 0,
        }
    }
}

/// What the entries on the way to a page allow. The processor narrows this further (SMEP, SMAP, CR0.WP, protection keys).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Access {
    /// Every entry on the way has its write bit set.
    pub writable: bool,
    /// Every entry on the way has its user bit set.
    pub user: bool,
    /// No entry on the way has its no-execute bit set.
    pub executable: bool,
}

impl Access {
    /// Everything allowed: where a walk begins.
    pub(super) const ALL: Self = Self { writable: true, user: true, executable: true };

    /// What both allow.
    pub(super) const fn and(self, other: Self) -> Self {
        Self {
            writable: self.writable && other.writable,
            user: self.user && other.user,
            executable: self.executable && other.executable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn high_and_low_bits_are_not_address() {
        let entry = Entry(0xfff0_1234_5678_9fff);
        assert_eq!(entry.address(), Gpa(0x0000_1234_5678_9000));
        assert_eq!(entry.page(21), Gpa(0x0000_1234_5660_0000));
        assert_eq!(entry.page(30), Gpa(0x0000_1234_4000_0000));
    }

    #[test]
    fn only_prot_none_entries_are_resident() {
        let inverted = (0x1234_5000 ^ ADDRESS) | PROT_NONE | USER;
        assert_eq!(Entry(inverted).resident().map(Entry::address), Some(Gpa(0x1234_5000)));
        assert_eq!(Entry(inverted & !PROT_NONE).resident(), None, "a swap entry");
        assert_eq!(Entry(0).resident(), None);
        assert_eq!(
            Entry(0x1000 | PRESENT | PROT_NONE).resident(),
            None,
            "bit 8 of a present entry means global"
        );
    }

    #[test]
    fn access_narrows_on_the_way_down() {
        let read_only = Entry(PRESENT | USER).access();
        let no_execute = Entry(PRESENT | WRITABLE | NO_EXECUTE).access();
        assert_eq!(Access::ALL.and(read_only), Access { writable: false, user: true, executable: true });
        assert_eq!(read_only.and(no_execute), Access { writable: false, user: false, executable: false });
    }
}
