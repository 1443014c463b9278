//! The capture of a live guest: an epoch every interval, until told to stop.

use std::time::{Duration, Instant};

use varve_store::Archive;

use crate::ingest::{Copies, History, Ingest, Manner};
use crate::schedule::Schedule;
use crate::source::{Feed, Source};
use crate::{CaptureError, Ended, Interrupt, Observer, Options, SourceError};

/// Longest time between two looks at the interrupt while waiting for the next epoch.
const LOOK_UP: Duration = Duration::from_millis(50);

/// Time between two looks at the guest meanwhile.
const LOOK_OUT: Duration = Duration::from_secs(1);

/// When epochs are taken, and how many.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// From the start of one epoch to the start of the next; zero for one right after the other.
    pub interval: Duration,
    /// How many; `None` until interrupted.
    pub epochs: Option<u64>,
    /// How the guest is held.
    pub quiesce: Quiesce,
}

impl Plan {
    /// Epochs every `interval`, for which the guest is paused.
    pub fn every(interval: Duration, epochs: Option<u64>) -> Self {
        Self { interval, epochs, quiesce: Quiesce::default() }
    }
}

/// How a guest is held for an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quiesce {
    /// For every so many epochs, beginning with the first, the guest suspends itself: 1 for each, 0 for none. For the
    /// others it is paused, which is quicker, but no guest can be started from them.
    pub suspend_every: u64,
}

impl Quiesce {
    /// Whether the guest is to suspend itself for the n-th epoch, from 0.
    pub(crate) fn suspends(self, nth: u64) -> bool {
        self.suspend_every > 0 && nth.is_multiple_of(self.suspend_every)
    }
}

/// Captures epochs of `source` as `vm` into the archive.
///
/// Epochs never overlap: one that takes longer than the interval makes the next one late, and says so. Each
/// is either committed or dropped as a whole; what was committed before something fails stays, and the guest runs.
pub fn capture(
    source: &dyn Source,
    archive: &Archive,
    vm: &str,
    plan: &Plan,
    options: &Options,
    interrupt: &dyn Interrupt,
    observer: &dyn Observer,
) -> Ended {
    let ingest = Ingest { archive, vm, options, interrupt, observer, witness: None };
    let mut ended = Ended::default();
    if plan.quiesce.suspend_every > 0 && source.suspend().is_none() {
        ended.fail(CaptureError::source(source, SourceError::Unsuitable { reason: source.no_suspend() }));
        return ended;
    }
    if let Some(feed) = source.feed() {
        follow(source, feed, &ingest, plan, &mut ended);
        return ended;
    }
    let mut history = History::default();
    let mut schedule = Schedule::new(plan.interval);
    let begun = Instant::now();
    // Why epochs were, as it was said, since the last that was not.
    let mut dropped = String::new();
    while plan.epochs.is_none_or(|epochs| ended.summary.epochs < epochs) && !interrupt.finish() {
        let began = begun.elapsed();
        let suspend = plan.quiesce.suspends(ended.summary.epochs);
        let taken = ingest.epoch(source, &Manner { suspend, taken_at: None }, &mut history);
        source.take_remarks().iter().for_each(|remark| observer.remark(remark));
        match taken {
            Ok(report) => {
                dropped.clear();
                ended.summary.add(&report);
            }
            Err(CaptureError::Source {
                source: error @ (SourceError::Disturbed | SourceError::Relaid | SourceError::Saved),
                ..
            }) => {
                ended.summary.epochs_dropped += 1;
                let said = std::mem::replace(&mut dropped, format!("epoch dropped: {error}"));
                if said != dropped {
                    observer.remark(&dropped);
                }
            }
            Err(error) => {
                ended.fail(error);
                break;
            }
        }
        if plan.epochs == Some(ended.summary.epochs) {
            break;
        }
        let next = schedule.next(began, begun.elapsed());
        if next.missed > 0 {
            ended.summary.ticks_missed += next.missed;
            observer.remark(&late(next.missed, plan.interval));
        }
        if let Err(error) = wait(source, begun, next.at, interrupt) {
            ended.fail(CaptureError::source(source, error));
            break;
        }
    }
    ended
}

/// Takes epochs as a source is fed them: when, is for whoever feeds it to say.
fn follow(source: &dyn Source, feed: &dyn Feed, ingest: &Ingest<'_>, plan: &Plan, ended: &mut Ended) {
    let mut copies = Copies::default();
    while plan.epochs.is_none_or(|epochs| ended.summary.epochs < epochs) {
        let taken = ingest.fed_epoch(source, feed, &mut copies);
        source.take_remarks().iter().for_each(|remark| ingest.observer.remark(remark));
        match taken {
            Ok(Some(report)) => ended.summary.add(&report),
            Ok(None) => break,
            Err(error) => {
                ended.fail(error);
                break;
            }
        }
    }
}

fn late(missed: u64, interval: Duration) -> String {
    let times = if missed == 1 { "once".to_owned() } else { format!("{missed} times") };
    format!(
        "the last epoch took longer than the interval of {interval:?}: the next is late, {times} nothing was taken"
    )
}

/// Waits until `at` (counted from `begun`), the interrupt, or somebody's wanting an epoch; as long as the guest is there.
fn wait(
    source: &dyn Source,
    begun: Instant,
    at: Duration,
    interrupt: &dyn Interrupt,
) -> Result<(), SourceError> {
    let mut looked = Instant::now();
    while !interrupt.finish() {
        let left = at.saturating_sub(begun.elapsed());
        if left.is_zero() || interrupt.hurry() {
            break;
        }
        std::thread::sleep(left.min(LOOK_UP));
        if looked.elapsed() >= LOOK_OUT {
            looked = Instant::now();
            source.is_there()?;
        }
    }
    Ok(())
}
