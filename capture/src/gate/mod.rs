//! Output commit in earnest: nothing a guest sends leaves before the epoch that produced it is durable *and* has passed.
//!
//! ```text
//! epoch i ends: pause → close the interval of the output → copy what was written to → go on
//!               → the scanner looks at the mirror ‖ the archive makes the epoch durable
//!               → both done, and nothing found: release the interval       otherwise: it stays held
//! ```
//!
//! The buffer has room for one interval that is undecided ([`output`](crate::output)). While one is, epochs go on to be taken and no further interval is
//! closed: a later epoch that passes lets it go too, for its memory holds all that came before. An epoch that could not be looked
//! at completely never lets anything go.
//!
//! What is undecided for too long, or becomes too much, pauses the guest; what is found freezes it, or moves it to a bridge that
//! leads nowhere. What the gate does is written to its [journal] first. Whatever becomes of the gate itself, the
//! kernel goes on holding: the next gate finds the buffer, drops what it held, and begins anew.

mod control;
mod error;
mod event;
mod grip;
mod guard;
mod journal;
mod judge;
mod mirror;
mod run;
mod settings;
mod start;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use varve_store::Archive;

pub use error::GateError;
pub use event::{Event, GateObserver, Judged};
pub use judge::{Judge, Question};
pub use mirror::Mirror;
pub use settings::{Quarantine, Remedy, Settings, Verdict};

use crate::hook::Hook;
use crate::report::Summary;
use crate::source::Source;
use crate::{Histogram, Interrupt};

/// A guest to be gated, and how.
pub struct Gate<'a> {
    /// The guest.
    pub source: &'a dyn Source,
    /// Where its epochs go.
    pub archive: &'a Archive,
    /// What it is called there.
    pub vm: &'a str,
    /// How.
    pub settings: &'a Settings,
    /// The gate's journal.
    pub journal: PathBuf,
    /// Takes snapshots of the guest's disks at each epoch in which it has suspended itself.
    pub disk_snapshot: Option<Hook>,
    /// Whether to take over a guest that an earlier gate has frozen.
    pub thaw: bool,
    /// After how many epochs to end; `None` until interrupted.
    pub epochs: Option<u64>,
}

/// How a gate ended that did not fail. What it held is still held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GateEnd {
    /// As it was told to.
    Finished,
    /// The guest is bad, and frozen.
    Frozen {
        /// The epoch that shows it.
        epoch: u64,
        /// What was found: a sentence for each.
        findings: Vec<String>,
    },
}

/// What a gate came to.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Its epochs.
    pub summary: Summary,
    /// Epochs that passed, were bad, could not be looked at completely, and got no answer.
    pub passed: u64,
    /// See [`Totals::passed`].
    pub bad: u64,
    /// See [`Totals::passed`].
    pub incomplete: u64,
    /// See [`Totals::passed`].
    pub missing: u64,
    /// How long the scanner took for each.
    pub scans: Histogram,
    /// How long packets waited from the end of their interval.
    pub waits: Histogram,
    /// The last epoch that passed.
    pub last_passed: Option<u64>,
    /// The last epoch that passed and that the guest can be started from.
    pub last_restorable: Option<u64>,
}

impl Totals {
    fn count(&mut self, verdict: &Verdict, scan: Duration, waited: Option<Duration>) {
        *match verdict {
            Verdict::Passed => &mut self.passed,
            Verdict::Bad(_) => &mut self.bad,
            Verdict::Incomplete(_) => &mut self.incomplete,
            Verdict::Missing(_) => &mut self.missing,
        } += 1;
        self.scans.add(scan);
        if let Some(waited) = waited {
            self.waits.add(waited);
        }
    }
}

/// Opens the gate of a guest: what is held is dropped, and everything passes from then on. Returns how many packets were dropped.
///
/// # Errors
/// [`GateError`]: packets may still be held.
pub fn open_up(source: &dyn Source, journal: &std::path::Path) -> Result<u64, GateError> {
    start::open_up(source, journal)
}

impl Gate<'_> {
    /// Gates the guest until told to finish, it is bad, or something fails. In each case the buffer stays, and holds.
    ///
    /// # Errors
    /// [`GateError`], beside what was done until then.
    pub fn run(
        &self,
        judge: &mut dyn Judge,
        interrupt: &dyn Interrupt,
        observer: &dyn GateObserver,
    ) -> (Totals, Result<GateEnd, GateError>) {
        let mut totals = Totals::default();
        let end = start::run(self, judge, interrupt, observer, &mut totals);
        (totals, end)
    }
}
