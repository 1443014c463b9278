//! Remembering where walks through the upper tables ended.

use std::sync::Mutex;

use varve_formats::Gpa;

use super::entry::Access;

/// Shards, each behind its own lock, so that workers seldom meet. A power of two.
const SHARDS: usize = 16;
/// Slots of one shard, direct-mapped. A power of two.
const SLOTS: usize = 32;

/// Where the walk of one 2 MiB range of virtual memory stands before the last level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upper {
    /// The range lies in one page of `2^shift` bytes.
    Page { start: Gpa, shift: u32, access: Access },
    /// The range has a page table of its own.
    Table { table: Gpa, access: Access },
}

/// A cache of [`Upper`] by 2 MiB range, for any number of threads. A reader that finds its shard busy goes without:
/// the cache never makes anyone wait.
pub(super) struct WalkCache {
    shards: [Mutex<Shard>; SHARDS],
}

/// What was stored last in each slot, with its range.
type Shard = [Option<(u64, Upper)>; SLOTS];

impl WalkCache {
    pub(super) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::new([None; SLOTS])) }
    }

    /// What was stored for `range` (a virtual address divided by 2 MiB), unless it was displaced.
    pub(super) fn get(&self, range: u64) -> Option<Upper> {
        let (shard, slot) = place(range);
        let slots = self.shards.get(shard)?.try_lock().ok()?;
        slots.get(slot).copied().flatten().filter(|entry| entry.0 == range).map(|entry| entry.1)
    }

    pub(super) fn put(&self, range: u64, upper: Upper) {
        let (shard, slot) = place(range);
        if let Some(Ok(mut slots)) = self.shards.get(shard).map(Mutex::try_lock)
            && let Some(entry) = slots.get_mut(slot)
        {
            *entry = Some((range, upper));
        }
    }
}

/// Neighbouring ranges go to different shards.
fn place(range: u64) -> (usize, usize) {
    let range = range as usize;
    (range % SHARDS, range / SHARDS % SLOTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_found_until_another_takes_its_slot() {
        let cache = WalkCache::new();
        let upper = |table| Upper::Table { table: Gpa(table), access: Access::ALL };
        cache.put(5, upper(0x1000));
        cache.put(6, upper(0x2000));
        assert_eq!(cache.get(5), Some(upper(0x1000)));
        let rival = 5 + (SHARDS * SLOTS) as u64;
        cache.put(rival, upper(0x3000));
        assert_eq!((cache.get(5), cache.get(rival)), (None, Some(upper(0x3000))));
        assert_eq!(cache.get(6), Some(upper(0x2000)));
    }

    #[test]
    fn a_busy_shard_is_a_miss_and_not_a_wait() {
        let cache = WalkCache::new();
        let upper = Upper::Table { table: Gpa(0x1000), access: Access::ALL };
        cache.put(5, upper);
        let held = cache.shards[5].lock().unwrap();
        assert_eq!(cache.get(5), None);
        cache.put(5, Upper::Table { table: Gpa(0x9000), access: Access::ALL });
        drop(held);
        assert_eq!(cache.get(5), Some(upper));
    }
}
