//! The loop: an epoch every interval, a verdict for each, and what follows from it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use serde_json::json;
use varve_formats::{Gfn, Vcpu};
use varve_store::EpochRecord;

use super::control::{Control, Mode};
use super::error::GateError;
use super::event::{Event, Judged};
use super::judge::{Judge, Question};
use super::mirror::Mirror;
use super::settings::{Decision, Remedy, Verdict, decide};
use super::{GateEnd, Totals};
use crate::ingest::{History, Ingest, Manner, Witness};
use crate::schedule::Schedule;
use crate::session::Quiesce;
use crate::source::{Devices, GuestMemory, Source};
use crate::{CaptureError, EpochReport, SourceError};

/// From one look for an answer, or at the interrupt, to the next.
const LOOK: Duration = Duration::from_millis(20);

/// Longest wait for the last answer when the gate was told to stop: ten times as long as packets may wait, but no longer than this.
const PARTING: Duration = Duration::from_secs(20);

/// How often the source may fail in a row; then it is not by chance.
const FAILURES_MAX: u32 = 5;

/// How often at most the time for an answer is doubled.
const OVERDUE_MAX: u32 = 5;

/// Takes part in each epoch for the gate.
pub(super) struct Attendant<'a> {
    control: &'a Control<'a>,
    view: Mutex<View<'a>>,
}

/// What the scanner sees, and the scanner.
struct View<'a> {
    mirror: Option<Mirror>,
    judge: &'a mut dyn Judge,
    /// Why there will be no answer.
    missing: Option<String>,
    /// How many scanners have not answered in their time, less those that have since.
    overdue: u32,
}

impl<'a> Attendant<'a> {
    pub(super) fn new(control: &'a Control<'a>, judge: &'a mut dyn Judge) -> Self {
        Self { control, view: Mutex::new(View { mirror: None, judge, missing: None, overdue: 0 }) }
    }

    fn view(&self) -> MutexGuard<'_, View<'a>> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl View<'_> {
    /// Has an epoch looked at, which is what the mirror shows.
    fn ask(&mut self, epoch: u64, vcpus: &[Vcpu]) {
        self.missing = match &mut self.mirror {
            Some(mirror) => {
                let refused = self.judge.begin(&Question { epoch, mirror, vcpus }).err();
                if refused.is_none() {
                    mirror.shown();
                }
                refused
            }
            None => Some(self.missing.take().unwrap_or_else(|| "there is no copy of its memory".to_owned())),
        };
    }

    fn lose(&mut self, error: &std::io::Error) {
        self.mirror = None;
        self.missing = Some(format!("the memory for the scanner to look at: {error}"));
    }
}

impl Witness for Attendant<'_> {
    fn everything(&self, memory: &dyn GuestMemory) {
        let mut view = self.view();
        // Given back before the new one is made: both may not fit.
        view.mirror = None;
        match Mirror::of(memory) {
            Ok(mirror) => view.mirror = Some(mirror),
            Err(error) => view.lose(&error),
        }
    }

    fn held(&self) -> Result<(), SourceError> {
        Ok(self.control.close()?)
    }

    fn read(&self) {
        if let Err(error) = self.control.pass_inbound() {
            self.control.observer.event(&Event::Failed { what: &error.to_string() });
        }
    }

    fn changed(&self, memory: &dyn GuestMemory, frames: &[Gfn]) {
        let mut view = self.view();
        let updated = view.mirror.as_mut().map_or(Ok(()), |mirror| mirror.update(memory, frames));
        if let Err(error) = updated {
            view.lose(&error);
        }
    }

    fn taken(&self, number: u64, vcpus: &[Vcpu]) {
        self.view().ask(number, vcpus);
    }
}

/// The loop.
pub(super) struct Run<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) devices: &'a dyn Devices,
    pub(super) ingest: Ingest<'a>,
    pub(super) control: &'a Control<'a>,
    pub(super) attendant: &'a Attendant<'a>,
}

