//! Keeping the number of table files small.
//!
//! Every epoch leaves a table file in each column it wrote to. Where keys only grow (packs, digests, page maps, records)
//! RocksDB moves such files down without rewriting them, which is what packs want, but it never merges them either:
//! thousands of short epochs would be thousands of files to open. So files that stayed small are merged here, each byte
//! about once. The index of pages has random keys and is merged by RocksDB in the background; a process that lives for one
//! epoch only does not give it the time, so once in a while that is waited for.

use rocksdb::{BottommostLevelCompaction, CompactOptions, LiveFile, WaitForCompactOptions};

use super::Database;
use crate::columns::Column;
use crate::columns::digests::Digests;
use crate::columns::epochs::Epochs;
use crate::columns::manifests::Manifests;
use crate::columns::packs::Packs;
use crate::columns::pages::Pages;
use crate::columns::states::States;

/// Epochs between two looks at the files.
const INTERVAL: u64 = 16;

/// Files below this size are merged, in bytes.
const SMALL: usize = 1 << 20;

/// Neighbouring small files it takes for that.
const RUN: usize = 32;

/// Files of the index that RocksDB has not come to, from which on it is waited for.
const BEHIND: usize = 16;

impl Database {
    /// Merges small files, every so many epochs. What fails here fails the next write, if it matters.
    pub(crate) fn tidy(&self, epoch: u64) {
        if !epoch.is_multiple_of(INTERVAL) {
            return;
        }
        let Ok(files) = self.db.live_files() else { return };
        for column in [Packs::NAME, Digests::NAME, Manifests::NAME, Epochs::NAME, States::NAME] {
            let of_column = files.iter().filter(|file| file.column_family_name == column);
            for (first, last) in runs(of_column.filter_map(Extent::of).collect()) {
                self.merge(column, &first, &last);
            }
        }
        let behind =
            files.iter().filter(|file| file.column_family_name == Pages::NAME && file.level == 0).count();
        if behind >= BEHIND {
            let _ = self.db.wait_for_compact(&WaitForCompactOptions::default());
        }
    }

    /// Rewrites the files between two keys into as few as possible.
    fn merge(&self, column: &str, first: &[u8], last: &[u8]) {
        let Some(family) = self.db.cf_handle(column) else { return };
        let mut options = CompactOptions::default();
        options.set_exclusive_manual_compaction(false);
        options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
        self.db.compact_range_cf_opt(family, Some(first), Some(last), &options);
    }
}

/// The keys and the size of a file.
#[derive(Clone, Debug)]
struct Extent {
    first: Vec<u8>,
    last: Vec<u8>,
    size: usize,
}

impl Extent {
    fn of(file: &LiveFile) -> Option<Self> {
        Some(Self { first: file.start_key.clone()?, last: file.end_key.clone()?, size: file.size })
    }
}

/// First and last key of each run of small files.
fn runs(mut files: Vec<Extent>) -> Vec<(Vec<u8>, Vec<u8>)> {
    files.sort_by(|a, b| a.first.cmp(&b.first));
    let run = |files: &[Extent]| match files {
        [first, .., last] if files.len() >= RUN => Some((first.first.clone(), last.last.clone())),
        _ => None,
    };
    files.split(|file| file.size >= SMALL).filter_map(run).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(sizes: &[usize]) -> Vec<Extent> {
        let extent = |(n, size): (usize, &usize)| Extent {
            first: vec![n as u8, 0],
            last: vec![n as u8, 9],
            size: *size,
        };
        sizes.iter().enumerate().map(extent).collect()
    }

    #[test]
    fn only_long_runs_of_small_files_are_merged() {
        let sizes =
            [vec![SMALL; 3], vec![10; RUN], vec![SMALL; 1], vec![10; RUN - 1], vec![SMALL; 40]].concat();
        let mut shuffled = files(&sizes);
        shuffled.reverse();
        assert_eq!(runs(shuffled), [(vec![3, 0], vec![RUN as u8 + 2, 9])]);
        assert_eq!(runs(files(&vec![SMALL - 1; RUN + 5])).len(), 1);
        assert!(runs(Vec::new()).is_empty());
    }
}
