//! From changed frames to packs: what the archive has already is referred to, what is new is packed and compressed.

use rayon::prelude::*;
use rustc_hash::FxHashMap;

use super::{Content, FrameChange};
use crate::archive::Shared;
use crate::columns::digests::{self, Digests};
use crate::columns::packs::{Pack, Packs};
use crate::columns::pages::{self, Pages};
use crate::database::Batch;
use crate::frames::FrameTable;
use crate::hash::{Page, digest_pages, is_zero};
use crate::page::PACK_PAGES;
use crate::{Digest, PageId, StoreError};

/// Changes handled in one go, which bounds the memory for copies of new pages (16 MiB).
const SLICE: usize = 4096;

/// Digests one thread looks up in the index in one go.
const LOOK_UP: usize = 512;

/// The content a frame was given in this epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    pub(super) frame: u64,
    pub(super) id: PageId,
    pub(super) digest: Digest,
}

/// The pages of the epoch so far.
pub(super) struct Ingest {
    changes: Vec<Stored>,
    /// The pack being filled.
    open: OpenPack,
    /// Packs that were written, for their memory: touching new memory costs as much as half the compression.
    spare: Vec<OpenPack>,
    /// Pages that are in no written pack yet.
    pending: FxHashMap<Digest, PageId>,
    /// Number of the last pack written.
    written: u64,
    pages_stored: u64,
    bytes_stored: u64,
    failed: bool,
}

/// A pack that is not written yet.
#[derive(Default)]
struct OpenPack {
    number: u64,
    pages: Vec<Page>,
    digests: Vec<Digest>,
    frames: Vec<u64>,
}

impl Ingest {
    pub(super) fn new(last_pack: u64) -> Self {
        Self {
            changes: Vec::new(),
            open: OpenPack { number: last_pack + 1, ..OpenPack::default() },
            spare: Vec::new(),
            pending: FxHashMap::default(),
            written: last_pack,
            pages_stored: 0,
            bytes_stored: 0,
            failed: false,
        }
    }

    /// Number of the last pack that may be in the database.
    pub(super) fn last_pack(&self) -> u64 {
        self.written
    }

    pub(super) fn pages_stored(&self) -> u64 {
        self.pages_stored
    }

    pub(super) fn bytes_stored(&self) -> u64 {
        self.bytes_stored
    }

