//! The epochs: the hash chain of their records, their page maps, their Merkle roots.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{AffectedEpoch, Findings, MAX_RUNS, PackStates, Stage};
use crate::archive::Shared;
use crate::columns::VmNumber;
use crate::columns::digests::{Digests, PackDigests};
use crate::columns::epochs::Epochs;
use crate::frames::FrameMap;
use crate::memory::EpochMemory;
use crate::root::RootHasher;
use crate::{Digest, PageId, Place, StoreError};

/// Epochs one thread walks through in a row.
const STRETCH: u64 = 64;

/// A stretch of a VM's epochs.
struct Stretch {
    name: String,
    vm: VmNumber,
    numbers: Range<u64>,
}

/// Checks all epochs; how many there are, and which of them damage reaches.
pub(super) fn check(
    shared: &Arc<Shared>,
    states: &PackStates,
    progress: &(dyn Fn(Stage, u64, u64) + Sync),
    findings: &mut Findings,
) -> (u64, Vec<AffectedEpoch>) {
    let mut stretches = Vec::new();
    for (name, vm) in &shared.state().vms {
        for start in (0..vm.epochs).step_by(STRETCH as usize) {
            let numbers = start..vm.epochs.min(start + STRETCH);
            stretches.push(Stretch { name: name.clone(), vm: vm.number, numbers });
        }
    }
    let total = stretches.iter().map(|stretch| stretch.numbers.end - stretch.numbers.start).sum();
    let done = AtomicU64::new(0);
    let checked: Vec<_> = stretches
        .par_iter()
        .map(|stretch| {
            let mut walk = Walk::new(shared, states, stretch);
            for number in stretch.numbers.clone() {
                walk.check_epoch(number);
                progress(Stage::Epochs, done.fetch_add(1, Ordering::Relaxed) + 1, total);
            }
            (walk.findings, walk.affected)
        })
        .collect();
    let mut all = Vec::new();
    for (found, affected) in checked {
        findings.append(found);
        all.extend(affected);
    }
    (total, all)
}

/// A walk through a stretch.
struct Walk<'a> {
    shared: &'a Arc<Shared>,
    states: &'a PackStates,
    stretch: &'a Stretch,
    last: Option<EpochMemory>,
    /// The digest of every frame of `last`.
    digests: FrameMap<[u8; 32]>,
    /// Frames of `last` whose digest is not to be had.
    unknown: FxHashSet<u64>,
    findings: Findings,
    affected: Vec<AffectedEpoch>,
}

impl<'a> Walk<'a> {
    fn new(shared: &'a Arc<Shared>, states: &'a PackStates, stretch: &'a Stretch) -> Self {
        Self {
            shared,
            states,
            stretch,
            last: None,
            digests: FrameMap::absent(0),
            unknown: FxHashSet::default(),
            findings: Findings::default(),
            affected: Vec::new(),
        }
    }

    fn check_epoch(&mut self, number: u64) {
        let key = (self.stretch.vm, number);
        let loaded = match self.last.take() {
            Some(last) => last.successor(key).map(|memory| (memory, Some(last))),
            None => EpochMemory::load(self.shared, key).map(|memory| (memory, None)),
        };
        let (memory, last) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                self.findings.add_error(Place::Manifest(key.0, key.1), error);
                let vm = self.stretch.name.clone();
                return self.affected.push(AffectedEpoch {
                    vm,
                    number,
                    opens: false,
                    frames: 0,
                    runs: Vec::new(),
                });
            }
        };
        self.check_chain(&memory);
        self.check_root(&memory, last.as_ref());
        if let Err(error) = memory.state() {
            self.findings.add_error(Place::State(key.0, key.1), error);
        }
        self.check_frames(&memory);
        self.last = Some(memory);
    }

    /// Compares the record with the one before.
    fn check_chain(&mut self, memory: &EpochMemory) {
        let record = memory.record();
        let place = Place::Record(self.stretch.vm, record.number);
        if record.vm != self.stretch.name {
            self.findings.add(place.clone(), format!("it says it is of {}", record.vm));
        }
        let Some(before) = record.number.checked_sub(1) else { return };
        // One that cannot be read is a problem of its own.
        if let Ok(before) = self.shared.database.require::<Epochs>(&(self.stretch.vm, before))
            && record.previous != Some(before.id)
        {
            self.findings.add(place, "it does not continue the record before");
        }
    }

    /// Computes the Merkle root again.
    fn check_root(&mut self, memory: &EpochMemory, last: Option<&EpochMemory>) {
        let changed = match last {
            Some(last) if last.layout() == memory.layout() => memory.map().changed(last.map()),
            _ => {
                self.digests = FrameMap::absent(memory.map().len());
                self.unknown.clear();
                let held = memory.map().iter().enumerate().filter(|(_, id)| *id != PageId::ABSENT);
                held.map(|(frame, _)| frame as u64).collect()
            }
        };
        if let Err(error) = self.update_digests(memory, &changed) {
            return self.findings.add_error(Place::Column("digests"), error);
        }
        let mut hasher = RootHasher::new(memory.layout().regions());
        self.digests.slices().for_each(|digests| hasher.update(digests));
        let place = Place::Record(self.stretch.vm, memory.record().number);
        if !self.unknown.is_empty() {
            let reason =
                format!("the Merkle root cannot be verified: {} digests are missing", self.unknown.len());
            self.findings.add(place, reason);
        } else if hasher.finish() != memory.record().root {
            self.findings.add(place, "the Merkle root does not match the pages");
        }
    }

    fn update_digests(&mut self, memory: &EpochMemory, changed: &[u64]) -> Result<(), StoreError> {
        let mut packs: Vec<u64> = changed
            .iter()
            .filter_map(|frame| memory.frame_id(*frame).location())
            .map(|(pack, _)| pack)
            .collect();
        packs.sort_unstable();
        packs.dedup();
        let found = self.shared.database.try_get_many::<Digests>(&packs)?;
        let listed: FxHashMap<u64, PackDigests> =
            packs.into_iter().zip(found).filter_map(|(pack, found)| Some((pack, found.ok()??))).collect();
        for frame in changed {
            let id = memory.frame_id(*frame);
            let digest = match (id, id.location()) {
                (PageId::ZERO, _) => Some(Digest::ZERO),
                (_, None) => Some(Digest::ABSENT),
                (_, Some((pack, _))) => listed.get(&pack).and_then(|digests| digests.of(id)),
            };
            match digest {
                Some(_) => self.unknown.remove(frame),
                None => self.unknown.insert(*frame),
            };
            self.digests.set(*frame, digest.unwrap_or(Digest::ABSENT).0);
        }
        Ok(())
    }

    /// Lists the frames that lie in damaged packs.
    fn check_frames(&mut self, memory: &EpochMemory) {
        let mut runs: Vec<(varve_formats::Gfn, u64)> = Vec::new();
        let mut frames = 0;
        let unreadable = memory.map().iter().enumerate().filter(|(_, id)| !self.states.is_readable(*id));
        for (frame, _) in unreadable {
            let Some(gfn) = memory.layout().gfn(frame as u64) else { continue };
            frames += 1;
            let listed = runs.len();
            match runs.last_mut() {
                Some((first, len)) if first.0 + *len == gfn.0 => *len += 1,
                _ if listed < MAX_RUNS => runs.push((gfn, 1)),
                _ => {}
            }
        }
        if frames > 0 {
            let (vm, number) = (self.stretch.name.clone(), memory.record().number);
            self.affected.push(AffectedEpoch { vm, number, opens: true, frames, runs });
        }
    }
}
