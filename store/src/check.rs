//! Looking for damage: what is broken, which epochs and frames that reaches, and that the rest is whole.
//!
//! Structure alone covers the table files (there, and of their size), the digests and index entries of every pack, the
//! hash chain of the records, the page maps, the Merkle root of every epoch, the domain states, and the pins. With data, every table file is compared
//! with the checksum RocksDB recorded for it, and every page is decompressed and hashed again. A page is then tied to its
//! digest, the digest to the root, the root to the record, and the record to all records after it.

mod epochs;
mod files;
mod packs;
mod small;

use std::fmt;

use rustc_hash::FxHashMap;
use varve_formats::Gfn;

use crate::columns::VmNumber;
use crate::{Archive, PageId, Place, StoreError};

/// Problems listed in a report; further ones are counted.
const MAX_LISTED: usize = 1000;

/// Runs of frames listed for an affected epoch; further ones are counted.
const MAX_RUNS: usize = 100;

/// A part of a check, for its progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Table files, in bytes.
    Files,
    /// Packs, digests and index.
    Packs,
    /// Epochs.
    Epochs,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// What is broken. At most a thousand are listed.
    pub problems: Vec<Problem>,
    /// Problems beyond those listed.
    pub problems_omitted: u64,
    /// The epochs that cannot be read in full, by VM and number.
    pub affected: Vec<AffectedEpoch>,
    /// Table files looked at.
    pub files: u64,
    /// Packs looked at.
    pub packs: u64,
    /// Pages in them.
    pub pages: u64,
    /// Epochs looked at.
    pub epochs: u64,
    /// Whether every page was read.
    pub read_data: bool,
}

impl CheckReport {
    /// Whether nothing is broken.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty() && self.affected.is_empty()
    }
}

/// A thing that is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// The same in words, with names where the place has numbers.
    pub what: String,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.reason)
    }
}

/// An epoch that damage reaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AffectedEpoch {
    /// The VM.
    pub vm: String,
    /// The epoch.
    pub number: u64,
    /// Whether it can be opened. If so, all frames but `frames` can be read.
    pub opens: bool,
    /// Frames that cannot be read.
    pub frames: u64,
    /// The first hundred runs of these: first guest frame and length.
    pub runs: Vec<(Gfn, u64)>,
}

/// Problems as they are found.
#[derive(Default)]
struct Findings {
    problems: Vec<Problem>,
    omitted: u64,
}

impl Findings {
    fn add(&mut self, place: Place, reason: impl Into<String>) {
        match self.problems.len() < MAX_LISTED {
            true => self.problems.push(Problem { what: place.to_string(), place, reason: reason.into() }),
            false => self.omitted += 1,
        }
    }

    fn add_error(&mut self, place: Place, error: StoreError) {
        match error {
            StoreError::Corrupt { place, reason } => self.add(place, reason),
            error => self.add(place, error.to_string()),
        }
    }

    fn append(&mut self, other: Self) {
        self.omitted += other.omitted;
        other.problems.into_iter().for_each(|problem| self.add(problem.place, problem.reason));
    }
}

/// What packs hold, and which of it is unreadable.
#[derive(Default)]
struct PackStates {
    packs: FxHashMap<u64, PackState>,
}

#[derive(Clone, Copy, Default)]
struct PackState {
    /// Number of pages; 0 when that is unknown.
    pages: u8,
    /// A bit for each slot that cannot be read.
    unreadable: u64,
}

impl PackStates {
    fn is_readable(&self, id: PageId) -> bool {
        let Some((pack, slot)) = id.location() else { return true };
        let state = self.packs.get(&pack);
        state.is_some_and(|state| slot < usize::from(state.pages) && state.unreadable >> slot & 1 == 0)
    }
}

impl Archive {
    /// Checks the archive; with `read_data` every page of it. `progress` is told how much of how much is done.
    ///
    /// Damage is data: it stands in the report.
    ///
    /// # Errors
    /// Only when RocksDB cannot say which files it has.
    pub fn check(
        &self,
        read_data: bool,
        progress: &(dyn Fn(Stage, u64, u64) + Sync),
    ) -> Result<CheckReport, StoreError> {
        let mut findings = Findings::default();
        let mut report = CheckReport { read_data, ..CheckReport::default() };
        report.files = files::check(self.shared(), read_data, progress, &mut findings)?;
        small::check(self.shared(), &mut findings)?;
        let states = packs::check(self.shared(), read_data, progress, &mut findings)?;
        report.packs = states.packs.len() as u64;
        report.pages = states.packs.values().map(|state| u64::from(state.pages)).sum();
        let (epochs, affected) = epochs::check(self.shared(), &states, progress, &mut findings);
        report.epochs = epochs;
        report.affected = affected;
        report.problems = findings.problems;
        report.problems_omitted = findings.omitted;
        self.name_vms(&mut report.problems);
        Ok(report)
    }

    /// Words epochs with the names of their VMs.
    fn name_vms(&self, problems: &mut [Problem]) {
        let names: FxHashMap<VmNumber, String> =
            self.shared().state().vms.iter().map(|(name, vm)| (vm.number, name.clone())).collect();
        for problem in problems {
            let named = match &problem.place {
                Place::Manifest(vm, epoch) => {
                    names.get(vm).map(|vm| format!("page map of epoch {epoch} of {vm}"))
                }
                Place::Record(vm, epoch) => {
                    names.get(vm).map(|vm| format!("record of epoch {epoch} of {vm}"))
                }
                Place::State(vm, epoch) => {
                    names.get(vm).map(|vm| format!("domain state of epoch {epoch} of {vm}"))
                }
                Place::Pin(vm, name) => names.get(vm).map(|vm| format!("pinned {name} of {vm}")),
                _ => None,
            };
            problem.what = named.unwrap_or_else(|| problem.place.to_string());
        }
    }
}
