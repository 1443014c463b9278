//! Epoch records as callers see them.

use std::fmt;

use varve_formats::{Region, Vcpu};

use crate::columns::{blob, epochs};
use crate::{Digest, StoreError};

/// The identity of an epoch: the BLAKE3 hash of its record, which holds the identity of the epoch before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochId(pub [u8; 32]);

impl fmt::Display for EpochId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Digest(self.0).fmt(f)
    }
}

impl fmt::Debug for EpochId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EpochId({self})")
    }
}

/// What the archive knows of an epoch besides its pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochRecord {
    /// Hash of the record.
    pub id: EpochId,
    /// Hash of the record before; `None` in the VM's first epoch.
    pub previous: Option<EpochId>,
    /// Name of the VM.
    pub vm: String,
    /// Number of the epoch within the VM, from 0.
    pub number: u64,
    /// When the memory was as it is here: nanoseconds since 1970-01-01 UTC.
    pub taken_at_ns: i64,
    /// When the epoch was committed: nanoseconds since 1970-01-01 UTC.
    pub committed_at_ns: i64,
    /// Where the memory came from, in words.
    pub source: String,
    /// Version of the varve that wrote the epoch.
    pub varve_version: String,
    /// The guest's memory, ascending and disjoint.
    pub regions: Vec<Region>,
    /// Frames with content, zero pages among them.
    pub pages: u64,
    /// Frames that hold zeros.
    pub pages_zero: u64,
    /// Frames whose content differs from the epoch before.
    pub pages_changed: u64,
    /// Pages that were new to the archive.
    pub pages_stored: u64,
    /// Bytes of the packs that hold them, compressed.
    pub bytes_stored: u64,
    /// Merkle root over regions and page digests ([`crate::root`]).
    pub root: Digest,
    /// Registers at the checkpoint.
    pub vcpus: Vec<Vcpu>,
    /// Frames that devices still wrote to when they had been copied as often as they may be: each holds bytes of the
    /// checkpoint or of a moment after it, or some of both.
    pub residue: Vec<Region>,
    /// The BLAKE3 hash of the domain's state, if that is kept ([`crate::EpochMemory::state`]).
    pub state: Option<Digest>,
    /// Whether a guest can be started from this epoch.
    pub restorable: bool,
    /// What the snapshot of the guest's disks that was taken with the epoch is called, if one was.
    pub disk_snapshot: Option<String>,
}

/// What a capture says about an epoch when it commits it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochMeta {
    /// When the memory was as captured: nanoseconds since 1970-01-01 UTC.
    pub taken_at_ns: i64,
    /// Where the memory came from, in words; at most 4,096 bytes.
    pub source: String,
    /// Registers at the checkpoint.
    pub vcpus: Vec<Vcpu>,
    /// Frames that could not be copied as they were at the checkpoint; at most 65,536 runs, multiples of a page.
    pub residue: Vec<Region>,
    /// The domain's state that is not in its memory; at most 64 MiB.
    pub state: Option<Vec<u8>>,
    /// Whether a guest can be started from this epoch.
    pub restorable: bool,
    /// What the snapshot of the guest's disks is called that was taken with the epoch; at most 4,096 bytes.
    pub disk_snapshot: Option<String>,
}

impl EpochMeta {
    /// Refuses what no record can hold, before anything is written.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let state_len = self.state.as_ref().map_or(0, Vec::len);
        let snapshot_len = self.disk_snapshot.as_ref().map_or(0, String::len);
        let sizes = [
            ("the source description", self.source.len(), epochs::MAX_SOURCE_LEN),
            ("the list of frames that were not quiet", self.residue.len(), epochs::MAX_RESIDUE),
            ("the state of the domain", state_len, blob::MAX_LEN),
            ("the name of the snapshot of its disks", snapshot_len, epochs::MAX_SNAPSHOT_LEN),
        ];
        match sizes.iter().find(|(_, size, limit)| size > limit) {
            Some((what, _, limit)) => Err(StoreError::TooLarge { what, limit: *limit as u64 }),
            None => Ok(()),
        }
    }
}
