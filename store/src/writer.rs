//! Writing an epoch.

mod ingest;

use std::sync::Arc;

use varve_formats::Region;

use crate::archive::{Shared, Tip, Vm, now_ns};
use crate::columns::VmNumber;
use crate::columns::digests::Digests;
use crate::columns::epochs::{self, Epochs};
use crate::columns::manifests::{MAX_DEPTH, Manifest, Manifests};
use crate::columns::states::{self, States};
use crate::columns::vms::{self, Vms, check_name};
use crate::database::Batch;
use crate::frames::{FrameLayout, FrameTable, PageMap};
use crate::hash::Page;
use crate::memory::EpochMemory;
use crate::record::{EpochId, EpochMeta, EpochRecord};
use crate::{Digest, PageId, Place, StoreError, root};
use ingest::{Ingest, Stored};

/// A frame whose content is to be stored.
#[derive(Clone, Copy, Debug)]
pub struct FrameChange<'a> {
    /// Index of the frame over the epoch's regions in order ([`FrameLayout`]).
    pub frame: u64,
    /// What it holds now.
    pub content: Content<'a>,
}

/// The content of a frame.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// Zeros.
    Zero,
    /// Nothing: the frame is not there any more, or could not be captured.
    Absent,
    /// A page.
    Page {
        /// Its digest ([`crate::hash::digest_pages`]).
        digest: Digest,
        /// Its bytes.
        bytes: &'a Page,
    },
}

/// An epoch that is being written. Frames that are not stored keep what they held in the epoch before; in a VM's first
/// epoch they are absent.
///
/// Nothing of it is visible before [`EpochWriter::commit`] returned. Dropped without that, it leaves nothing behind but
/// pages no epoch refers to, which a later epoch may use.
pub struct EpochWriter {
    shared: Arc<Shared>,
    vm: String,
    number: VmNumber,
    epoch: u64,
    layout: FrameLayout,
    previous: Arc<FrameTable>,
    previous_id: Option<EpochId>,
    /// Depth of the page map to write; 0 for a whole one.
    depth: u8,
    ingest: Ingest,
}

impl EpochWriter {
    pub(crate) fn begin(shared: &Arc<Shared>, vm: &str, regions: &[Region]) -> Result<Self, StoreError> {
        check_name(vm)?;
        let layout = FrameLayout::new(regions)?;
        shared.check_writable()?;
        let (known, next_number, last_pack) = claim(shared, vm)?;
        // From here on `writer`'s drop gives the claim back.
        let mut writer = Self {
            shared: Arc::clone(shared),
            vm: vm.to_owned(),
            number: next_number,
            epoch: 0,
            previous: Arc::new(FrameTable::absent(layout.clone())),
            layout,
            previous_id: None,
            depth: 0,
            ingest: Ingest::new(last_pack),
        };
        if let Some(known) = known {
            writer.continue_from(known)?;
        }
        Ok(writer)
    }

    /// Builds on the VM's latest epoch.
    fn continue_from(&mut self, known: Vm) -> Result<(), StoreError> {
        let latest = known.epochs - 1;
        let tip = match known.tip {
            Some(tip) => tip,
            None => load_tip(&self.shared, known.number, latest)?,
        };
        self.number = known.number;
        self.epoch = known.epochs;
        self.previous_id = Some(tip.id);
        if *tip.table.layout() == self.layout {
            self.previous = tip.table;
            self.depth = if tip.depth >= MAX_DEPTH { 0 } else { tip.depth + 1 };
        } else {
            self.previous = Arc::new(tip.table.remapped(self.layout.clone()));
        }
        Ok(())
    }

    /// The number this epoch will have.
    pub fn number(&self) -> u64 {
        self.epoch
    }

    /// The numbering of the frames.
    pub fn layout(&self) -> &FrameLayout {
        &self.layout
    }

    /// Gives the epoch other regions, and its frames new numbers. What the new regions add is absent, what they leave out is
    /// dropped, and everything else stays as it is, stored or not.
    ///
    /// # Errors
    /// [`StoreError::Regions`]; the regions are then as before.
    pub fn lay_out(&mut self, regions: &[Region]) -> Result<(), StoreError> {
        let layout = FrameLayout::new(regions)?;
        if layout == self.layout {
            return Ok(());
        }
        self.depth = 0;
        if layout.continues(&self.layout) {
            Arc::make_mut(&mut self.previous).extend(layout.clone());
        } else {
            self.ingest.renumber(|frame| layout.frame(self.layout.gfn(frame)?));
            self.previous = Arc::new(self.previous.remapped(layout.clone()));
        }
        self.layout = layout;
        Ok(())
    }

    /// The VM's latest epoch under this epoch's frame numbers, to compare with: frames it lacks are absent.
    pub fn previous(&self) -> &Arc<FrameTable> {
        &self.previous
    }

