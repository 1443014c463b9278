//! One epoch: from a source's memory to a durable record.
//!
//! ```text
//!  source ── scan (all cores) ──▶ staging queue ──▶ archive (dedupe, pack, compress) ──▶ commit
//!  held:     └──── pause ────┘    bounded bytes     behind the guest's back
//! ```
//! The first epoch of a run over a live guest copies everything that differs *before* the guest is held; held, only
//! what changed meanwhile is copied. A page that was copied early and changed again is in the archive for nothing,
//! until a later epoch holds it again.

mod held;
mod holes;
pub(crate) mod scan;
mod staging;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use varve_formats::{Gfn, PAGE_SIZE, Vcpu};
use varve_store::{Archive, Content, EpochMeta, EpochWriter, FrameChange, FrameLayout, StoreError};

use crate::report::{EpochReport, PauseSplit};
use crate::source::{Dirty, GuestMemory, Source};
use crate::{CaptureError, Interrupt, Observer, Options, SourceError};
use held::Held;
use scan::{Changes, Scanner, Window};
use staging::{Staging, Start};

/// Changes handed to the archive at a time.
const STORE_BATCH: usize = 4096;

/// What a run of epochs has in common.
pub(crate) struct Ingest<'a> {
    pub(crate) archive: &'a Archive,
    pub(crate) vm: &'a str,
    pub(crate) options: &'a Options,
    pub(crate) interrupt: &'a dyn Interrupt,
    pub(crate) observer: &'a dyn Observer,
}

/// What a source and the epochs taken of it have been through.
#[derive(Default)]
pub(crate) struct History {
    /// Whether an epoch of this run is in the archive, and none was dropped since: the source's dirty log then
    /// tells the difference to the archive.
    in_step: bool,
    /// Whether everything was copied once before the guest was held.
    copied_ahead: bool,
}

/// What was read of the source for an epoch.
struct Captured {
    taken_at: SystemTime,
    vcpus: Vec<Vcpu>,
    pause: Option<PauseSplit>,
    frames_scanned: u64,
    staging_wait: Duration,
}

impl Ingest<'_> {
    /// Captures one epoch and commits it. `taken_at` is for memory that was taken at another time than now.
    pub(crate) fn epoch(
        &self,
        source: &dyn Source,
        taken_at: Option<SystemTime>,
        history: &mut History,
    ) -> Result<EpochReport, CaptureError> {
        let begun = Instant::now();
        let in_step = std::mem::take(&mut history.in_step);
        let memory = source.memory().map_err(|error| CaptureError::source(source, error))?;
        let mut writer = self.archive.begin(self.vm, memory.regions())?;
        self.observer.epoch_begins(writer.number(), bytes_of(&*memory));
        let captured = self.capture(source, &*memory, &mut writer, in_step, history)?;
        if self.interrupt.abandon() {
            return Err(CaptureError::Abandoned);
        }
        let committing = Instant::now();
        let record = writer.commit(EpochMeta {
            taken_at_ns: nanoseconds(taken_at.unwrap_or(captured.taken_at)),
            source: source.spec(),
            vcpus: captured.vcpus,
            restorable: false,
        })?;
        history.in_step = true;
        let report = EpochReport {
            record,
            pause: captured.pause,
            frames_scanned: captured.frames_scanned,
            staging_wait: captured.staging_wait,
            commit: committing.elapsed(),
            total: begun.elapsed(),
        };
        self.observer.committed(&report);
        Ok(report)
    }

    /// Runs the scan here and the archive's part in a thread of its own.
    fn capture(
        &self,
        source: &dyn Source,
        memory: &dyn GuestMemory,
        writer: &mut EpochWriter,
        in_step: bool,
        history: &mut History,
    ) -> Result<Captured, CaptureError> {
        let layout = writer.layout().clone();
        let previous = Arc::clone(writer.previous());
        let staging = Staging::new(self.options.staging_bytes);
        let run = Run {
            ingest: self,
            source,
            memory,
            layout,
            staging: &staging,
            scanned: 0,
            waited: Duration::ZERO,
        };
        std::thread::scope(|scope| {
            let storing = scope.spawn(|| store_all(writer, &staging));
            let captured = run.capture(previous.digests(), in_step, history);
            match captured {
                Ok(_) => staging.finish(),
                Err(_) => staging.give_up(),
            }
            let stored = storing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // When the archive failed, all the scan knows is that it was cut off.
            stored?;
            captured
        })
    }
}

/// The scanning side of one epoch.
struct Run<'a> {
    ingest: &'a Ingest<'a>,
    source: &'a dyn Source,
    memory: &'a dyn GuestMemory,
    layout: FrameLayout,
    staging: &'a Staging,
    scanned: u64,
    waited: Duration,
}