impl Run<'_> {
    /// Takes epochs until told to finish, the guest is bad, or something fails for good.
    pub(super) fn run(&self, epochs: Option<u64>, totals: &mut Totals) -> Result<GateEnd, GateError> {
        let settings = self.control.settings;
        let quiesce = Quiesce { suspend_every: settings.suspend_every };
        let (mut history, mut schedule) = (History::default(), Schedule::new(settings.interval));
        let begun = Instant::now();
        let (mut nth, mut failures) = (0, 0);
        while epochs.is_none_or(|epochs| totals.summary.epochs < epochs) && !self.ingest.interrupt.finish() {
            let began = begun.elapsed();
            self.control.hold_all(&self.devices.vifs()?)?;
            if self.attendant.view().mirror.is_none() {
                // All of memory is copied then.
                history = History::default();
            }
            let manner = Manner { suspend: quiesce.suspends(nth), taken_at: None };
            let taken = self.ingest.epoch(self.source, &manner, &mut history);
            for remark in self.source.take_remarks() {
                self.control.observer.event(&Event::Remark(&remark));
            }
            match taken {
                Ok(report) => {
                    (nth, failures) = (nth + 1, 0);
                    totals.summary.add(&report);
                    if let Some(end) = self.conclude(&report, totals)? {
                        return Ok(end);
                    }
                }
                Err(error) => {
                    self.attendant.view().judge.stop();
                    // Dropped because the gate was told to stop.
                    if matches!(error, CaptureError::Abandoned) {
                        break;
                    }
                    // That may take its time; who waits for packets is the policy's concern.
                    let saved = matches!(&error, CaptureError::Source { source: SourceError::Saved, .. });
                    failures = if saved { 0 } else { failures + 1 };
                    self.failed(error, failures, totals)?;
                }
            }
            self.wait(begun, schedule.next(began, begun.elapsed()).at);
        }
        Ok(GateEnd::Finished)
    }

    /// Decides what failed: whether it can be tried again.
    fn failed(&self, error: CaptureError, failures: u32, totals: &mut Totals) -> Result<(), GateError> {
        totals.summary.epochs_dropped += 1;
        let retry = match &error {
            CaptureError::Source { source, .. } => {
                !matches!(source, SourceError::Gone { .. }) && failures < FAILURES_MAX
            }
            _ => false,
        };
        let text = error.to_string();
        self.control.note("failed", &json!({ "what": text }))?;
        if !retry {
            return Err(error.into());
        }
        self.control.observer.event(&Event::Failed { what: &text });
        Ok(())
    }

    /// Waits for the verdict of an epoch that is durable, and does what follows from it.
    fn conclude(&self, report: &EpochReport, totals: &mut Totals) -> Result<Option<GateEnd>, GateError> {
        let epoch = report.record.number;
        let watching = self.control.mode() == Mode::Watching;
        self.control.note("durable", &json!({ "epoch": epoch }))?;
        let (verdict, scan) = self.verdict(&report.record)?;
        let condemned = decide(&verdict) == Decision::Condemn;
        if condemned {
            self.control.condemn();
        }
        let findings = match &verdict {
            Verdict::Bad(findings) => findings.clone(),
            Verdict::Incomplete(reason) | Verdict::Missing(reason) => vec![reason.clone()],
            Verdict::Passed => Vec::new(),
        };
        self.control
            .note("verdict", &json!({ "epoch": epoch, "verdict": verdict.name(), "because": findings }))?;
        let mut waited = None;
        if watching {
            // What it has sent so far was never held.
            match self.begin_holding() {
                // It is stopped all the same.
                Err(error) if condemned => {
                    self.control.observer.event(&Event::Failed { what: &error.to_string() });
                }
                other => other?,
            }
        }
        if decide(&verdict) == Decision::Release {
            waited = self.control.release(epoch)?;
            self.control.hold_new(&self.devices.vifs()?)?;
            self.control.go_on()?;
            totals.last_passed = Some(epoch);
            if report.record.restorable {
                totals.last_restorable = Some(epoch);
            }
        }
        if matches!(verdict, Verdict::Incomplete(_)) {
            self.control.look_again()?;
        }
        totals.count(&verdict, scan, waited);
        let held = self.control.statistics().unwrap_or_default();
        self.control.observer.event(&Event::Judged(Judged {
            report,
            verdict: &verdict,
            scan,
            waited,
            held: &held,
        }));
        match (&self.control.settings.on_finding, self.control.mode()) {
            _ if !condemned => Ok(None),
            (_, Mode::Quarantined | Mode::Frozen) => Ok(None),
            (Remedy::Quarantine(quarantine), Mode::Gating) => {
                self.control.quarantine(quarantine, &format!("findings in epoch {epoch}"))?;
                Ok(None)
            }
            // What is not held can be moved nowhere.
            (Remedy::Freeze, _) | (Remedy::Quarantine(_), Mode::Watching) => {
                self.control.freeze(epoch)?;
                Ok(Some(GateEnd::Frozen { epoch, findings }))
            }
        }
    }

    fn begin_holding(&self) -> Result<(), GateError> {
        self.control.begin_holding(&self.devices.vifs()?)
    }

    /// The verdict. When the scanner has died or takes too long, another looks at the same memory.
    fn verdict(&self, record: &EpochRecord) -> Result<(Verdict, Duration), GateError> {
        let answer = self.answer();
        let Verdict::Missing(reason) = &answer.0 else { return Ok(answer) };
        if self.ingest.interrupt.finish() {
            return Ok(answer);
        }
        self.control.note("failed", &json!({ "what": reason }))?;
        self.control.observer.event(&Event::Failed { what: reason });
        self.attendant.view().ask(record.number, &record.vcpus);
        Ok(self.answer())
    }

    /// The answer, when it is there; missing when the scanner takes too long. The next then has twice the time: a limit too short for
    /// this guest, or for the first look at it, would otherwise hold it for ever.
    fn answer(&self) -> (Verdict, Duration) {
        let begun = Instant::now();
        let mut view = self.attendant.view();
        if let Some(reason) = view.missing.take() {
            return (Verdict::Missing(reason), begun.elapsed());
        }
        let limit = self.control.settings.scan_limit.saturating_mul(1 << view.overdue.min(OVERDUE_MAX));
        let patience = self.control.settings.hold_budget.saturating_mul(10).min(PARTING);
        let mut told: Option<Instant> = None;
        loop {
            if let Some(answer) = view.judge.answer(Instant::now() + LOOK) {
                if !matches!(answer.0, Verdict::Missing(_)) {
                    view.overdue = view.overdue.saturating_sub(1);
                }
                return answer;
            }
            if told.is_none() && self.ingest.interrupt.finish() {
                told = Some(Instant::now());
            }
            let late = told.is_some_and(|told| told.elapsed() > patience);
            let reason = match begun.elapsed() > limit {
                true => "the scanner does not answer",
                false if late || self.ingest.interrupt.abandon() => "the gate was told to stop",
                false => continue,
            };
            view.overdue += 1;
            view.judge.stop();
            return (Verdict::Missing(reason.to_owned()), begun.elapsed());
        }
    }

    /// Waits until `at` (counted from `begun`), the interrupt, or the guest's being paused.
    fn wait(&self, begun: Instant, at: Duration) {
        while !self.ingest.interrupt.finish() {
            let left = at.saturating_sub(begun.elapsed());
            if left.is_zero() || self.control.wait(left.min(LOOK)) {
                return;
            }
        }
    }
}

/// Runs the loop with the guard beside it.
pub(super) fn guarded(run: &Run<'_>, epochs: Option<u64>, totals: &mut Totals) -> Result<GateEnd, GateError> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let guard = scope.spawn(|| super::guard::watch(run.control, run.devices, &done));
        let _end = Dismiss { done: &done, guard: guard.thread() };
        run.run(epochs, totals)
    })
}

/// Ends the guard's watch when dropped, also when the loop panicked: nobody waits for it in vain.
struct Dismiss<'a> {
    done: &'a AtomicBool,
    guard: &'a Thread,
}

impl Drop for Dismiss<'_> {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        self.guard.unpark();
    }
}
