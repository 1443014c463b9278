//! The frames of a domain, mapped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustc_hash::FxHashMap;
use varve_formats::{Fault, Gfn, Gpa, PAGE_SIZE, PhysicalMemory, Region};

use super::domain::{Domain, failed};
use super::sys::{ForeignMemory, Mapping};
use crate::SourceError;
use crate::source::GuestMemory;

/// Frames asked for at a time when looking which there are.
const BATCH: usize = 4096;

/// The highest frame number that is looked for: that of 1 TiB. Of a domain that has more, four for each page.
const MAX_NUMBER: u64 = 1 << 28;

/// Most regions that memory is described with; closer runs are joined, and what lies between reads as missing.
const MAX_REGIONS: usize = 1024;

/// For how many epochs memory stays mapped of which some pages were given back: of a domain that does so all the time, all would be
/// looked at anew for each epoch. Of those that are found to be gone the epochs are without meanwhile.
const STALE_EPOCHS: u64 = 8;

/// All frames of a domain that can be mapped.
pub(super) struct DomainMemory {
    mapping: Mapping,
    /// Runs of frames, ascending, as they lie in the mapping.
    runs: Vec<Run>,
    regions: Vec<Region>,
    /// Pages the domain had.
    pub(super) pages: u64,
    /// Its highest frame number.
    maximum: Gfn,
    id: u32,
    foreign: Arc<ForeignMemory>,
    /// For how many epochs more it was asked whether it serves.
    epochs: AtomicU64,
    /// Whether a frame that is mapped was found to be gone: the domain has given it back. It stays its own, and is counted, as long as it
    /// is mapped.
    stale: AtomicBool,
}

/// Frames that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: Gfn,
    frames: u64,
    /// Number of the first in the mapping.
    at: u64,
}

impl DomainMemory {
    /// Finds the frames there are and maps them.
    ///
    /// The highest frame number of a PVH or HVM domain lies below 4 GiB even when it has little memory, so that most
    /// numbers have no frame. Nothing tells which have one but trying.
    pub(super) fn map(domain: &Domain, foreign: &Arc<ForeignMemory>) -> Result<Self, SourceError> {
        let error = |error| domain.failed("mapping the domain's memory", error);
        let pages = domain.info()?.pages;
        let maximum = domain.control.maximum_gfn(domain.id).map_err(error)?;
        if maximum.0 > MAX_NUMBER.max(pages.saturating_mul(4)) {
            return Err(SourceError::Unsuitable { reason: scattered(domain, maximum, pages) });
        }
        let mut found = Vec::new();
        for first in (0..=maximum.0).step_by(BATCH) {
            let batch: Vec<Gfn> = (first..=maximum.0.min(first + BATCH as u64 - 1)).map(Gfn).collect();
            let mapping = foreign.map(domain.id, &batch).map_err(error)?;
            found.extend(
                batch.iter().zip(mapping.mapped()).filter(|(_, mapped)| **mapped).map(|(gfn, _)| *gfn),
            );
        }
        let mapping = foreign.map(domain.id, &found).map_err(error)?;
        let runs = runs(&found);
        let (regions, foreign) = (regions(&runs), Arc::clone(foreign));
        let (epochs, stale) = (AtomicU64::new(0), AtomicBool::new(false));
        Ok(Self { mapping, runs, regions, pages, maximum, id: domain.id, foreign, epochs, stale })
    }

    /// Whether there is a frame with this number.
    pub(super) fn has(&self, gfn: Gfn) -> bool {
        self.locate(gfn).is_some()
    }

    /// Whether one more epoch can be taken of it, of a domain that now owns so many pages and has this highest frame number.
    pub(super) fn serves(&self, pages: u64, maximum: Gfn) -> bool {
        let patient = self.epochs.fetch_add(1, Ordering::Relaxed) + 1 < STALE_EPOCHS;
        (self.pages, self.maximum) == (pages, maximum) && (patient || !self.stale.load(Ordering::Relaxed))
    }

    /// The frames there are, ascending.
    pub(super) fn frames(&self) -> impl Iterator<Item = Gfn> {
        self.runs.iter().flat_map(|run| (run.first.0..run.first.0 + run.frames).map(Gfn))
    }

    /// Where the frame is in the mapping, and how many follow it, itself included.
    fn locate(&self, gfn: Gfn) -> Option<(u64, u64)> {
        let run = self.runs.get(self.runs.partition_point(|run| run.first <= gfn).checked_sub(1)?)?;
        let into = gfn.0 - run.first.0;
        (into < run.frames).then(|| (run.at + into, run.frames - into))
    }
}

/// A guest can put a page at any frame number (`XENMEM_add_to_physmap`), and looking at all of them would take for ever.
fn scattered(domain: &Domain, maximum: Gfn, pages: u64) -> String {
    format!(
        "domain {} has a page at {} and only {pages} pages in all: no kernel does that by itself, and it cannot be captured until it is \
         started again",
        domain.name,
        maximum.gpa().map_or_else(|| format!("frame {}", maximum.0), |at| at.to_string())
    )
}

