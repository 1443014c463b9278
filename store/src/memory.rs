//! The memory of an archived epoch.

use std::sync::Arc;

use varve_formats::{Fault, Gfn, Gpa, PAGE_SIZE, PhysicalMemory, Region, Vcpu};

use crate::archive::Shared;
use crate::columns::epochs::Epochs;
use crate::columns::manifests::{Manifest, Manifests};
use crate::columns::packs::Pack;
use crate::columns::states::States;
use crate::columns::{Column, EpochKey};
use crate::frames::{FrameLayout, PageMap};
use crate::record::EpochRecord;
use crate::{Digest, PageId, Place, StoreError};

/// An epoch: its record, and its memory to read from.
///
/// Clones share everything. Reads from many threads share the archive's cache of decompressed packs.
#[derive(Clone)]
pub struct EpochMemory {
    shared: Arc<Shared>,
    key: EpochKey,
    record: Arc<EpochRecord>,
    layout: Arc<FrameLayout>,
    map: PageMap,
    depth: u8,
}

impl EpochMemory {
    /// Reads record and page map of a committed epoch.
    pub(crate) fn load(shared: &Arc<Shared>, key: EpochKey) -> Result<Self, StoreError> {
        let (record, layout) = load_record(shared, key)?;
        let (map, depth) = load_map(shared, key, layout.frames())?;
        Ok(Self {
            shared: Arc::clone(shared),
            key,
            record: Arc::new(record),
            layout: Arc::new(layout),
            map,
            depth,
        })
    }

    /// Reads the epoch after this one, sharing what has not changed.
    pub(crate) fn successor(&self, key: EpochKey) -> Result<Self, StoreError> {
        let (record, layout) = load_record(&self.shared, key)?;
        let manifest = self.shared.database.require::<Manifests>(&key)?;
        if manifest.depth() == 0 || layout != *self.layout {
            return Self::load(&self.shared, key);
        }
        let last_pack = self.shared.state().last_pack;
        let mut map = self.map.clone();
        apply(&manifest, key, usize::from(self.depth) + 1, &mut map, last_pack)?;
        Ok(Self {
            shared: Arc::clone(&self.shared),
            key,
            record: Arc::new(record),
            layout: Arc::clone(&self.layout),
            map,
            depth: manifest.depth(),
        })
    }

    /// What the archive knows of this epoch.
    pub fn record(&self) -> &EpochRecord {
        &self.record
    }

    /// Registers at the checkpoint.
    pub fn vcpus(&self) -> &[Vcpu] {
        &self.record.vcpus
    }

    /// The domain's state that is not in its memory, as the source gave it; `None` when it gave none.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when it is damaged, missing, or not the one the record names.
    pub fn state(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(digest) = self.record.state else { return Ok(None) };
        let state = self.shared.database.require::<States>(&self.key)?;
        match Digest(*blake3::hash(&state).as_bytes()) == digest {
            true => Ok(Some(state)),
            false => Err(StoreError::corrupt(States::place(&self.key), "it is not the one the record names")),
        }
    }

    /// The numbering of the frames.
    pub fn layout(&self) -> &FrameLayout {
        &self.layout
    }

    /// The stored page of the frame with this index; [`PageId::ABSENT`] behind the last.
    pub fn frame_id(&self, frame: u64) -> PageId {
        self.map.get(frame)
    }

    /// The stored page of a guest frame; [`PageId::ABSENT`] outside the regions.
    pub fn page_id(&self, gfn: Gfn) -> PageId {
        self.layout.frame(gfn).map_or(PageId::ABSENT, |frame| self.map.get(frame))
    }

    pub(crate) fn map(&self) -> &PageMap {
        &self.map
    }

    pub(crate) fn depth(&self) -> u8 {
        self.depth
    }
}

