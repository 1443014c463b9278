//! What the tests share: archives that go away, and observers that remember.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use varve_capture::testing::Script;
use varve_capture::{Ended, EpochReport, Interrupt, Observer, Options, Plan, source::Source};
use varve_formats::{Gfn, Gpa, PAGE_SIZE, PhysicalMemory, Region};
use varve_store::{Archive, Digest};

pub(crate) const VM: &str = "web1";

pub(crate) struct Scratch {
    pub(crate) directory: TempDir,
    pub(crate) archive: Archive,
}

pub(crate) fn scratch() -> Scratch {
    let directory = tempfile::tempdir().unwrap();
    let archive = Archive::create(&directory.path().join("archive")).unwrap();
    Scratch { directory, archive }
}

impl Scratch {
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn epoch_count(&self) -> u64 {
        self.archive.epoch_count(VM).unwrap_or(0)
    }

    /// Byte 0 of each frame of an epoch, `None` where it is absent; every other byte of the frame must be the same.
    pub(crate) fn frames(&self, epoch: u64) -> Vec<Option<u8>> {
        let memory = self.archive.epoch(VM, epoch).unwrap();
        let mut frames = Vec::new();
        for region in memory.regions() {
            for gfn in region.start.gfn().0..region.end().unwrap().gfn().0 {
                let mut page = [0; PAGE_SIZE];
                let there = memory.read(Gfn(gfn).gpa().unwrap(), &mut page).is_ok();
                assert!(!there || page.iter().all(|byte| *byte == page[0]), "frame {gfn:#x} is torn");
                frames.push(there.then_some(page[0]));
            }
        }
        frames
    }
}

pub(crate) fn region(start: u64, frames: u64) -> Region {
    Region { start: Gpa(start), len: frames * PAGE_SIZE as u64 }
}

/// Remembers everything.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) remarks: Mutex<Vec<String>>,
    pub(crate) reports: Mutex<Vec<EpochReport>>,
    pub(crate) scanned: AtomicU64,
}

impl Observer for Memory {
    fn scanned(&self, bytes: u64) {
        self.scanned.fetch_add(bytes, Ordering::Relaxed);
    }

    fn committed(&self, report: &EpochReport) {
        self.reports.lock().unwrap().push(report.clone());
    }

    fn remark(&self, text: &str) {
        self.remarks.lock().unwrap().push(text.to_owned());
    }
}

/// An interrupt that is asked something for the n-th time.
pub(crate) struct After<T>(T, AtomicU64);

pub(crate) struct Finish(pub(crate) u64);
pub(crate) struct Abandon(pub(crate) u64);

pub(crate) fn after<T>(what: T) -> After<T> {
    After(what, AtomicU64::new(0))
}

impl Interrupt for After<Finish> {
    fn finish(&self) -> bool {
        self.1.fetch_add(1, Ordering::Relaxed) >= self.0.0
    }
}

impl Interrupt for After<Abandon> {
    fn abandon(&self) -> bool {
        self.1.fetch_add(1, Ordering::Relaxed) >= self.0.0
    }
}

/// Takes `epochs` epochs, one right after the other.
pub(crate) fn take(source: &dyn Source, archive: &Archive, epochs: u64, observer: &dyn Observer) -> Ended {
    let plan = Plan::every(Duration::ZERO, Some(epochs));
    varve_capture::capture(source, archive, VM, &plan, &Options::default(), &(), observer)
}

/// A script that fills frame `n` with `n + 1` before the n-th pause.
pub(crate) fn one_frame_an_epoch() -> Script {
    Box::new(|nth, ram| ram.fill(Gfn(nth), nth as u8 + 1))
}

/// The digest of a page of `byte`s, from the plain hash.
pub(crate) fn digest(byte: u8) -> Digest {
    varve_store::hash::digest_page(&[byte; PAGE_SIZE])
}