/// Ascending frame numbers as runs.
fn runs(frames: &[Gfn]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (at, gfn) in (0..).zip(frames) {
        match runs.last_mut() {
            Some(run) if run.first.0 + run.frames == gfn.0 => run.frames += 1,
            _ => runs.push(Run { first: *gfn, frames: 1, at }),
        }
    }
    runs
}

/// The regions that cover the runs: those of the runs, or fewer.
fn regions(runs: &[Run]) -> Vec<Region> {
    let mut gap = 0;
    loop {
        let regions = joined(runs, gap);
        if regions.len() <= MAX_REGIONS {
            return regions;
        }
        gap = (gap * 2).max(1);
    }
}

/// The runs as regions, where no more than `gap` frames lie between them as one.
fn joined(runs: &[Run], gap: u64) -> Vec<Region> {
    let mut regions: Vec<Region> = Vec::new();
    for run in runs {
        let Some(start) = run.first.gpa() else { continue };
        let len = run.frames * PAGE_SIZE as u64;
        match regions.last_mut() {
            Some(last) if start.0 - last.start.0 - last.len <= gap * PAGE_SIZE as u64 => {
                last.len = start.0 + len - last.start.0;
            }
            _ => regions.push(Region { start, len }),
        }
    }
    regions
}

impl PhysicalMemory for DomainMemory {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        let mut at = at;
        let mut rest = buf;
        while !rest.is_empty() {
            let (part, tail) = rest.split_at_mut(rest.len().min(PAGE_SIZE - at.page_offset()));
            part.copy_from_slice(self.slice(at, part.len()).ok_or(Fault::NotCaptured { at })?);
            at = at.checked_add(part.len() as u64).ok_or(Fault::Overflow { at: at.0 })?;
            rest = tail;
        }
        Ok(())
    }

    fn regions(&self) -> &[Region] {
        &self.regions
    }
}

impl GuestMemory for DomainMemory {
    fn slice(&self, at: Gpa, len: usize) -> Option<&[u8]> {
        let (index, follow) = self.locate(at.gfn())?;
        let offset = at.page_offset();
        if offset as u64 + len as u64 > follow * PAGE_SIZE as u64 {
            return None;
        }
        self.mapping.bytes(usize::try_from(index).ok()?.checked_mul(PAGE_SIZE)? + offset, len)
    }

    /// The domain can have another page at a frame number by now (`XENMEM_add_to_physmap`), and the mapping goes on showing the one that
    /// was there.
    fn anew(&self, frames: &[Gfn]) -> Result<Option<Box<dyn GuestMemory>>, SourceError> {
        // Xen's library takes no frames for a mistake.
        if frames.is_empty() {
            return Ok(None);
        }
        let mapping = self.foreign.map(self.id, frames);
        let mapping = mapping.map_err(|error| failed("mapping what the domain has written to", error))?;
        let gone = frames.iter().zip(mapping.mapped()).any(|(gfn, mapped)| !mapped && self.has(*gfn));
        self.stale.fetch_or(gone, Ordering::Relaxed);
        let places = frames.iter().copied().zip(0..).collect();
        Ok(Some(Box::new(Anew { mapping, places, regions: self.regions.clone() })))
    }
}

/// A few frames, as they lie now.
struct Anew {
    mapping: Mapping,
    /// Where each is in the mapping.
    places: FxHashMap<Gfn, usize>,
    regions: Vec<Region>,
}

impl PhysicalMemory for Anew {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        buf.copy_from_slice(self.slice(at, buf.len()).ok_or(Fault::NotCaptured { at })?);
        Ok(())
    }

    fn regions(&self) -> &[Region] {
        &self.regions
    }
}

impl GuestMemory for Anew {
    fn slice(&self, at: Gpa, len: usize) -> Option<&[u8]> {
        let (place, offset) = (*self.places.get(&at.gfn())?, at.page_offset());
        (offset + len <= PAGE_SIZE).then(|| self.mapping.bytes(place * PAGE_SIZE + offset, len))?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_follow_each_other_are_a_run() {
        let found = runs(&[0, 1, 2, 7, 9, 10].map(Gfn));
        let run = |first, frames, at| Run { first: Gfn(first), frames, at };
        assert_eq!(found, [run(0, 3, 0), run(7, 1, 3), run(9, 2, 4)]);
        assert!(runs(&[]).is_empty());
    }

    #[test]
    fn regions_are_the_runs_unless_there_are_too_many() {
        let region = |start: u64, frames: u64| Region { start: Gpa(start << 12), len: frames << 12 };
        assert_eq!(regions(&runs(&[0, 1, 5].map(Gfn))), [region(0, 2), region(5, 1)]);
        let scattered: Vec<Gfn> = (0..3 * MAX_REGIONS as u64).map(|n| Gfn(n * 3 + n / 3 * 10)).collect();
        let covered = regions(&runs(&scattered));
        assert_eq!(covered.len(), MAX_REGIONS);
        assert_eq!(covered[..2], [region(0, 7), region(19, 7)]);
    }
}
