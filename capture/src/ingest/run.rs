//! The side of an epoch that reads the source.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use varve_formats::{Gfn, Vcpu};
use varve_store::FrameLayout;

use super::changes::Changes;
use super::held::Held;
use super::scan::Scanner;
use super::staging::{Staging, Start};
use super::{History, Ingest};
use crate::report::PauseSplit;
use crate::source::{Dirty, GuestMemory, Pause, Source};
use crate::{CaptureError, SourceError};

/// What was read of the source for an epoch.
pub(crate) struct Captured {
    pub(crate) taken_at: SystemTime,
    pub(crate) vcpus: Vec<Vcpu>,
    pub(crate) pause: Option<PauseSplit>,
    pub(crate) frames_scanned: u64,
    pub(crate) staging_wait: Duration,
}

/// Reads the source for one epoch.
pub(crate) struct Run<'a> {
    ingest: &'a Ingest<'a>,
    source: &'a dyn Source,
    memory: &'a dyn GuestMemory,
    layout: FrameLayout,
    staging: &'a Staging,
    frames_scanned: AtomicU64,
    staging_wait_ns: AtomicU64,
}

impl<'a> Run<'a> {
    pub(crate) fn new(
        ingest: &'a Ingest<'a>,
        source: &'a dyn Source,
        memory: &'a dyn GuestMemory,
        layout: FrameLayout,
        staging: &'a Staging,
    ) -> Self {
        let (frames_scanned, staging_wait_ns) = Default::default();
        Self { ingest, source, memory, layout, staging, frames_scanned, staging_wait_ns }
    }

    /// Queues what differs from `previous`; of a live guest, while it is held.
    pub(crate) fn capture(
        self,
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
        let ahead = Mutex::new(previous.to_vec());
        let enter = |changes: &Changes| {
            changes.enter(&mut ahead.lock().unwrap_or_else(PoisonError::into_inner));
        };
        self.scan(previous, &Dirty::All, enter)?;
        // What is copied from now on replaces what was copied so far.
        self.staging.drain().map_err(|_| CaptureError::Abandoned)?;
        history.copied_ahead = true;
        self.hold(pause, &ahead.into_inner().unwrap_or_else(PoisonError::into_inner), false)
    }

    /// Holds the guest, reads what there is to read, and lets it go.
    fn hold(self, pause: &dyn Pause, previous: &[[u8; 32]], in_step: bool) -> Result<Captured, CaptureError> {
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
        &self,
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
        &self,
        previous: &[[u8; 32]],
        dirty: &Dirty,
        see: impl Fn(&Changes) + Sync,
    ) -> Result<(), CaptureError> {
        let numbers = match dirty {
            Dirty::All => None,
            Dirty::Frames(frames) => Some(self.numbers(frames)),
        };
        let broken = Mutex::new(None);
        let scanner = Scanner { memory: self.memory, previous, dirty: numbers.as_deref() };
        scanner.run(|window, changes| {
            see(&changes);
            match self.queue(changes) {
                Ok(()) => {
                    self.frames_scanned.fetch_add(window.frames, Ordering::Relaxed);
                    self.ingest.observer.scanned(window.len());
                    ControlFlow::Continue(())
                }
                Err(error) => {
                    *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    ControlFlow::Break(())
                }
            }
        });
        broken.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    fn queue(&self, changes: Changes) -> Result<(), CaptureError> {
        if self.ingest.interrupt.abandon() {
            return Err(CaptureError::Abandoned);
        }
        // When the archive has given up, its own error is the one that is told.
        let waited = self.staging.push(changes).map_err(|_| CaptureError::Abandoned)?;
        let waited_ns = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.staging_wait_ns.fetch_add(waited_ns, Ordering::Relaxed);
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
        let staging_wait = Duration::from_nanos(self.staging_wait_ns.into_inner());
        Captured { taken_at, vcpus, pause, frames_scanned: self.frames_scanned.into_inner(), staging_wait }
    }
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