impl Run<'_> {
    fn capture(
        mut self,
        previous: &[[u8; 32]],
        in_step: bool,
        history: &mut History,
    ) -> Result<Captured, CaptureError> {
        let Some(pause) = self.source.pause() else {
            let vcpus = self.vcpus()?;
            self.scan(previous, &Dirty::All, |_| {})?;
            return Ok(self.captured(SystemTime::now(), vcpus, None));
        };
        if history.copied_ahead {
            return self.hold(pause, previous, in_step);
        }
        let mut ahead = previous.to_vec();
        self.scan(previous, &Dirty::All, |changes| note(changes, &mut ahead))?;
        history.copied_ahead = true;
        self.hold(pause, &ahead, false)
    }

    /// Holds the guest, reads what there is to read, and lets it go.
    fn hold(
        mut self,
        pause: &dyn crate::source::Pause,
        previous: &[[u8; 32]],
        in_step: bool,
    ) -> Result<Captured, CaptureError> {
        self.staging.start(Start::WhenScanned);
        let mut watch = Stopwatch::start();
        let held = Held::take(pause).map_err(|error| self.failed(error))?;
        let taken_at = SystemTime::now();
        let mut split = PauseSplit { quiesce: watch.lap(), ..PauseSplit::default() };
        if let Some(reason) = held.others_reason() {
            let remark = format!("the guest stood still already ({reason}), and stays so");
            self.ingest.observer.remark(&remark);
        }
        let read = self.read_held(previous, in_step, &mut split, &mut watch);
        let released = held.release();
        split.resume = watch.lap();
        match (read, released) {
            (Ok(vcpus), Ok(())) => Ok(self.captured(taken_at, vcpus, Some(split))),
            (Err(first), Ok(()) | Err(SourceError::Disturbed)) => Err(first),
            (Ok(_), Err(SourceError::Disturbed)) => Err(self.failed(SourceError::Disturbed)),
            (_, Err(gone @ SourceError::Gone { .. })) => Err(self.failed(gone)),
            (first, Err(error)) => Err(CaptureError::LeftHeld {
                spec: self.source.spec(),
                first: first.err().map(Box::new),
                source: error,
            }),
        }
    }

    fn read_held(
        &mut self,
        previous: &[[u8; 32]],
        in_step: bool,
        split: &mut PauseSplit,
        watch: &mut Stopwatch,
    ) -> Result<Vec<Vcpu>, CaptureError> {
        // The log is taken in any case, so that the next one begins here.
        let dirty = match self.source.dirty_log().map(|log| log.take()).transpose() {
            Ok(Some(dirty)) if in_step => dirty,
            Ok(_) => Dirty::All,
            Err(error) => return Err(self.failed(error)),
        };
        split.dirty = watch.lap();
        self.scan(previous, &dirty, |_| {})?;
        split.scan = watch.lap();
        let vcpus = self.vcpus()?;
        split.registers = watch.lap();
        Ok(vcpus)
    }

    /// Compares the frames that may be dirty and queues what differs; `see` sees it first.
    fn scan(
        &mut self,
        previous: &[[u8; 32]],
        dirty: &Dirty,
        mut see: impl FnMut(&Changes),
    ) -> Result<(), CaptureError> {
        let frames = match dirty {
            Dirty::All => None,
            Dirty::Frames(frames) => Some(self.numbers(frames)),
        };
        let mut scanner = Scanner::new(self.memory, previous, frames.as_deref());
        for block in scan::blocks(self.memory.regions()) {
            if self.ingest.interrupt.abandon() {
                return Err(CaptureError::Abandoned);
            }
            let bytes: u64 = block.iter().map(Window::len).sum();
            let changes = scanner.scan(&block);
            changes.iter().for_each(&mut see);
            self.scanned += bytes / PAGE_SIZE as u64;
            self.waited += self.staging.push(changes).map_err(|_| CaptureError::Abandoned)?;
            self.ingest.observer.scanned(bytes);
        }
        Ok(())
    }

    /// The numbers of frames that may be dirty, ascending.
    fn numbers(&self, frames: &[Gfn]) -> Vec<u64> {
        let mut numbers: Vec<u64> = frames.iter().filter_map(|gfn| self.layout.frame(*gfn)).collect();
        numbers.sort_unstable();
        numbers
    }

    fn vcpus(&self) -> Result<Vec<Vcpu>, CaptureError> {
        let registers = self.source.registers();
        registers.map_or(Ok(Vec::new()), |registers| registers.vcpus()).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: SourceError) -> CaptureError {
        CaptureError::source(self.source, error)
    }

    fn captured(self, taken_at: SystemTime, vcpus: Vec<Vcpu>, pause: Option<PauseSplit>) -> Captured {
        Captured { taken_at, vcpus, pause, frames_scanned: self.scanned, staging_wait: self.waited }
    }
}

/// Enters what was copied into a table of digests.
pub(crate) fn note(changes: &Changes, table: &mut [[u8; 32]]) {
    for change in changes.iter() {
        let slot = usize::try_from(change.frame).ok().and_then(|frame| table.get_mut(frame));
        if let Some(slot) = slot {
            *slot = match change.content {
                Content::Zero => varve_store::Digest::ZERO.0,
                Content::Absent => varve_store::Digest::ABSENT.0,
                Content::Page { digest, .. } => digest.0,
            };
        }
    }
}

/// The archive's side: stores what is queued until nothing more comes.
fn store_all(writer: &mut EpochWriter, staging: &Staging) -> Result<(), StoreError> {
    while let Some(block) = staging.pop() {
        let changes: Vec<FrameChange<'_>> = block.iter().flat_map(Changes::iter).collect();
        let stored = changes.chunks(STORE_BATCH).try_for_each(|batch| writer.store(batch));
        drop(changes);
        staging.release(block);
        if let Err(error) = stored {
            staging.give_up();
            return Err(error);
        }
    }
    Ok(())
}

struct Stopwatch(Instant);

impl Stopwatch {
    fn start() -> Self {
        Self(Instant::now())
    }

    /// The time since the start or the last lap.
    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        let lap = now.duration_since(self.0);
        self.0 = now;
        lap
    }
}

fn bytes_of(memory: &dyn GuestMemory) -> u64 {
    memory.regions().iter().map(|region| region.len).sum()
}

/// Nanoseconds since 1970-01-01 UTC.
pub(crate) fn nanoseconds(time: SystemTime) -> i64 {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => {
            i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |nanoseconds| -nanoseconds)
        }
    }
}
