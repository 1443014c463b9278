//! The side of an epoch that reads the source.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use varve_formats::{Gfn, PAGE_SIZE, Region};
use varve_store::{EpochWriter, FrameLayout};

use super::changes::Changes;
use super::copies::Copies;
use super::held::Held;
use super::rounds::Rounds;
use super::scan::Scanner;
use super::staging::{Staging, Start};
use super::{History, Ingest, Witness};
use crate::report::PauseSplit;
use crate::source::{Dirty, DirtyLog, GuestMemory, Pause, Remainder, Source};
use crate::{CaptureError, SourceError};

/// How often what devices wrote to meanwhile is copied again before it is given up as residue.
const SETTLE_ROUNDS: usize = 8;

/// What was read of the source for an epoch.
pub(crate) struct Captured {
    pub(crate) taken_at: SystemTime,
    pub(crate) registers: Remainder,
    /// Frames that were not quiet.
    pub(crate) residue: Vec<Region>,
    pub(crate) restorable: bool,
    /// What the snapshot of its disks is called.
    pub(crate) disk_snapshot: Option<String>,
    pub(crate) pause: Option<PauseSplit>,
    pub(crate) frames_scanned: u64,
    pub(crate) staging_wait: Duration,
}

/// What was read while the guest was held.
struct Read {
    registers: Remainder,
    /// Frames that were not quiet.
    residue: Vec<Region>,
    /// Whether there are copies that are still to be compared.
    copied: bool,
    /// What they were copied from.
    anew: Vec<Box<dyn GuestMemory>>,
}

/// Reads the source for one epoch.
pub(crate) struct Run<'a> {
    ingest: &'a Ingest<'a>,
    source: &'a dyn Source,
    memory: &'a dyn GuestMemory,
    layout: FrameLayout,
    /// The number the epoch will have.
    number: u64,
    staging: &'a Staging,
    frames_scanned: AtomicU64,
    staging_wait_ns: AtomicU64,
}

impl<'a> Run<'a> {
    pub(crate) fn new(
        ingest: &'a Ingest<'a>,
        source: &'a dyn Source,
        memory: &'a dyn GuestMemory,
        writer: &EpochWriter,
        staging: &'a Staging,
    ) -> Self {
        let (frames_scanned, staging_wait_ns) = Default::default();
        let (layout, number) = (writer.layout().clone(), writer.number());
        Self { ingest, source, memory, layout, number, staging, frames_scanned, staging_wait_ns }
    }

    /// Queues what differs from `previous`; of a live guest, while it is held or has suspended itself.
    pub(crate) fn capture(
        self,
        previous: &[[u8; 32]],
        in_step: bool,
        suspend: bool,
        history: &mut History,
    ) -> Result<Captured, CaptureError> {
        let pause = if suspend { self.source.suspend() } else { self.source.pause() };
        let Some(pause) = pause else {
            let registers = self.registers()?;
            self.scan(self.memory, previous, &Dirty::All, |_| {})?;
            // What does not change by itself was suspended when it was saved.
            let restorable = registers.state.is_some();
            return Ok(Captured { restorable, ..self.captured(SystemTime::now(), registers, None) });
        };
        let log = self.source.dirty_log();
        // Without a log every epoch compares everything, so that a copy ahead serves the first only.
        if history.copied_ahead && (in_step || log.is_none()) {
            let unsaid = match log {
                Some(_) => self.unsaid(previous, &mut history.rounds)?,
                None => Vec::new(),
            };
            return self.hold(pause, suspend, previous, in_step, &unsaid, &mut history.copies);
        }
        // The log is to tell what is written from here on.
        log.map(|log| self.logged(log.take())).transpose()?;
        self.tell(|witness| witness.everything(self.memory));
        let ahead = Mutex::new(previous.to_vec());
        let enter = |changes: &Changes| {
            changes.enter(&mut ahead.lock().unwrap_or_else(PoisonError::into_inner));
        };
        self.scan(self.memory, previous, &Dirty::All, enter)?;
        // What is copied from now on replaces what was copied so far.
        self.staging.drain().map_err(|_| CaptureError::Abandoned)?;
        history.copied_ahead = true;
        let ahead = ahead.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.hold(pause, suspend, &ahead, log.is_some(), &[], &mut history.copies)
    }