fn load_record(shared: &Shared, key: EpochKey) -> Result<(EpochRecord, FrameLayout), StoreError> {
    let record = shared.database.require::<Epochs>(&key)?;
    let layout = FrameLayout::new(&record.regions)?;
    Ok((record, layout))
}

/// Builds the page map of an epoch from the whole map below it and the changes since.
fn load_map(shared: &Shared, key: EpochKey, frames: u64) -> Result<(PageMap, u8), StoreError> {
    let (vm, epoch) = key;
    let top = shared.database.require::<Manifests>(&key)?;
    let depth = top.depth();
    let Some(first) = epoch.checked_sub(u64::from(depth)) else {
        return Err(StoreError::corrupt(Manifests::place(&key), "it builds on an epoch before the first"));
    };
    let below: Vec<EpochKey> = (first..epoch).map(|number| (vm, number)).collect();
    let mut map = PageMap::absent(frames);
    let last_pack = shared.state().last_pack;
    let found = shared.database.get_many::<Manifests>(&below)?;
    for (step, (key, manifest)) in below.iter().zip(found).enumerate() {
        let manifest = manifest.ok_or_else(|| StoreError::corrupt(Manifests::place(key), "it is missing"))?;
        apply(&manifest, *key, step, &mut map, last_pack)?;
    }
    apply(&top, key, usize::from(depth), &mut map, last_pack)?;
    Ok((map, depth))
}

/// Applies the page map of epoch `key`, which must be the one `step` steps above the whole map.
fn apply(
    manifest: &Manifest,
    key: EpochKey,
    step: usize,
    map: &mut PageMap,
    last_pack: u64,
) -> Result<(), StoreError> {
    let corrupt = |reason: String| StoreError::corrupt(Place::Manifest(key.0, key.1), reason);
    if usize::from(manifest.depth()) != step {
        return Err(corrupt(format!("its depth is {}, {step} was expected", manifest.depth())));
    }
    if manifest.frames() != map.len() {
        return Err(corrupt(format!("it has {} frames, the epoch has {}", manifest.frames(), map.len())));
    }
    manifest.apply(map, last_pack).map_err(|error| corrupt(error.to_string()))
}

impl PhysicalMemory for EpochMemory {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        at.checked_add(buf.len() as u64).ok_or(Fault::Overflow { at: at.0 })?;
        let mut at = at;
        let mut rest = buf;
        let mut last: Option<(u64, Arc<Pack>)> = None;
        while !rest.is_empty() {
            let offset = at.page_offset();
            let (part, tail) = rest.split_at_mut(rest.len().min(PAGE_SIZE - offset));
            match self.page_id(at.gfn()) {
                PageId::ZERO => part.fill(0),
                PageId::ABSENT => return Err(Fault::NotCaptured { at }),
                id => self.copy_stored(id, offset, part, &mut last).ok_or(Fault::Damaged { at })?,
            }
            at = at.checked_add(part.len() as u64).ok_or(Fault::Overflow { at: at.0 })?;
            rest = tail;
        }
        Ok(())
    }

    fn regions(&self) -> &[Region] {
        self.layout.regions()
    }

    fn page_identity(&self, gfn: Gfn) -> Option<u64> {
        match self.page_id(gfn) {
            PageId::ABSENT => None,
            id => Some(id.get()),
        }
    }
}

impl EpochMemory {
    /// Copies from a stored page; `last` is the pack used before, which is usually the one.
    fn copy_stored(
        &self,
        id: PageId,
        offset: usize,
        out: &mut [u8],
        last: &mut Option<(u64, Arc<Pack>)>,
    ) -> Option<()> {
        let (number, slot) = id.location()?;
        let pack = match last {
            Some((held, pack)) if *held == number => pack,
            _ => &last.insert((number, self.shared.pack(number).ok()?)).1,
        };
        let bytes = pack.pages().get(slot)?.get(offset..offset + out.len())?;
        out.copy_from_slice(bytes);
        Some(())
    }
}
