//! Walking through a VM's epochs at the cost of what changed.

use std::ops::Range;
use std::sync::Arc;

use varve_formats::Gfn;

use crate::archive::Shared;
use crate::columns::VmNumber;
use crate::memory::EpochMemory;
use crate::{Archive, FrameLayout, StoreError};

/// An epoch on the way through a history.
#[derive(Clone)]
pub struct Step {
    /// The epoch.
    pub memory: EpochMemory,
    /// The guest frames, ascending, whose content may differ from the step before: all others hold the same bytes, or
    /// are in neither. `None` in the first step, which has none before.
    pub changed: Option<Vec<Gfn>>,
}

/// The epochs of a VM in order ([`Archive::history`]).
///
/// An epoch that cannot be read is an error in its place, and the next step is a first step again.
pub struct History {
    shared: Arc<Shared>,
    vm: VmNumber,
    numbers: Range<u64>,
    last: Option<EpochMemory>,
}

impl Archive {
    /// The epochs `numbers` of a VM, in order. Neighbours share what they have in common, so that a step costs what
    /// changed.
    ///
    /// # Errors
    /// [`StoreError::UnknownVm`], or [`StoreError::UnknownEpoch`] when the range goes beyond the last epoch.
    pub fn history(&self, vm: &str, numbers: Range<u64>) -> Result<History, StoreError> {
        if let Some(last) = numbers.end.checked_sub(1).filter(|last| numbers.contains(last)) {
            self.shared().epoch_key(vm, last)?;
        }
        let vm = self.shared().vm(vm)?.number;
        Ok(History { shared: Arc::clone(self.shared()), vm, numbers, last: None })
    }

    /// The guest frames, ascending, whose contents differ between two epochs of a VM, those only one of them has among
    /// them.
    ///
    /// # Errors
    /// [`StoreError::UnknownVm`], [`StoreError::UnknownEpoch`], [`StoreError::Corrupt`].
    pub fn changed_frames(&self, vm: &str, a: u64, b: u64) -> Result<Vec<Gfn>, StoreError> {
        Ok(self.epoch(vm, a)?.changed_since(&self.epoch(vm, b)?))
    }
}

impl Iterator for History {
    type Item = Result<Step, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let number = self.numbers.next()?;
        let last = self.last.take();
        let loaded = match &last {
            Some(last) => last.successor((self.vm, number)),
            None => EpochMemory::load(&self.shared, (self.vm, number)),
        };
        Some(loaded.map(|memory| {
            self.last = Some(memory.clone());
            let changed = last.map(|last| memory.changed_since(&last));
            Step { memory, changed }
        }))
    }
}

impl EpochMemory {
    /// The guest frames, ascending, whose contents differ from those of `other`, those only one of them has among them.
    /// Both must be of one archive.
    pub fn changed_since(&self, other: &Self) -> Vec<Gfn> {
        if self.layout() == other.layout() {
            let frames = self.map().changed(other.map());
            return frames.into_iter().filter_map(|frame| self.layout().gfn(frame)).collect();
        }
        let ours = self.layout().regions().iter().flat_map(FrameLayout::gfns_of);
        let theirs = other.layout().regions().iter().flat_map(FrameLayout::gfns_of);
        let only_theirs = theirs.filter(|gfn| self.layout().frame(*gfn).is_none());
        let differing = |gfn: &Gfn| self.page_id(*gfn) != other.page_id(*gfn);
        let mut changed: Vec<Gfn> = ours.chain(only_theirs).filter(differing).collect();
        changed.sort_unstable();
        changed
    }
}