    /// Frames that hold something else than in the epoch before, among those whose turn it is; the log may tell of them or not. The
    /// guest runs meanwhile.
    fn unsaid(&self, previous: &[[u8; 32]], rounds: &mut Rounds) -> Result<Vec<Gfn>, CaptureError> {
        let numbers = rounds.next(self.layout.frames(), self.ingest.options.recheck_epochs);
        let frames: Vec<Gfn> = numbers.iter().filter_map(|number| self.layout.gfn(*number)).collect();
        let mut kept = Vec::new();
        let memory = self.anew(&frames, &mut kept)?;
        let differing = Mutex::new(Vec::new());
        Scanner { memory, previous, dirty: Some(&numbers) }.run(|_, changes| {
            let found = changes.frames.iter().filter_map(|(number, _)| self.layout.gfn(*number));
            differing.lock().unwrap_or_else(PoisonError::into_inner).extend(found);
            ControlFlow::Continue(())
        });
        Ok(differing.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Queues copies of frames that a source was fed. What they held before is not looked at: the archive finds out when it
    /// asks for their digests.
    pub(crate) fn bring(&self, copies: &mut Copies) -> Result<(), CaptureError> {
        let frames = Dirty::Frames(copies.frames());
        self.scan(&copies.as_memory(self.layout.regions()), &[], &frames, |_| {})
    }

    /// How long queueing has waited for the archive, summed over the threads.
    pub(crate) fn staging_wait(&self) -> Duration {
        Duration::from_nanos(self.staging_wait_ns.load(Ordering::Relaxed))
    }

    /// Holds the guest, reads what there is to read, and lets it go. `in_step`: the log tells the difference to
    /// `previous`, but for that in the frames `unsaid`.
    fn hold(
        self,
        pause: &dyn Pause,
        suspend: bool,
        previous: &[[u8; 32]],
        in_step: bool,
        unsaid: &[Gfn],
        copies: &mut Copies,
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
        let suspended = suspend && held.others_reason().is_none();
        let begun = self.ingest.witness.map_or(Ok(()), |witness| witness.held());
        split.output = watch.lap();
        let read = begun.map_err(|error| self.failed(error));
        let read =
            read.and_then(|()| self.read_held(previous, in_step, unsaid, copies, &mut split, &mut watch));
        let disk_snapshot = self.snapshot_disks(suspended && read.is_ok());
        split.disks = watch.lap();
        self.tell(|witness| witness.read());
        let released = held.release();
        split.resume = watch.lap();
        let read = match (read, released) {
            (Ok(read), Ok(())) => read,
            (Err(first), Ok(()) | Err(SourceError::Disturbed)) => return Err(first),
            (Ok(_), Err(SourceError::Disturbed)) => return Err(self.failed(SourceError::Disturbed)),
            (_, Err(gone @ SourceError::Gone { .. })) => return Err(self.failed(gone)),
            (first, Err(error)) => {
                return Err(CaptureError::LeftHeld {
                    spec: self.source.spec(),
                    first: first.err().map(Box::new),
                    source: error,
                });
            }
        };
        self.staging.start(Start::AtOnce);
        drop(read.anew);
        let frames = read.copied.then(|| copies.frames());
        let copies = copies.as_memory(self.memory.regions());
        if let Some(frames) = &frames {
            self.tell(|witness| witness.changed(&copies, frames));
        }
        self.tell(|witness| witness.taken(self.number, &read.registers.vcpus));
        if let Some(frames) = frames {
            self.scan(&copies, previous, &Dirty::Frames(frames), |_| {})?;
        }
        let restorable = suspended && read.registers.state.is_some();
        let captured = self.captured(taken_at, read.registers, Some(split));
        Ok(Captured { residue: read.residue, restorable, disk_snapshot, ..captured })
    }

    fn read_held(
        &self,
        previous: &[[u8; 32]],
        in_step: bool,
        unsaid: &[Gfn],
        copies: &mut Copies,
        split: &mut PauseSplit,
        watch: &mut Stopwatch,
    ) -> Result<Read, CaptureError> {
        let log = self.source.dirty_log();
        // The log is taken in any case, so that the next one begins here.
        let mut dirty = log.map(|log| self.logged(log.take())).transpose()?;
        if let Some(Dirty::Frames(frames)) = &mut dirty
            && !unsaid.is_empty()
        {
            frames.extend(unsaid);
            frames.sort_unstable();
            frames.dedup();
        }
        split.dirty = watch.lap();
        let (mut residue, mut copied, mut anew) = (Vec::new(), false, Vec::new());
        match (log, dirty) {
            (Some(log), Some(Dirty::Frames(frames))) if in_step && self.can_copy(&frames) => {
                copied = true;
                copies.take(self.anew(&frames, &mut anew)?, &frames);
                residue = self.settle(log, copies, &mut anew)?;
                split.copy = watch.lap();
            }
            (_, Some(Dirty::Frames(frames))) if in_step => {
                let memory = self.anew(&frames, &mut anew)?;
                self.tell(|witness| witness.changed(memory, &frames));
                self.scan(memory, previous, &Dirty::Frames(frames), |_| {})?;
            }
            _ => {
                self.tell(|witness| witness.everything(self.memory));
                self.scan(self.memory, previous, &Dirty::All, |_| {})?;
            }
        }
        split.scan = watch.lap();
        let registers = self.registers()?;
        split.registers = watch.lap();
        Ok(Read { registers, residue, copied, anew })
    }

    /// Memory that shows what lies at these frame numbers now. It is kept in `kept`: to take it away takes time that a held guest
    /// need not wait for.
    fn anew<'m>(
        &'m self,
        frames: &[Gfn],
        kept: &'m mut Vec<Box<dyn GuestMemory>>,
    ) -> Result<&'m dyn GuestMemory, CaptureError> {
        kept.extend(self.memory.anew(frames).map_err(|error| self.failed(error))?);
        Ok(kept.last().map_or(self.memory, |memory| &**memory))
    }

