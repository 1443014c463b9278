//! The addresses, in each of the forms that kernels have used.
//!
//! | form | kernels | an entry `e` of table `t` at index `i` means |
//! | --- | --- | --- |
//! | absolute | to 6.10 | `e` (`u64`) |
//! | absolute-percpu | 4.6 to 6.14 | `e` if `e ≥ 0`, else `base - 1 - e` (`i32`) |
//! | base-relative | 4.6 to 6.19 | `base + e` (`u32`) |
//! | place-relative | 7.0 on | `t + 4 i + e` (`i32`) |
//!
//! Sources: `kallsyms_sym_address` in `kernel/kallsyms.c`; `scripts/kallsyms.c` for the order of the tables.

use crate::symbols::bytes::{align_up, copy};
use crate::{Gva, VirtualMemory};

use super::layout::Layout;
use super::{Encoding, Hints};

/// A place where the addresses may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) table: Gva,
    pub(super) form: Form,
}

/// What the entries look like.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// 8 bytes each.
    Absolute,
    /// 4 bytes each, with the base stored at this address.
    Based(Gva),
    /// 4 bytes each, counted from the entry itself.
    PlaceRelative,
}

impl Form {
    /// Bytes of one entry.
    pub(super) const fn entry_bytes(self) -> u64 {
        match self {
            Self::Absolute => 8,
            Self::Based(_) | Self::PlaceRelative => 4,
        }
    }
}

/// Addresses as one encoding reads them, in table order.
pub(super) struct Decoded {
    pub(super) encoding: Encoding,
    pub(super) addresses: Vec<u64>,
}

/// Every place to look: what the hints say, behind the token index (since 6.4), before the symbol count (earlier).
pub(super) fn candidates(layout: &Layout, hints: &Hints) -> Vec<Candidate> {
    let count = u64::from(layout.count);
    let based = |table: Gva| {
        let base = align_up(table.0.checked_add(count * 4)?, 8)?;
        Some(Candidate { table, form: Form::Based(Gva(base)) })
    };
    let mut found = Vec::new();
    if let Some(table) = hints.offsets {
        match hints.relative_base {
            Some(base) => found.push(Candidate { table, form: Form::Based(base) }),
            None => found.extend(based(table)),
        }
        found.push(Candidate { table, form: Form::PlaceRelative });
    }
    if let Some(table) = hints.addresses {
        found.push(Candidate { table, form: Form::Absolute });
    }
    if let Some(end) = layout.token_index_end() {
        if let Some(table) = align_up(end.0, 8).map(Gva) {
            found.extend(based(table));
            found.push(Candidate { table, form: Form::Absolute });
        }
        if let Some(table) = align_up(end.0, 4).map(Gva) {
            found.push(Candidate { table, form: Form::PlaceRelative });
        }
    }
    if let Some(base) = layout.num_syms.checked_sub(8)
        && let Some(table) = align_up(count * 4, 8).and_then(|bytes| base.checked_sub(bytes))
    {
        found.push(Candidate { table, form: Form::Based(base) });
    }
    if let Some(table) = layout.num_syms.checked_sub(count * 8) {
        found.push(Candidate { table, form: Form::Absolute });
    }
    found
}

impl Candidate {
    /// Bytes of the table.
    pub(super) const fn len(&self, layout: &Layout) -> u64 {
        layout.count as u64 * self.form.entry_bytes()
    }

    /// Every reading of the bytes at this place; none when they cannot be read.
    pub(super) fn decode(&self, memory: &dyn VirtualMemory, layout: &Layout) -> Vec<Decoded> {
        let Ok(bytes) = copy(memory, self.table, self.len(layout) as usize) else { return Vec::new() };
        let (words, _) = bytes.as_chunks::<4>();
        let read = |encoding, address: &dyn Fn(u64, i32) -> u64| Decoded {
            encoding,
            addresses: (0u64..)
                .zip(words)
                .map(|(index, word)| address(index, i32::from_le_bytes(*word)))
                .collect(),
        };
        match self.form {
            Form::Absolute => {
                let addresses = bytes.as_chunks().0.iter().map(|entry| u64::from_le_bytes(*entry)).collect();
                vec![Decoded { encoding: Encoding::Absolute, addresses }]
            }
            Form::PlaceRelative => {
                vec![read(Encoding::PlaceRelative, &|index, entry| {
                    self.table.0.wrapping_add(index * 4).wrapping_add_signed(entry.into())
                })]
            }
            Form::Based(base) => {
                let Ok(base) = memory.read_u64(base) else { return Vec::new() };
                let percpu = read(Encoding::AbsolutePercpu, &|_, entry| match u64::try_from(entry) {
                    Ok(absolute) => absolute,
                    Err(_) => base.wrapping_sub(1).wrapping_sub(i64::from(entry).cast_unsigned()),
                });
                let relative =
                    read(Encoding::BaseRelative, &|_, entry| base.wrapping_add(entry.cast_unsigned().into()));
                vec![percpu, relative]
            }
        }
    }
}
