//! How large an archive is, and for what.

use std::fs;

use crate::columns::digests::Digests;
use crate::columns::epochs::Epochs;
use crate::{Archive, StoreError};

/// Sizes and counts of an archive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// VMs with an epoch.
    pub vms: u64,
    /// Epochs of all VMs.
    pub epochs: u64,
    /// Bytes of guest memory in all epochs: what raw images of them would take.
    pub bytes_captured: u64,
    /// Pages stored, each once.
    pub pages: u64,
    /// Packs they are in.
    pub packs: u64,
    /// Bytes of the packs that committed epochs added, compressed.
    pub bytes_packed: u64,
    /// Bytes the archive takes on disk.
    pub bytes_on_disk: u64,
}

impl Archive {
    /// Sizes and counts of this archive, from its records and its directory.
    ///
    /// # Errors
    /// A record or a digest list that is damaged, or a directory that cannot be read.
    pub fn stats(&self) -> Result<Stats, StoreError> {
        let shared = self.shared();
        let mut stats = Stats { vms: self.vms().len() as u64, ..Stats::default() };
        for name in self.vms() {
            let vm = shared.vm(&name)?;
            for number in 0..vm.epochs {
                let record = shared.database.require::<Epochs>(&(vm.number, number))?;
                stats.epochs += 1;
                stats.bytes_captured += record.regions.iter().map(|region| region.len).sum::<u64>();
                stats.bytes_packed += record.bytes_stored;
            }
        }
        for entry in shared.database.scan::<Digests>(&0)? {
            stats.packs += 1;
            stats.pages += entry?.1.len() as u64;
        }
        stats.bytes_on_disk = bytes_below(self.path(), 0)?;
        Ok(stats)
    }
}

/// Bytes of the files below a directory. Files a writer removes meanwhile do not count.
fn bytes_below(path: &std::path::Path, depth: usize) -> Result<u64, StoreError> {
    const MAX_DEPTH: usize = 8;
    let mut bytes = 0;
    for entry in fs::read_dir(path).map_err(|error| StoreError::io(path, "listing the directory", error))? {
        let entry = entry.map_err(|error| StoreError::io(path, "listing the directory", error))?;
        match entry.metadata() {
            Ok(found) if found.is_dir() && depth < MAX_DEPTH => {
                bytes += bytes_below(&entry.path(), depth + 1)?
            }
            Ok(found) if found.is_file() => bytes += found.len(),
            _ => {}
        }
    }
    Ok(bytes)
}