    pub(super) fn store(
        &mut self,
        shared: &Shared,
        previous: &FrameTable,
        batch: &[FrameChange<'_>],
    ) -> Result<(), StoreError> {
        for slice in batch.chunks(SLICE) {
            self.store_slice(shared, previous, slice).inspect_err(|_| self.failed = true)?;
        }
        Ok(())
    }

    fn store_slice(
        &mut self,
        shared: &Shared,
        previous: &FrameTable,
        slice: &[FrameChange<'_>],
    ) -> Result<(), StoreError> {
        let known = self.look_up(shared, previous, slice)?;
        let mut full = Vec::new();
        for change in slice {
            let (id, digest) = match change.content {
                Content::Absent => (PageId::ABSENT, Digest::ABSENT),
                Content::Zero => (PageId::ZERO, Digest::ZERO),
                Content::Page { bytes, .. } if is_zero(bytes) => (PageId::ZERO, Digest::ZERO),
                Content::Page { digest, .. } if digest == previous.digest(change.frame) => {
                    (previous.id(change.frame), digest)
                }
                Content::Page { digest, bytes } => {
                    match known.get(&digest).or_else(|| self.pending.get(&digest)) {
                        Some(id) => (*id, digest),
                        None => (self.add(change.frame, digest, bytes, &mut full)?, digest),
                    }
                }
            };
            self.changes.push(Stored { frame: change.frame, id, digest });
        }
        self.write(shared, full)
    }

    /// The pages of a slice that the archive has.
    fn look_up(
        &self,
        shared: &Shared,
        previous: &FrameTable,
        slice: &[FrameChange<'_>],
    ) -> Result<FxHashMap<Digest, PageId>, StoreError> {
        let mut wanted = Vec::with_capacity(slice.len());
        for change in slice {
            if change.frame >= previous.len() {
                return Err(StoreError::FrameOutOfRange { frame: change.frame, frames: previous.len() });
            }
            if let Content::Page { digest, .. } = change.content
                && digest != previous.digest(change.frame)
                && !self.pending.contains_key(&digest)
            {
                wanted.push(digest);
            }
        }
        wanted.sort_unstable();
        wanted.dedup();
        let look_up = |digests: &[Digest]| shared.database.get_many::<Pages>(digests);
        let found = wanted.par_chunks(LOOK_UP).map(look_up).collect::<Result<Vec<_>, _>>()?;
        Ok(wanted
            .into_iter()
            .zip(found.into_iter().flatten())
            .filter_map(|(digest, id)| Some((digest, id?)))
            .collect())
    }

    /// Gives frames new numbers; one that has none any more is as if it had not been stored.
    pub(super) fn renumber(&mut self, number: impl Fn(u64) -> Option<u64>) {
        self.changes.retain_mut(|change| {
            let new = number(change.frame);
            change.frame = new.unwrap_or_default();
            new.is_some()
        });
        // These only tell which frame a page that was damaged on its way here is of.
        self.open.frames.iter_mut().for_each(|frame| *frame = number(*frame).unwrap_or(*frame));
    }

    /// Puts a new page into the open pack; a pack that is full by that goes to `full`.
    fn add(
        &mut self,
        frame: u64,
        digest: Digest,
        bytes: &Page,
        full: &mut Vec<OpenPack>,
    ) -> Result<PageId, StoreError> {
        let too_many = StoreError::TooLarge { what: "the number of packs", limit: crate::page::MAX_PACK };
        let id = PageId::new(self.open.number, self.open.pages.len()).ok_or(too_many)?;
        self.open.push(frame, digest, bytes);
        self.pending.insert(digest, id);
        if self.open.pages.len() == PACK_PAGES {
            full.push(self.next_pack());
        }
        Ok(id)
    }

    /// Opens the next pack and returns the one so far.
    fn next_pack(&mut self) -> OpenPack {
        let next = self.spare.pop().unwrap_or_default().reused(self.open.number + 1);
        std::mem::replace(&mut self.open, next)
    }

    /// Compresses full packs side by side and hands them to the database.
    fn write(&mut self, shared: &Shared, full: Vec<OpenPack>) -> Result<(), StoreError> {
        if full.is_empty() {
            return Ok(());
        }
        let encoded = full.par_iter().map(OpenPack::encode).collect::<Result<Vec<_>, _>>()?;
        let mut batch = Batch::default();
        for (pack, bytes) in full.iter().zip(&encoded) {
            self.enter(shared, pack, bytes, &mut batch)?;
        }
        shared.write(|database| database.write(batch))?;
        for pack in &full {
            pack.digests.iter().for_each(|digest| {
                self.pending.remove(digest);
            });
            self.written = pack.number;
        }
        self.spare.extend(full);
        Ok(())
    }

    /// Adds a pack, its digests and its index entries to a batch.
    fn enter(
        &mut self,
        shared: &Shared,
        pack: &OpenPack,
        bytes: &[u8],
        batch: &mut Batch,
    ) -> Result<(), StoreError> {
        let database = &shared.database;
        database.put::<Packs>(batch, &pack.number, bytes)?;
        database.put::<Digests>(batch, &pack.number, &digests::encode(&pack.digests))?;
        for (slot, digest) in pack.digests.iter().enumerate() {
            if let Some(id) = PageId::new(pack.number, slot) {
                database.put::<Pages>(batch, digest, &pages::encode(id))?;
            }
        }
        self.pages_stored += pack.pages.len() as u64;
        self.bytes_stored += bytes.len() as u64;
        Ok(())
    }

    /// Adds the last, partly filled pack to the batch that commits the epoch.
    pub(super) fn finish(&mut self, shared: &Shared, batch: &mut Batch) -> Result<(), StoreError> {
        if self.failed {
            return Err(StoreError::Abandoned);
        }
        if self.open.pages.is_empty() {
            return Ok(());
        }
        let last = self.next_pack();
        let bytes = last.encode().inspect_err(|_| self.failed = true)?;
        self.enter(shared, &last, &bytes, batch)
    }

    /// Says that the batch of [`Ingest::finish`] is in the database.
    pub(super) fn written(&mut self) {
        self.written = self.open.number - 1;
    }

    /// The frames whose content differs from the epoch before, ascending, each with the last content it was given.
    pub(super) fn take_changes(&mut self, previous: &FrameTable) -> Vec<Stored> {
        let mut changes = std::mem::take(&mut self.changes);
        changes.reverse();
        changes.sort_by_key(|change| change.frame);
        changes.dedup_by_key(|change| change.frame);
        changes.retain(|change| change.digest != previous.digest(change.frame));
        changes
    }
}

impl OpenPack {
    /// An empty pack in the memory of this one.
    fn reused(mut self, number: u64) -> Self {
        self.pages.clear();
        self.digests.clear();
        self.frames.clear();
        Self { number, ..self }
    }

    fn push(&mut self, frame: u64, digest: Digest, bytes: &Page) {
        if self.pages.is_empty() {
            self.pages.reserve_exact(PACK_PAGES);
        }
        self.pages.push(*bytes);
        self.digests.push(digest);
        self.frames.push(frame);
    }

    /// The pack's bytes, once its pages were found to be what they are said to be. That costs a fiftieth of the
    /// compression and keeps a source that changes under our hands, or failing memory, out of the archive.
    fn encode(&self) -> Result<Vec<u8>, StoreError> {
        let pages: Vec<&Page> = self.pages.iter().collect();
        let mut found = vec![Digest::ZERO; pages.len()];
        digest_pages(&pages, &mut found);
        let differing = found.iter().zip(&self.digests).position(|(found, claimed)| found != claimed);
        if let Some(frame) = differing.and_then(|at| self.frames.get(at)) {
            return Err(StoreError::DigestMismatch { frame: *frame });
        }
        Pack::encode(&self.pages)
    }
}
