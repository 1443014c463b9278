//! Epochs of a running guest, looked at one by one as they are taken.
//!
//! What a [`Sweep`](super::Sweep) says of an epoch afterwards, this says at once. It has no archive at hand, only somebody who gives it the
//! memory of earlier epochs, page by page.
//!
//! Told what has changed since the epoch before, it runs a scan again only if that is something the scan has read
//! ([`footprint`](super::footprint)); the reports of all others still hold, because a scan is a pure function of what it reads.

use std::sync::Arc;

use rayon::prelude::*;
use varve_formats::{PhysicalMemory, Vcpu};

use super::boots::Boots;
use super::footprint::{Change, Footprint, Recorder};
use super::history::EpochError;
use super::sweep::{EpochResult, ScanResult};
use crate::Report;
use crate::guest::{Continuity, Digests, Guest, Pin, Profiles};
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
    kept: Option<Kept>,
}

/// Reports that hold until something they were made from changes.
struct Kept {
    /// What all scans are given beside memory.
    given: Given,
    /// By scan, in the order of the scans.
    reports: Vec<(Footprint, Report)>,
}

/// What scans are given beside memory.
#[derive(PartialEq)]
struct Given {
    pin: Pin,
    continuity: Continuity,
    profile: Digests,
    registers: Vec<Vcpu>,
    baseline: Option<u64>,
}

impl Live<'_> {
    /// Name of the blob that boots are pinned under in the archive. A [`History`](super::History) has its own: what one learns who
    /// may have been taken over by a guest is not believed afterwards.
    pub const PIN_NAME: &'static str = "live_boots";

    /// Whether `said`, the pinned boots of one who has just looked at `epoch`, only adds to `known`, what was pinned before: boots
    /// that have begun since.
    pub fn continues(known: &[u8], said: &[u8], epoch: u64) -> bool {
        let known = Boots::decode(known).unwrap_or_default();
        Boots::decode(said).is_ok_and(|said| said.continues(known, epoch))
    }
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
        let profiles = Profiles::new();
        let mut live = Self { past, scans, policy, profiles, boots, baseline: None, kept: None };
        for epoch in live.boots.looked_at..epochs {
            let PastEpoch { memory, vcpus } = live.reach(epoch)?;
            // Where no kernel is found no boot begins.
            let _ = live.boots.learn(epoch, &*memory, &vcpus, &live.profiles);
            learned(epoch);
        }
        Ok(live)
    }

    /// The boots there are, for the archive to keep.
    pub fn pinned(&self) -> Vec<u8> {
        self.boots.encode()
    }

    /// Looks at the next epoch. It must be in the archive before the one after it is looked at.
    ///
    /// `changes`: all that is different from the memory that was looked at last; `None` when that is not known.
    pub fn judge(
        &mut self,
        epoch: u64,
        memory: &dyn PhysicalMemory,
        vcpus: &[Vcpu],
        changes: Option<&[Change]>,
    ) -> EpochResult {
        let kept = self.kept.take().zip(changes);
        EpochResult { epoch, scans: self.scan(epoch, memory, vcpus, kept) }
    }

    fn scan(
        &mut self,
        epoch: u64,
        memory: &dyn PhysicalMemory,
        vcpus: &[Vcpu],
        kept: Option<(Kept, &[Change])>,
    ) -> Result<Vec<ScanResult>, EpochError> {
        let guest = self.boots.learn(epoch, memory, vcpus, &self.profiles)?;
        let earlier = self.boots.baseline(epoch, &guest).map(|first| self.baseline(first)).transpose()?;
        let given = Given {
            pin: guest.pin().clone(),
            continuity: guest.continuity(),
            profile: guest.profile().digests(),
            registers: vcpus.iter().map(lasting).collect(),
            baseline: earlier.as_ref().map(|(first, _)| *first),
        };
        let kept = kept.filter(|(kept, _)| kept.given == given);
        let mut reports: Vec<Option<(Footprint, Report)>> = match kept {
            Some((kept, changes)) => {
                // What could not be read may be there now, also where no footprint tells: in the past.
                let holds = |kept: (Footprint, Report)| {
                    (kept.1.complete && !kept.0.is_touched(changes)).then_some(kept)
                };
                kept.reports.into_iter().map(holds).collect()
            }
            None => self.scans.iter().map(|_| None).collect(),
        };
        let held: Vec<bool> = reports.iter().map(Option::is_some).collect();
        if held.contains(&false) {
            self.run_missing(&mut reports, memory, &guest, &given, earlier.as_ref())?;
        }
        let reports: Vec<(Footprint, Report)> = reports.into_iter().flatten().collect();
        let results = self.scans.iter().zip(&reports).zip(held);
        let results = results.map(|((scan, (_, report)), kept)| ScanResult {
            scan: scan.name,
            report: report.clone(),
            kept,
        });
        let results = results.collect();
        self.kept = Some(Kept { given, reports });
        Ok(results)
    }

    /// Runs the scans of which there is no report.
    fn run_missing(
        &self,
        reports: &mut [Option<(Footprint, Report)>],
        memory: &dyn PhysicalMemory,
        guest: &Guest<'_>,
        given: &Given,
        earlier: Option<&(u64, PastEpoch)>,
    ) -> Result<(), EpochError> {
        let baseline = earlier
            .map(|(first, epoch)| self.boots.guest(*first, &*epoch.memory, &epoch.vcpus, &self.profiles));
        let baseline = baseline.transpose()?;
        let missing = reports.par_iter_mut().zip(self.scans).filter(|(report, _)| report.is_none());
        missing.for_each(|(report, scan)| {
            let recorder = Recorder::new(memory);
            let seen = guest.over(&recorder).with_vcpus(given.registers.clone());
            let input = ScanInput { guest: &seen, baseline: baseline.as_ref(), policy: self.policy };
            let found = (scan.run)(&input);
            drop(seen);
            *report = Some((recorder.footprint(), found));
        });
        Ok(())
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

/// The registers that stay as they are while a guest runs: scans see no others here, so that none depends on them.
fn lasting(vcpu: &Vcpu) -> Vcpu {
    let Vcpu { index, cr0, cr4, efer, idtr, gdtr, lstar, .. } = *vcpu;
    Vcpu { index, cr0, cr4, efer, idtr, gdtr, lstar, ..Vcpu::default() }
}