    /// Stores changed frames. New pages are packed in the order they come in, so frames should ascend.
    ///
    /// # Errors
    /// [`StoreError::FrameOutOfRange`], [`StoreError::DigestMismatch`], [`StoreError::Poisoned`], or a failed write.
    /// After any of them this epoch cannot be committed any more.
    pub fn store(&mut self, batch: &[FrameChange<'_>]) -> Result<(), StoreError> {
        self.shared.check_writable()?;
        self.ingest.store(&self.shared, &self.previous, batch)
    }

    /// Makes the epoch durable, then visible.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], [`StoreError::Poisoned`], or a failed write. The epoch is then not visible; should only
    /// the confirmation have failed, it is there when the archive is opened again.
    pub fn commit(mut self, meta: EpochMeta) -> Result<EpochRecord, StoreError> {
        meta.check()?;
        self.shared.check_writable()?;
        let mut batch = Batch::default();
        self.ingest.finish(&self.shared, &mut batch)?;
        let changes = self.ingest.take_changes(&self.previous);
        let table = self.advance(&changes);
        let manifest = match self.depth {
            0 => Manifest::whole(table.ids()),
            depth => {
                Manifest::changes(depth, table.len(), changes.iter().map(|change| (change.frame, change.id)))
            }
        };
        let key = (self.number, self.epoch);
        let database = &self.shared.database;
        if let Some(state) = &meta.state {
            database.put::<States>(&mut batch, &key, &states::encode(state)?)?;
        }
        let (record, bytes) = self.record(meta, &table, changes.len() as u64)?;
        database.put::<Manifests>(&mut batch, &key, &manifest.encode()?)?;
        database.put::<Epochs>(&mut batch, &key, &bytes)?;
        if self.epoch == 0 {
            database.put::<Vms>(&mut batch, &self.vm, &vms::encode(self.number))?;
        }
        self.shared.write(|database| {
            database.write(batch)?;
            database.flush()
        })?;
        self.ingest.written();
        let tip = Tip { id: record.id, depth: self.depth, table };
        let vm = Vm { number: self.number, epochs: self.epoch + 1, tip: Some(tip) };
        self.shared.state().vms.insert(self.vm.clone(), vm);
        self.shared.database.tidy(self.epoch);
        Ok(record)
    }

    /// Turns the table of the epoch before into this epoch's: in place, unless the capture still holds it.
    fn advance(&mut self, changes: &[Stored]) -> Arc<FrameTable> {
        if let Some(vm) = self.shared.state().vms.get_mut(&self.vm) {
            vm.tip = None;
        }
        let table = Arc::make_mut(&mut self.previous);
        changes.iter().for_each(|change| table.set(change.frame, change.id, change.digest));
        Arc::clone(&self.previous)
    }

    fn record(
        &self,
        meta: EpochMeta,
        table: &FrameTable,
        changed: u64,
    ) -> Result<(EpochRecord, Vec<u8>), StoreError> {
        let (pages, pages_zero) = table.count();
        let mut record = EpochRecord {
            id: EpochId([0; 32]),
            previous: self.previous_id,
            vm: self.vm.clone(),
            number: self.epoch,
            taken_at_ns: meta.taken_at_ns,
            committed_at_ns: now_ns(),
            source: meta.source,
            varve_version: env!("CARGO_PKG_VERSION").to_owned(),
            regions: self.layout.regions().to_vec(),
            pages,
            pages_zero,
            pages_changed: changed,
            pages_stored: self.ingest.pages_stored(),
            bytes_stored: self.ingest.bytes_stored(),
            root: root::root(self.layout.regions(), table.digests()),
            vcpus: meta.vcpus,
            residue: meta.residue,
            disk_snapshot: meta.disk_snapshot,
            state: meta.state.as_deref().map(|state| Digest(*blake3::hash(state).as_bytes())),
            restorable: meta.restorable,
        };
        let bytes = epochs::encode(&record)?;
        record.id = epochs::id_of(&bytes);
        Ok((record, bytes))
    }
}

impl Drop for EpochWriter {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.writing = None;
        state.last_pack = self.ingest.last_pack();
    }
}

/// Marks the archive as being written: the VM if it has epochs, its number, and the number of the last pack.
fn claim(shared: &Shared, vm: &str) -> Result<(Option<Vm>, VmNumber, u64), StoreError> {
    let mut state = shared.state();
    if let Some(vm) = &state.writing {
        return Err(StoreError::Busy { vm: vm.clone() });
    }
    let next_number = state.vms.values().map(|vm| vm.number).max().unwrap_or(0).checked_add(1);
    let next_number =
        next_number.ok_or(StoreError::TooLarge { what: "the number of VMs", limit: u64::from(u32::MAX) })?;
    state.writing = Some(vm.to_owned());
    Ok((state.vms.get(vm).cloned(), next_number, state.last_pack))
}

/// Reads the latest epoch as its writer left it.
fn load_tip(shared: &Arc<Shared>, vm: VmNumber, epoch: u64) -> Result<Tip, StoreError> {
    let memory = EpochMemory::load(shared, (vm, epoch))?;
    let digests = load_digests(shared, memory.map())?;
    let table = FrameTable::new(memory.layout().clone(), memory.map().clone(), digests);
    Ok(Tip { id: memory.record().id, depth: memory.depth(), table: Arc::new(table) })
}

/// The digest of every frame of a page map.
fn load_digests(shared: &Shared, map: &PageMap) -> Result<Vec<[u8; 32]>, StoreError> {
    let mut packs: Vec<u64> = map.iter().filter_map(PageId::location).map(|(pack, _)| pack).collect();
    packs.dedup();
    packs.sort_unstable();
    packs.dedup();
    let found = shared.database.get_many::<Digests>(&packs)?;
    // Neighbouring frames are mostly in one pack.
    let mut at = 0;
    let mut digest = |id: PageId| match (id, id.location()) {
        (PageId::ZERO, _) => Ok(Digest::ZERO.0),
        (_, None) => Ok(Digest::ABSENT.0),
        (_, Some((pack, _))) => {
            if packs.get(at) != Some(&pack) {
                at = packs.binary_search(&pack).unwrap_or_default();
            }
            let digest = found.get(at).and_then(|digests| digests.as_ref()?.of(id));
            let missing = || StoreError::corrupt(Place::Digests(pack), format!("it lacks {id}"));
            digest.map(|digest| digest.0).ok_or_else(missing)
        }
    };
    map.iter().map(&mut digest).collect()
}
