//! One epoch: from a source's memory to a durable record.
//!
//! ```text
//!  source ── scan (all cores) ──▶ staging queue ──▶ archive (dedupe, pack, compress) ──▶ commit
//!  held:     └──── pause ────┘    bounded bytes     behind the guest's back
//! ```
//! The first epoch of a run over a live guest copies everything that differs *before* the guest is held; held, only
//! what changed meanwhile is copied. A page that was copied early and changed again is in the archive for nothing,
//! until a later epoch holds it again.
//!
//! A source that tells which frames were written to is held only until those are copied ([`copies`]); the scan then
//! compares the copies, while the guest runs. Some frames are compared in any case, in turn ([`rounds`]).
//!
//! Nothing is read of a source that is [fed](crate::source::Feed): what comes is copied, scanned and stored piece by piece.

mod changes;
mod copies;
mod fed;
mod held;
mod holes;
mod rounds;
mod run;
pub(crate) mod scan;
mod staging;
mod window;
mod witness;

use std::sync::{Arc, Weak};
use std::time::{Instant, SystemTime};

use varve_store::{Archive, EpochMeta, EpochWriter, FrameChange, StoreError};

use crate::report::EpochReport;
use crate::source::{GuestMemory, Source};
use crate::{CaptureError, Interrupt, Observer, Options};
use changes::Changes;
pub(crate) use copies::Copies;
use rounds::Rounds;
use run::{Captured, Run};
use staging::Staging;
pub(crate) use witness::Witness;

/// What a run of epochs has in common.
pub(crate) struct Ingest<'a> {
    pub(crate) archive: &'a Archive,
    pub(crate) vm: &'a str,
    pub(crate) options: &'a Options,
    pub(crate) interrupt: &'a dyn Interrupt,
    pub(crate) observer: &'a dyn Observer,
    /// Who takes part in every epoch.
    pub(crate) witness: Option<&'a dyn Witness>,
}

/// How an epoch is taken.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manner {
    /// Whether the guest is to suspend itself.
    pub(crate) suspend: bool,
    /// For memory that was taken at another time than now.
    pub(crate) taken_at: Option<SystemTime>,
}

/// What a source and the epochs taken of it have been through.
#[derive(Default)]
pub(crate) struct History {
    /// Whether an epoch of this run is in the archive, and none was dropped since: the source's dirty log then tells
    /// the difference to the archive.
    in_step: bool,
    /// The memory as it was laid out for the epoch before, if the source still has it so. The dirty log tells nothing of what was not
    /// in it.
    memory: Option<Weak<dyn GuestMemory>>,
    /// Whether everything was copied once before the guest was held.
    copied_ahead: bool,
    copies: Copies,
    rounds: Rounds,
}

impl Ingest<'_> {
    /// Captures one epoch and commits it.
    pub(crate) fn epoch(
        &self,
        source: &dyn Source,
        manner: &Manner,
        history: &mut History,
    ) -> Result<EpochReport, CaptureError> {
        let begun = Instant::now();
        let in_step = std::mem::take(&mut history.in_step);
        if !in_step {
            source.forget_memory();
        }
        let memory = source.memory().map_err(|error| CaptureError::source(source, error))?;
        let now = Arc::downgrade(&memory);
        let in_step = in_step && history.memory.as_ref().is_some_and(|known| Weak::ptr_eq(known, &now));
        history.memory = Some(now);
        let mut writer = self.archive.begin(self.vm, memory.regions())?;
        let bytes = memory.regions().iter().map(|region| region.len).sum();
        self.observer.epoch_begins(writer.number(), bytes);
        let captured = self.capture(source, &*memory, &mut writer, in_step, manner.suspend, history)?;
        if self.interrupt.abandon() {
            return Err(CaptureError::Abandoned);
        }
        let committing = Instant::now();
        let record = writer.commit(EpochMeta {
            taken_at_ns: nanoseconds(manner.taken_at.unwrap_or(captured.taken_at)),
            source: source.spec(),
            vcpus: captured.registers.vcpus,
            residue: captured.residue,
            state: captured.registers.state,
            restorable: captured.restorable,
            disk_snapshot: captured.disk_snapshot,
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

    /// Reads the source and has the archive store what differs.
    fn capture(
        &self,
        source: &dyn Source,
        memory: &dyn GuestMemory,
        writer: &mut EpochWriter,
        in_step: bool,
        suspend: bool,
        history: &mut History,
    ) -> Result<Captured, CaptureError> {
        let staging = Staging::new(self.options.staging_bytes);
        let run = Run::new(self, source, memory, writer, &staging);
        let previous = Arc::clone(writer.previous());
        storing(writer, &staging, || run.capture(previous.digests(), in_step, suspend, history))
    }
}

/// Runs what fills the queue, and in a thread of its own the archive's part.
fn storing<T>(
    writer: &mut EpochWriter,
    staging: &Staging,
    fill: impl FnOnce() -> Result<T, CaptureError>,
) -> Result<T, CaptureError> {
    std::thread::scope(|scope| {
        let storing = scope.spawn(|| store_all(writer, staging));
        let filled = {
            let _end = GiveUp(staging);
            let filled = fill();
            if filled.is_ok() {
                staging.finish();
            }
            filled
        };
        let stored = storing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // When the archive failed, all the scan knows is that it was cut off.
        stored?;
        filled
    })
}

/// Gives up when dropped, unless all has been queued: nobody waits for a scan that failed or panicked.
struct GiveUp<'a>(&'a Staging);

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// The archive's side: stores what is queued until nothing more comes.
fn store_all(writer: &mut EpochWriter, staging: &Staging) -> Result<(), StoreError> {
    let _end = GiveUp(staging);
    while let Some(batch) = staging.pop() {
        let changes: Vec<FrameChange<'_>> = batch.iter().flat_map(Changes::iter).collect();
        let stored = writer.store(&changes);
        drop(changes);
        staging.release(batch);
        stored?;
    }
    Ok(())
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