    fn tell(&self, what: impl FnOnce(&dyn Witness)) {
        if let Some(witness) = self.ingest.witness {
            what(witness);
        }
    }

    /// Runs the user's command for snapshots of disks, if the guest has brought them in order by suspending itself.
    /// Without a snapshot the epoch is still worth having.
    fn snapshot_disks(&self, suspended: bool) -> Option<String> {
        let hook = self.ingest.options.disk_snapshot.as_ref().filter(|_| suspended)?;
        let taken = hook.run(&[("VARVE_VM", self.ingest.vm), ("VARVE_SOURCE", &self.source.spec())]);
        taken.map_err(|error| self.ingest.observer.remark(&error.to_string())).ok()
    }

    /// Whether copies of these frames take no more memory than may wait for the archive.
    fn can_copy(&self, frames: &[Gfn]) -> bool {
        frames.len() <= self.ingest.options.staging_bytes / PAGE_SIZE
    }

    /// Copies what devices write to until nothing changes; returns what did not come to rest.
    fn settle(
        &self,
        log: &dyn DirtyLog,
        copies: &mut Copies,
        anew: &mut Vec<Box<dyn GuestMemory>>,
    ) -> Result<Vec<Region>, CaptureError> {
        for _ in 0..SETTLE_ROUNDS {
            if self.written(log)?.is_empty() {
                return Ok(Vec::new());
            }
            if let Dirty::Frames(frames) = self.logged(log.take())? {
                copies.again(self.anew(&frames, anew)?, &frames);
            }
        }
        self.written(log).map(|frames| runs(&frames))
    }

    /// The frames written to since the log was taken.
    fn written(&self, log: &dyn DirtyLog) -> Result<Vec<Gfn>, CaptureError> {
        match self.logged(log.peek())? {
            Dirty::Frames(frames) => Ok(frames),
            Dirty::All => Err(self.failed(SourceError::Protocol {
                doing: "reading the dirty log again".to_owned(),
                reason: "it has lost what it knew".to_owned(),
            })),
        }
    }

    fn logged(&self, dirty: Result<Dirty, SourceError>) -> Result<Dirty, CaptureError> {
        dirty.map_err(|error| self.failed(error))
    }

    /// Compares the frames that may be dirty and queues what differs; `see` sees it first.
    fn scan(
        &self,
        memory: &dyn GuestMemory,
        previous: &[[u8; 32]],
        dirty: &Dirty,
        see: impl Fn(&Changes) + Sync,
    ) -> Result<(), CaptureError> {
        let numbers = match dirty {
            Dirty::All => None,
            Dirty::Frames(frames) => Some(self.numbers(frames)),
        };
        let broken = Mutex::new(None);
        let scanner = Scanner { memory, previous, dirty: numbers.as_deref() };
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

    fn registers(&self) -> Result<Remainder, CaptureError> {
        registers(self.source)
    }

    fn failed(&self, error: SourceError) -> CaptureError {
        CaptureError::source(self.source, error)
    }

    fn captured(self, taken_at: SystemTime, registers: Remainder, pause: Option<PauseSplit>) -> Captured {
        let staging_wait = self.staging_wait();
        let frames_scanned = self.frames_scanned.into_inner();
        let (residue, restorable, disk_snapshot) = Default::default();
        Captured {
            taken_at,
            registers,
            residue,
            restorable,
            disk_snapshot,
            pause,
            frames_scanned,
            staging_wait,
        }
    }
}

/// What a source has beside memory, if it can be read.
pub(crate) fn registers(source: &dyn Source) -> Result<Remainder, CaptureError> {
    let read = source.registers().map(|registers| registers.read()).transpose();
    read.map(Option::unwrap_or_default).map_err(|error| CaptureError::source(source, error))
}

/// Frames, ascending, as runs.
fn runs(frames: &[Gfn]) -> Vec<Region> {
    let mut runs: Vec<Region> = Vec::new();
    for at in frames.iter().filter_map(|gfn| gfn.gpa()) {
        match runs.last_mut() {
            Some(run) if run.end() == Some(at) => run.len += PAGE_SIZE as u64,
            _ => runs.push(Region { start: at, len: PAGE_SIZE as u64 }),
        }
    }
    runs
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
