//! Removing an output buffer. At each step packets are held, dropped or passed as wanted in the end; the ifb goes last, as
//! the mark of what is not finished.

use std::time::Duration;

use rustix::io::Errno;

use super::buffer::plug_of;
use super::install::Entry;
use super::netlink::Refusal;
use super::step::{Answer, Kernel, Step};
use super::{Failure, Traffic};

/// How often, and how long each time, to wait for a released queue to run empty: a second in all.
const DRAIN_TRIES: u32 = 100;
const DRAIN_PAUSE: Duration = Duration::from_millis(10);

/// Removes all of `entries`, and keeps those of which something stayed.
pub(super) fn remove(kernel: &mut dyn Kernel, entries: &mut Vec<Entry>) -> Vec<Failure> {
    let mut failed = Vec::new();
    // What was released has a right to arrive; everything else is dropped from here on.
    stage(kernel, entries, &mut failed, |entry| match entry.traffic {
        Traffic::Released => None,
        _ => Some(Step::Down { link: entry.ifb_link }),
    });
    stage(kernel, entries, &mut failed, |entry| {
        entry.vif_link.filter(|_| entry.inbound).map(|link| Step::RemovePlug { link })
    });
    stage(kernel, entries, &mut failed, |entry| {
        entry.vif_link.filter(|_| entry.hooked).map(|link| Step::RemoveIngress { link })
    });
    drain(kernel, entries);
    stage(kernel, entries, &mut failed, |entry| {
        let finished = !entry.hooked && !entry.inbound;
        finished.then_some(Step::RemoveLink { link: entry.ifb_link })
    });
    entries.retain(|entry| failed.iter().any(|failure| failure.vif == entry.vif.name));
    failed
}

/// Stops all of `entries`: what they hold is dropped, and so is what comes.
pub(super) fn silence(kernel: &mut dyn Kernel, entries: &mut [Entry]) -> Vec<Failure> {
    let mut failed = Vec::new();
    stage(kernel, entries, &mut failed, |entry| Some(Step::Down { link: entry.ifb_link }));
    failed
}

/// Carries out a step for each entry that has had no failure yet.
fn stage(
    kernel: &mut dyn Kernel,
    entries: &mut [Entry],
    failed: &mut Vec<Failure>,
    step_of: impl Fn(&Entry) -> Option<Step>,
) {
    let mut touched = Vec::new();
    for entry in entries {
        if failed.iter().all(|failure| failure.vif != entry.vif.name) {
            touched.extend(step_of(entry).map(|step| (entry, step)));
        }
    }
    let steps: Vec<Step> = touched.iter().map(|(_, step)| step.clone()).collect();
    let answers = kernel.carry_out(&steps);
    for ((entry, step), answer) in touched.into_iter().zip(answers) {
        match tolerate(&step, answer) {
            Ok(()) => note(entry, &step),
            Err(refusal) => failed.push(entry.failure(&step, refusal)),
        }
    }
}

/// What is gone already need not be removed. The kernel answers that a discipline is not there with `ENOENT`, or with
/// `EINVAL` when another has its place (`net/sched/sch_api.c`, `tc_get_qdisc`).
fn tolerate(step: &Step, answer: Answer) -> Answer {
    match (step, answer) {
        (_, Err(Refusal::Refused(Errno::NODEV))) => Ok(()),
        (
            Step::RemovePlug { .. } | Step::RemoveIngress { .. },
            Err(Refusal::Refused(Errno::NOENT | Errno::INVAL)),
        ) => Ok(()),
        _ => answer,
    }
}

fn note(entry: &mut Entry, step: &Step) {
    match step {
        Step::Down { .. } if !matches!(entry.traffic, Traffic::Passes | Traffic::Absent) => {
            entry.traffic = Traffic::Dropped;
        }
        Step::RemovePlug { .. } => entry.inbound = false,
        Step::RemoveIngress { .. } => {
            entry.hooked = false;
            entry.traffic = Traffic::Passes;
        }
        _ => {}
    }
}

/// Waits until what was released is on its way. New packets pass beside it already.
fn drain(kernel: &mut dyn Kernel, entries: &[Entry]) {
    for _ in 0..DRAIN_TRIES {
        let Ok(queues) = kernel.queues() else { return };
        let waits =
            |entry: &Entry| plug_of(&queues, entry.ifb_link).is_some_and(|plug| plug.waiting_packets > 0);
        // A device that is down waits for ever, and with it what nobody released.
        if !entries.iter().any(|entry| entry.released && waits(entry)) {
            return;
        }
        std::thread::sleep(DRAIN_PAUSE);
    }
}
