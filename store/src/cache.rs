//! Decompressed packs, kept while they are in use.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;

use crate::StoreError;
use crate::columns::packs::Pack;

/// Default limit, in bytes of decompressed pages.
pub(crate) const DEFAULT_LIMIT_BYTES: usize = 128 << 20;

/// Locks. Threads that read different packs rarely meet on one.
const SHARDS: usize = 16;

/// A cache that drops what was used longest ago, split into shards that lock separately.
#[derive(Debug)]
pub(crate) struct PackCache {
    shards: [Mutex<Shard>; SHARDS],
    limit_bytes: AtomicUsize,
}

#[derive(Debug, Default)]
struct Shard {
    packs: FxHashMap<u64, Entry>,
    bytes: usize,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    pack: Arc<Pack>,
    used: u64,
}

impl PackCache {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self { shards: Default::default(), limit_bytes: AtomicUsize::new(limit_bytes) }
    }

    /// Changes the limit. It takes effect as packs come in.
    pub(crate) fn set_limit(&self, bytes: usize) {
        self.limit_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The pack with this number, from the cache or from `load`, which runs without a lock.
    pub(crate) fn get(
        &self,
        number: u64,
        load: impl FnOnce() -> Result<Pack, StoreError>,
    ) -> Result<Arc<Pack>, StoreError> {
        let Some(shard) = self.shards.get(number as usize % SHARDS) else { return load().map(Arc::new) };
        if let Some(pack) = lock(shard).find(number) {
            return Ok(pack);
        }
        let pack = Arc::new(load()?);
        let limit = self.limit_bytes.load(Ordering::Relaxed) / SHARDS;
        lock(shard).insert(number, Arc::clone(&pack), limit);
        Ok(pack)
    }
}

impl Shard {
    fn find(&mut self, number: u64) -> Option<Arc<Pack>> {
        self.clock += 1;
        let entry = self.packs.get_mut(&number)?;
        entry.used = self.clock;
        Some(Arc::clone(&entry.pack))
    }

    fn insert(&mut self, number: u64, pack: Arc<Pack>, limit: usize) {
        self.bytes += pack.size();
        let entry = Entry { pack, used: self.clock };
        if let Some(other) = self.packs.insert(number, entry) {
            self.bytes -= other.pack.size();
        }
        // A shard holds a few dozen packs: looking at each is nothing next to decompressing one.
        while self.bytes > limit {
            let Some(oldest) =
                self.packs.iter().min_by_key(|(_, entry)| entry.used).map(|(number, _)| *number)
            else {
                break;
            };
            if let Some(entry) = self.packs.remove(&oldest) {
                self.bytes -= entry.pack.size();
            }
        }
    }
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(pages: usize) -> Pack {
        Pack::decode(&Pack::encode(&vec![[1; 4096]; pages]).unwrap()).unwrap()
    }

    fn loads(cache: &PackCache, number: u64, pages: usize) -> bool {
        let mut loaded = false;
        let found = cache.get(number, || {
            loaded = true;
            Ok(pack(pages))
        });
        assert_eq!(found.unwrap().pages().len(), pages);
        loaded
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let cache = PackCache::new(SHARDS * 3 * 64 * 4096);
        // All in one shard.
        let numbers = [1, 17, 33, 49];
        assert!(numbers[..3].iter().all(|number| loads(&cache, *number, 64)));
        assert!(!loads(&cache, 1, 64));
        assert!(loads(&cache, 49, 64));
        assert!(!loads(&cache, 1, 64));
        assert!(loads(&cache, 17, 64), "17 was the oldest");
    }

    #[test]
    fn small_packs_count_for_what_they_are() {
        let cache = PackCache::new(SHARDS * 64 * 4096);
        assert!((0..60).all(|n| loads(&cache, n * 16, 1)));
        assert!((0..60).all(|n| !loads(&cache, n * 16, 1)));
    }

    #[test]
    fn without_room_every_read_loads() {
        let cache = PackCache::new(0);
        assert!(loads(&cache, 1, 1) && loads(&cache, 1, 1));
        cache.set_limit(SHARDS * 4096);
        assert!(loads(&cache, 1, 1) && !loads(&cache, 1, 1));
    }

    #[test]
    fn a_failed_load_is_not_kept() {
        let cache = PackCache::new(DEFAULT_LIMIT_BYTES);
        assert!(cache.get(1, || Err(StoreError::ReadOnly)).is_err());
        assert!(loads(&cache, 1, 1));
    }
}
