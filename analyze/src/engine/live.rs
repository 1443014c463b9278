//! Epochs of a running guest, looked at one by one as they are taken.
//!
//! What a [`Sweep`](super::Sweep) says of an epoch afterwards, this says at once. It has no archive at hand, only somebody who gives it the
//! memory of earlier epochs, page by page.

use std::sync::Arc;

use varve_formats::{PhysicalMemory, Vcpu};

use super::boots::Boots;
use super::history::EpochError;
use super::sweep::{EpochResult, ScanResult, run_all};
use crate::guest::Profiles;
use crate::policy::Policy;
use crate::scans::{Scan, ScanInput};

/// Gives the memory of earlier epochs.
pub trait Past {
    /// An epoch that is in the archive.
    ///
    /// # Errors
    /// Why it cannot be had.
    fn epoch(&self, number: u64) -> Result<PastEpoch, String>;
}

/// An earlier epoch.
#[derive(Clone)]
pub struct PastEpoch {
    /// Its memory.
    pub memory: Arc<dyn PhysicalMemory + Send + Sync>,
    /// Its registers.
    pub vcpus: Vec<Vcpu>,
}

/// Looks at the epochs of one guest in their order.
pub struct Live<'a> {
    past: &'a dyn Past,
    scans: &'a [&'static Scan],
    policy: &'a Policy,
    profiles: Profiles,
    boots: Boots,
    /// The epoch that those of the present boot are compared with.
    baseline: Option<(u64, PastEpoch)>,
}

impl Live<'_> {
    /// Name of the blob that boots are pinned under in the archive.
    pub const PIN_NAME: &'static str = super::history::PIN_NAME;
}

impl<'a> Live<'a> {
    /// Begins behind `epochs` epochs that are in the archive. `pinned`: what [`Live::pinned`] said at some time, or nothing. Epochs that it
    /// does not know of yet are looked for their boots; `learned` is called after each.
    ///
    /// # Errors
    /// [`EpochError::Unreachable`].
    pub fn begin(
        past: &'a dyn Past,
        scans: &'a [&'static Scan],
        policy: &'a Policy,
        pinned: Option<&[u8]>,
        epochs: u64,
        mut learned: impl FnMut(u64),
    ) -> Result<Self, EpochError> {
        let known = pinned.and_then(|blob| Boots::decode(blob).ok());
        let boots = known.unwrap_or_default().until(epochs);
        let mut live = Self { past, scans, policy, profiles: Profiles::new(), boots, baseline: None };
        for epoch in live.boots.looked_at..epochs {
            let PastEpoch { memory, vcpus } = live.reach(epoch)?;
            // Where no kernel is found no boot begins.
            let _ = live.boots.learn(epoch, &*memory, &vcpus, &live.profiles);
            learned(epoch);
        }
        Ok(live)
    }

    /// The boots there are, for the archive to keep ([`History`](super::History) reads the same).
    pub fn pinned(&self) -> Vec<u8> {
        self.boots.encode()
    }

    /// Looks at the next epoch. It must be in the archive before the one after it is looked at.
    pub fn judge(&mut self, epoch: u64, memory: &dyn PhysicalMemory, vcpus: &[Vcpu]) -> EpochResult {
        EpochResult { epoch, scans: self.scan(epoch, memory, vcpus) }
    }

    fn scan(
        &mut self,
        epoch: u64,
        memory: &dyn PhysicalMemory,
        vcpus: &[Vcpu],
    ) -> Result<Vec<ScanResult>, EpochError> {
        let guest = self.boots.learn(epoch, memory, vcpus, &self.profiles)?;
        let earlier = self.boots.baseline(epoch, &guest).map(|first| self.baseline(first)).transpose()?;
        let baseline = earlier
            .as_ref()
            .map(|(first, epoch)| self.boots.guest(*first, &*epoch.memory, &epoch.vcpus, &self.profiles));
        let baseline = baseline.transpose()?;
        let input = ScanInput { guest: &guest, baseline: baseline.as_ref(), policy: self.policy };
        Ok(run_all(self.scans, &input))
    }

    fn baseline(&mut self, first: u64) -> Result<(u64, PastEpoch), EpochError> {
        match &self.baseline {
            Some((known, epoch)) if *known == first => Ok((first, epoch.clone())),
            _ => {
                let epoch = self.reach(first)?;
                self.baseline = Some((first, epoch.clone()));
                Ok((first, epoch))
            }
        }
    }

    fn reach(&self, epoch: u64) -> Result<PastEpoch, EpochError> {
        self.past.epoch(epoch).map_err(|reason| EpochError::Unreachable { epoch, reason })
    }
}
