//! An epoch of a source that is fed.
//!
//! What comes is taken in pieces. Mostly one piece is all there is, and a guest that waits for it runs on as soon as its last
//! byte was taken: scanning, packing and storing happen behind its back. The first epoch has as many pieces as it needs, so that
//! never more of a guest than one, and its copies on their way to the archive, is held in memory. It is laid out anew when a piece
//! shows frames that were not known.

use std::time::{Duration, Instant, SystemTime};

use varve_formats::{Gpa, PAGE_SIZE, Region};
use varve_store::{EpochMeta, EpochWriter};

use super::copies::Copies;
use super::run::{Run, registers};
use super::staging::Staging;
use super::{Ingest, nanoseconds, storing};
use crate::CaptureError;
use crate::report::EpochReport;
use crate::source::{Fed, Feed, Source};

/// How many pieces the bytes are that may wait for the archive: 64 MiB, unless that is set otherwise.
const PIECES: usize = 4;

/// An epoch of which the first piece has come.
struct Begun {
    since: Instant,
    writer: EpochWriter,
    frames_scanned: u64,
    staging_wait: Duration,
}

impl Ingest<'_> {
    /// Takes the next epoch that a source is fed; `None` when there is none.
    pub(crate) fn fed_epoch(
        &self,
        source: &dyn Source,
        feed: &dyn Feed,
        copies: &mut Copies,
    ) -> Result<Option<EpochReport>, CaptureError> {
        let limit = self.options.staging_bytes / PIECES / PAGE_SIZE;
        let mut begun = None;
        loop {
            copies.clear();
            let fed = feed.next(limit, &mut |gfn, page| copies.add(gfn, page), self.interrupt);
            let fed = fed.map_err(|error| CaptureError::source(source, error))?;
            if fed == Fed::Nothing {
                return Ok(None);
            }
            if self.interrupt.abandon() {
                return Err(CaptureError::Abandoned);
            }
            let taken_at = feed.taken_at().unwrap_or_else(SystemTime::now);
            let epoch = self.add_piece(source, copies, begun)?;
            if fed == Fed::Whole {
                return self.commit_fed(source, epoch, taken_at).map(Some);
            }
            begun = Some(epoch);
        }
    }

    /// Stores a piece of an epoch, beginning the epoch if it is the first.
    fn add_piece(
        &self,
        source: &dyn Source,
        copies: &mut Copies,
        begun: Option<Begun>,
    ) -> Result<Begun, CaptureError> {
        let memory = source.memory().map_err(|error| CaptureError::source(source, error))?;
        let mut epoch = match begun {
            Some(epoch) => epoch,
            None => {
                // Until all has come nobody knows which frames there will not be any more.
                let known = either(&self.latest_regions()?, memory.regions());
                let (frames_scanned, staging_wait) = Default::default();
                let writer = self.archive.begin(self.vm, &known)?;
                Begun { since: Instant::now(), writer, frames_scanned, staging_wait }
            }
        };
        let writer = &mut epoch.writer;
        writer.lay_out(&either(writer.layout().regions(), memory.regions()))?;
        let staging = Staging::new(self.options.staging_bytes);
        let run = Run::new(self, source, &*memory, writer, &staging);
        storing(writer, &staging, || run.bring(copies))?;
        epoch.frames_scanned += copies.len() as u64;
        epoch.staging_wait += run.staging_wait();
        Ok(epoch)
    }

    fn commit_fed(
        &self,
        source: &dyn Source,
        epoch: Begun,
        taken_at: SystemTime,
    ) -> Result<EpochReport, CaptureError> {
        let Begun { since, mut writer, frames_scanned, staging_wait } = epoch;
        let memory = source.memory().map_err(|error| CaptureError::source(source, error))?;
        writer.lay_out(memory.regions())?;
        let registers = registers(source)?;
        let committing = Instant::now();
        let record = writer.commit(EpochMeta {
            taken_at_ns: nanoseconds(taken_at),
            source: source.spec(),
            restorable: registers.state.is_some(),
            vcpus: registers.vcpus,
            state: registers.state,
            ..EpochMeta::default()
        })?;
        let report = EpochReport {
            record,
            pause: None,
            frames_scanned,
            staging_wait,
            commit: committing.elapsed(),
            total: since.elapsed(),
        };
        self.observer.committed(&report);
        Ok(report)
    }

    /// The regions of the VM's latest epoch; none if it has no epochs.
    fn latest_regions(&self) -> Result<Vec<Region>, CaptureError> {
        let count = self.archive.epoch_count(self.vm).unwrap_or_default();
        let latest = count.checked_sub(1).map(|latest| self.archive.record(self.vm, latest)).transpose()?;
        Ok(latest.map(|record| record.regions).unwrap_or_default())
    }
}

/// The regions of all that is in one of two lists of regions, or in both.
fn either(one: &[Region], other: &[Region]) -> Vec<Region> {
    let mut all: Vec<Region> = one.iter().chain(other).copied().collect();
    all.sort_unstable_by_key(|region| region.start);
    let mut joined: Vec<Region> = Vec::with_capacity(all.len());
    for region in all {
        let end = |region: &Region| Gpa(region.start.0.saturating_add(region.len));
        match joined.last_mut() {
            Some(last) if region.start <= end(last) => {
                last.len = end(last).max(end(&region)).0 - last.start.0;
            }
            _ => joined.push(region),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_joined_where_they_meet() {
        let regions = |runs: &[(u64, u64)]| -> Vec<Region> {
            runs.iter().map(|(start, len)| Region { start: Gpa(*start), len: *len }).collect()
        };
        let (one, other) =
            (regions(&[(0, 4), (10, 2), (20, 10)]), regions(&[(2, 5), (7, 1), (12, 1), (22, 3)]));
        assert_eq!(either(&one, &other), regions(&[(0, 8), (10, 3), (20, 10)]));
        assert_eq!(either(&[], &other), either(&other, &[]));
    }
}
