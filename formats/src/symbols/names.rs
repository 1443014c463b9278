//! Finding entries by name.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

/// No further entry.
const END: u32 = u32::MAX;

/// A hash table over names that live elsewhere. Entries that share a name are chained in ascending order. The hash is
/// keyed, so that names chosen by a guest cannot make it slow.
#[derive(Clone, Debug)]
pub(super) struct NameIndex {
    first: HashTable<u32>,
    next: Vec<u32>,
    hasher: RandomState,
}

impl NameIndex {
    /// Indexes the entries below `count` that have a name.
    pub(super) fn build<'a>(count: u32, name: impl Fn(u32) -> Option<&'a str>) -> Self {
        let hasher = RandomState::new();
        let mut first = HashTable::with_capacity(count as usize);
        let mut next = vec![END; count as usize];
        for entry in (0..count).rev() {
            let Some(this) = name(entry) else { continue };
            let same = |other: &u32| name(*other) == Some(this);
            match first
                .entry(hasher.hash_one(this), same, |other| hasher.hash_one(name(*other).unwrap_or_default()))
            {
                hashbrown::hash_table::Entry::Occupied(mut slot) => {
                    if let Some(link) = next.get_mut(entry as usize) {
                        *link = *slot.get();
                    }
                    *slot.get_mut() = entry;
                }
                hashbrown::hash_table::Entry::Vacant(slot) => {
                    slot.insert(entry);
                }
            }
        }
        Self { first, next, hasher }
    }

    /// The entries called `wanted`, ascending. `name` is what the index was built with.
    pub(super) fn find<'a>(
        &self,
        wanted: &str,
        name: impl Fn(u32) -> Option<&'a str>,
    ) -> impl Iterator<Item = u32> {
        let hash = self.hasher.hash_one(wanted);
        let first = self.first.find(hash, |entry| name(*entry) == Some(wanted)).copied();
        std::iter::successors(first, |entry| {
            self.next.get(*entry as usize).copied().filter(|next| *next != END)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_one_name_come_in_ascending_order() {
        let names = ["b", "a", "", "b", "c", "b"];
        let name = |entry: u32| names.get(entry as usize).copied().filter(|name| !name.is_empty());
        let index = NameIndex::build(6, name);
        assert_eq!(index.find("b", name).collect::<Vec<_>>(), [0, 3, 5]);
        assert_eq!(index.find("c", name).collect::<Vec<_>>(), [4]);
        assert_eq!(index.find("", name).count(), 0);
        assert_eq!(index.find("d", name).count(), 0);
    }
}
