//! A VM's epochs as guests.

use std::sync::{Mutex, PoisonError};

use varve_store::{Access, Archive, EpochMemory, StoreError};

use super::boots::Boots;
use crate::guest::{BringUpError, Guest, Profiles};

/// Name of the blob that boots are pinned under.
const PIN_NAME: &str = "boots";

/// Why nothing can be said of an epoch.
#[derive(Debug, thiserror::Error)]
pub enum EpochError {
    /// The archive cannot give it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no kernel to be found in it.
    #[error("epoch {epoch}: {reason}")]
    BringUp {
        /// The epoch.
        epoch: u64,
        /// What was tried.
        reason: Box<BringUpError>,
    },
    /// An epoch it has to be compared with cannot be had.
    #[error("epoch {epoch}: {reason}")]
    Unreachable {
        /// The epoch to compare with.
        epoch: u64,
        /// Why not.
        reason: String,
    },
}

/// The history of one VM: its epochs, opened as guests.
///
/// What an epoch shows depends on it and on epochs before it only, never on which epochs were looked at earlier.
pub struct History {
    archive: Archive,
    vm: String,
    profiles: Profiles,
    boots: Mutex<Boots>,
}

impl History {
    /// The history of `vm` in `archive`.
    ///
    /// # Errors
    /// [`StoreError`]. Pinned boots that make no sense are no error: they are found again.
    pub fn open(archive: &Archive, vm: &str) -> Result<Self, StoreError> {
        let pinned = archive.pin(vm, PIN_NAME)?.and_then(|blob| Boots::decode(&blob).ok());
        let count = archive.epoch_count(vm)?;
        let boots = pinned.unwrap_or_default().until(count);
        Ok(Self {
            archive: archive.clone(),
            vm: vm.to_owned(),
            profiles: Profiles::new(),
            boots: Mutex::new(boots),
        })
    }

    /// The archive.
    pub fn archive(&self) -> &Archive {
        &self.archive
    }

    /// The VM.
    pub fn vm(&self) -> &str {
        &self.vm
    }

    /// The memory of an epoch.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn memory(&self, epoch: u64) -> Result<EpochMemory, StoreError> {
        self.archive.epoch(&self.vm, epoch)
    }

    /// Opens an epoch's memory as a guest, judged by the kernels of the epochs before it.
    ///
    /// # Errors
    /// When no kernel is found in it.
    pub fn guest<'m>(&self, memory: &'m EpochMemory) -> Result<Guest<'m>, EpochError> {
        self.known().guest(memory.record().number, memory, memory.vcpus(), &self.profiles)
    }

    /// The first archived epoch of the boot that `guest`, of `epoch`, belongs to; `None` when it is that epoch.
    pub(super) fn baseline(&self, epoch: u64, guest: &Guest<'_>) -> Option<u64> {
        self.known().baseline(epoch, guest)
    }

    /// Learns which boots there are in epochs up to and including `last`, and pins what is new.
    ///
    /// # Errors
    /// [`StoreError`]. An epoch in which no kernel is found begins no boot.
    pub fn learn(&self, last: u64) -> Result<(), StoreError> {
        let mut boots = self.known();
        if boots.looked_at > last {
            return Ok(());
        }
        for epoch in boots.looked_at..=last {
            let memory = self.memory(epoch)?;
            // Where no kernel is found no boot begins.
            let _ = boots.learn(epoch, &memory, memory.vcpus(), &self.profiles);
        }
        *self.boots.lock().unwrap_or_else(PoisonError::into_inner) = boots.clone();
        self.pin(&boots);
        Ok(())
    }

    fn known(&self) -> Boots {
        self.boots.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Pins boots if the archive can be written to now. While a capture runs, or from a medium that cannot be written,
    /// it cannot; they are then found again next time.
    fn pin(&self, boots: &Boots) {
        let blob = boots.encode();
        let pin = |archive: &Archive| archive.set_pin(&self.vm, PIN_NAME, &blob);
        if let Err(StoreError::ReadOnly) = pin(&self.archive) {
            let _ = Archive::open(self.archive.path(), Access::Write).and_then(|archive| pin(&archive));
        }
    }
}
