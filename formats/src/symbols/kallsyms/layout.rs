//! Where the tables are, and whether they hang together.
//!
//! Every kernel has, in this order: `num_syms`, `names`, `markers`, (`seqs_of_names`), `token_table`, `token_index`.
//! Addresses come before these until 6.3 and after them, followed by `seqs_of_names`, since 6.4.

use crate::symbols::bytes::{align_up, copy};
use crate::{Gva, VirtualMemory};

use super::names::{self, Extent};
use super::tokens::INDEX_BYTES;
use super::{Hints, KallsymsError};

/// Symbols at most. Debian's 7.3 for clouds has 197,553; an allyesconfig kernel stays below a million.
pub(super) const MAX_SYMBOLS: u32 = 1 << 21;

/// Bytes from the first name to the token table at most. Debian's 7.3 needs 3.1 MiB.
pub(super) const MAX_NAMES_BYTES: u64 = 32 << 20;

/// Addresses of the tables that every layout has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) count: u32,
    pub(super) num_syms: Gva,
    pub(super) names: Gva,
    pub(super) token_table: Gva,
    pub(super) token_index: Gva,
}

impl Layout {
    /// The layout that the hints describe. `None` when they do not describe one.
    pub(super) fn hinted(memory: &dyn VirtualMemory, hints: &Hints) -> Option<Result<Self, KallsymsError>> {
        let (num_syms, names) = (hints.num_syms?, hints.names?);
        let (token_table, token_index) = (hints.token_table?, hints.token_index?);
        let layout = memory
            .read_u32(num_syms)
            .map(|count| Self { count, num_syms, names, token_table, token_index })
            .map_err(|source| KallsymsError::Fault { table: "symbol count", source });
        Some(layout)
    }

    /// First address behind the token index.
    pub(super) const fn token_index_end(&self) -> Option<Gva> {
        self.token_index.checked_add(INDEX_BYTES as u64)
    }

    /// Copies the names and what lies between them and the token table, and checks names against markers.
    pub(super) fn read_names(&self, memory: &dyn VirtualMemory) -> Result<(Vec<u8>, Extent), KallsymsError> {
        if !(1..=MAX_SYMBOLS).contains(&self.count) {
            return Err(KallsymsError::Malformed { table: "symbol count", at: self.num_syms });
        }
        let malformed = KallsymsError::Malformed { table: "names", at: self.names };
        let len = self.token_table.offset_from(self.names).filter(|len| *len <= MAX_NAMES_BYTES);
        let Some(len) = len else { return Err(malformed) };
        let bytes = copy(memory, self.names, len as usize)
            .map_err(|source| KallsymsError::Fault { table: "names", source })?;
        match names::extent(&bytes, self.count as usize, |_| true) {
            Some(extent) => Ok((bytes, extent)),
            None => Err(malformed),
        }
    }

    /// `kallsyms_seqs_of_names`: the symbols ordered by name, three bytes each, big-endian (6.2 on, and 6.1.y). It lies
    /// before the token table or at the end of the addresses. `None` when neither place holds symbol numbers.
    pub(super) fn seqs(&self, memory: &dyn VirtualMemory, extent: &Extent, tables_end: Gva) -> Option<Gva> {
        let before = self.names.checked_add(align_up(extent.markers_end as u64, 4)?)?;
        [Some(before), align_up(before.0, 8).map(Gva), Some(tables_end), align_up(tables_end.0, 8).map(Gva)]
            .into_iter()
            .flatten()
            .find(|at| self.holds_seqs(memory, *at))
    }

    /// Bytes of `kallsyms_seqs_of_names`.
    pub(super) const fn seqs_len(&self) -> u64 {
        self.count as u64 * 3
    }

    fn holds_seqs(&self, memory: &dyn VirtualMemory, at: Gva) -> bool {
        let Ok(bytes) = copy(memory, at, self.seqs_len() as usize) else { return false };
        let mut seen = vec![false; self.count as usize];
        bytes.as_chunks::<3>().0.iter().all(|entry| {
            let [high, middle, low] = *entry;
            let slot = seen.get_mut(u32::from_be_bytes([0, high, middle, low]) as usize);
            slot.is_some_and(|slot| !std::mem::replace(slot, true))
        })
    }
}
