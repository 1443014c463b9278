//! What a frame is used for, as save streams say it: `XEN_DOMCTL_PFINFO_*`, the top four bits of an entry in
//! PAGE_DATA.

use crate::Gfn;
use crate::xen::runs::{Run, Runs};

/// Most runs of frames of one type that are kept. A PV domain of 1 TiB has some 2^19 page tables, if every one is apart.
pub const MAX_TYPE_RUNS: usize = 1 << 20;

/// The use of a frame. Only PV domains have page tables that Xen knows of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PageType {
    /// Ordinary memory.
    #[default]
    Normal,
    /// A page table of a PV domain.
    Table {
        /// 1 = page table … 4 = PML4.
        level: u8,
        /// Held in place as a table whether it is used or not.
        pinned: bool,
    },
    /// The hardware has lost it; there are no contents.
    Broken,
    /// To be allocated, without contents (written by Xen 4.2 to 4.5).
    AllocateOnly,
    /// No memory there, or none any more.
    Absent,
}

impl PageType {
    /// The type with this number, `None` when there is none.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Normal,
            level @ 1..=4 => Self::Table { level, pinned: false },
            pinned @ 9..=12 => Self::Table { level: pinned - 8, pinned: true },
            13 => Self::Broken,
            14 => Self::AllocateOnly,
            15 => Self::Absent,
            _ => return None,
        })
    }

    /// Its number, below 16.
    pub const fn bits(self) -> u8 {
        match self {
            Self::Normal => 0,
            Self::Table { level, pinned } => (level & 7) | (pinned as u8) << 3,
            Self::Broken => 13,
            Self::AllocateOnly => 14,
            Self::Absent => 15,
        }
    }

    /// Whether the contents of such a frame stand in the stream.
    pub const fn has_contents(self) -> bool {
        matches!(self, Self::Normal | Self::Table { .. })
    }
}

impl Run for PageType {
    fn further(self, _frames: u64) -> Self {
        self
    }
}

/// The types of a domain's frames, those left out that are normal or absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageTypes {
    runs: Runs<PageType>,
}

impl PageTypes {
    /// Sets the type of `count` frames from `first` on.
    ///
    /// # Errors
    /// [`TooManyRuns`]: the types are then as before.
    pub fn set(&mut self, first: Gfn, count: u64, kind: PageType) -> Result<(), TooManyRuns> {
        if matches!(kind, PageType::Normal | PageType::Absent) {
            // Cutting a run in two makes one more.
            if self.runs.len() < MAX_TYPE_RUNS || self.get(first) == PageType::Normal {
                self.runs.clear(first.0, count);
                return Ok(());
            }
        } else if self.runs.len() + 1 < MAX_TYPE_RUNS {
            self.runs.set(first.0, count, kind);
            return Ok(());
        }
        Err(TooManyRuns)
    }

    /// The type of a frame. Whether a normal one is there at all is for the memory to say.
    pub fn get(&self, gfn: Gfn) -> PageType {
        self.runs.get(gfn.0).unwrap_or_default()
    }

    /// Runs of frames of one type: the first, how many, their type.
    pub fn iter(&self) -> impl Iterator<Item = (Gfn, u64, PageType)> + '_ {
        self.runs.iter().map(|(first, count, kind)| (Gfn(first), count, kind))
    }

    /// Number of runs.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether all frames are normal or absent, as those of PVH and HVM domains are.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

/// More than [`MAX_TYPE_RUNS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("page types in more than {MAX_TYPE_RUNS} runs")]
pub struct TooManyRuns;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_a_type_of_its_own_or_none() {
        for bits in 0..=u8::MAX {
            match PageType::from_bits(bits) {
                Some(kind) => assert_eq!(kind.bits(), bits),
                None => assert!(matches!(bits, 5..=8 | 16..), "{bits}"),
            }
        }
    }

    #[test]
    fn a_frame_has_the_type_it_was_last_given() {
        let mut types = PageTypes::default();
        let table = PageType::Table { level: 4, pinned: true };
        types.set(Gfn(10), 5, table).unwrap();
        types.set(Gfn(12), 1, PageType::Normal).unwrap();
        assert_eq!(types.get(Gfn(11)), table);
        assert_eq!(types.get(Gfn(12)), PageType::Normal);
        assert_eq!(types.iter().collect::<Vec<_>>(), [(Gfn(10), 2, table), (Gfn(13), 2, table)]);
    }
}
