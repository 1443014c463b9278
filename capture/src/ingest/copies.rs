//! Copies of the frames a held guest had written to, or that a source was fed.
//!
//! While the guest is held they are only copied; they are compared, hashed and stored when it runs again. That its
//! vCPUs stand still does not keep devices from writing: what was written to meanwhile is copied again, until nothing
//! was or the number of rounds is used up.

use rustc_hash::FxHashMap;
use varve_formats::{Fault, Gfn, Gpa, PAGE_SIZE, PhysicalMemory, Region};
use varve_store::hash::Page;

use crate::source::GuestMemory;

/// Copies of frames. Their memory is kept from epoch to epoch: touching new memory costs more than copying.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    /// The frames in the order in which they were first copied, and whether they could be read.
    frames: Vec<(Gfn, bool)>,
    /// One page for each, and some to spare.
    pages: Vec<Page>,
    /// Which copy is whose, once a frame was copied again.
    slots: FxHashMap<Gfn, usize>,
}

impl Copies {
    /// Begins anew with none.
    pub(crate) fn clear(&mut self) {
        self.frames.clear();
        self.slots.clear();
    }

    /// Begins anew with copies of `frames`.
    pub(crate) fn take(&mut self, memory: &dyn GuestMemory, frames: &[Gfn]) {
        self.clear();
        if self.pages.len() < frames.len() {
            self.pages.resize(frames.len(), [0; PAGE_SIZE]);
        }
        self.frames.reserve(frames.len());
        for (gfn, page) in frames.iter().zip(&mut self.pages) {
            self.frames.push((*gfn, copy(memory, *gfn, page)));
        }
    }

    /// Copies these frames, some of which may have been copied before.
    pub(crate) fn again(&mut self, memory: &dyn GuestMemory, frames: &[Gfn]) {
        self.index();
        for gfn in frames {
            self.put(*gfn, |page| copy(memory, *gfn, page));
        }
    }

    /// Takes a frame that was handed over, in the place of an earlier copy of it.
    pub(crate) fn add(&mut self, gfn: Gfn, bytes: &Page) {
        self.put(gfn, |page| {
            page.copy_from_slice(bytes);
            true
        });
    }

    /// Fills the copy of a frame. All copies so far must be indexed.
    fn put(&mut self, gfn: Gfn, fill: impl FnOnce(&mut Page) -> bool) {
        let slot = *self.slots.entry(gfn).or_insert(self.frames.len());
        if slot == self.frames.len() {
            self.frames.push((gfn, false));
        }
        if self.pages.len() <= slot {
            self.pages.push([0; PAGE_SIZE]);
        }
        if let (Some((_, readable)), Some(page)) = (self.frames.get_mut(slot), self.pages.get_mut(slot)) {
            *readable = fill(page);
        }
    }

    fn index(&mut self) {
        if self.slots.is_empty() {
            self.slots.extend(self.frames.iter().enumerate().map(|(slot, (gfn, _))| (*gfn, slot)));
        }
    }

    /// How many frames were copied.
    pub(crate) fn len(&self) -> usize {
        self.frames.len()
    }

    /// The frames that were copied, ascending.
    pub(crate) fn frames(&self) -> Vec<Gfn> {
        let mut frames: Vec<Gfn> = self.frames.iter().map(|(gfn, _)| *gfn).collect();
        frames.sort_unstable();
        frames
    }

    /// The copies as memory with these regions, of which all else is missing.
    pub(crate) fn as_memory<'a>(&'a mut self, regions: &'a [Region]) -> impl GuestMemory + 'a {
        self.index();
        Copied { copies: self, regions }
    }
}

/// Copies a frame, if it can be read.
fn copy(memory: &dyn GuestMemory, gfn: Gfn, page: &mut Page) -> bool {
    let Some(at) = gfn.gpa() else { return false };
    match memory.slice(at, PAGE_SIZE).and_then(<[u8]>::first_chunk::<PAGE_SIZE>) {
        Some(bytes) => page.copy_from_slice(bytes),
        None => return memory.read(at, page).is_ok(),
    }
    true
}

struct Copied<'a> {
    copies: &'a Copies,
    regions: &'a [Region],
}

impl Copied<'_> {
    fn page(&self, gfn: Gfn) -> Option<&Page> {
        let slot = *self.copies.slots.get(&gfn)?;
        let (_, readable) = self.copies.frames.get(slot)?;
        self.copies.pages.get(slot).filter(|_| *readable)
    }
}

impl PhysicalMemory for Copied<'_> {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        let mut at = at;
        let mut rest = buf;
        while !rest.is_empty() {
            let offset = at.page_offset();
            let (part, tail) = rest.split_at_mut(rest.len().min(PAGE_SIZE - offset));
            let bytes = self.page(at.gfn()).and_then(|page| page.get(offset..offset + part.len()));
            part.copy_from_slice(bytes.ok_or(Fault::NotCaptured { at })?);
            at = at.checked_add(part.len() as u64).ok_or(Fault::Overflow { at: at.0 })?;
            rest = tail;
        }
        Ok(())
    }

    fn regions(&self) -> &[Region] {
        self.regions
    }
}

impl GuestMemory for Copied<'_> {
    fn slice(&self, at: Gpa, len: usize) -> Option<&[u8]> {
        let offset = at.page_offset();
        self.page(at.gfn())?.get(offset..offset.checked_add(len)?)
    }
}
