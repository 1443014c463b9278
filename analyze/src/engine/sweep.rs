//! Epochs × scans.

use std::ops::{ControlFlow, Range};

use rayon::prelude::*;
use varve_store::{EpochMemory, StoreError};

use super::first_bad::Verdict;
use super::history::{EpochError, History};
use crate::policy::Policy;
use crate::scans::{Scan, ScanInput};
use crate::{Report, Severity};

/// Scans, and what they judge by, to run over a history.
pub struct Sweep<'a> {
    /// The history.
    pub history: &'a History,
    /// The scans.
    pub scans: &'a [&'static Scan],
    /// What the VM's owner allows.
    pub policy: &'a Policy,
}

/// What one scan said of an epoch.
#[derive(Debug)]
pub struct ScanResult {
    /// The scan.
    pub scan: &'static str,
    /// Its report.
    pub report: Report,
    /// Whether that is the report of an epoch before, because nothing it was made from has changed.
    pub kept: bool,
}

/// What the scans said of an epoch.
#[derive(Debug)]
pub struct EpochResult {
    /// The epoch.
    pub epoch: u64,
    /// A result for every scan, in the order they were given; or why none could be run.
    pub scans: Result<Vec<ScanResult>, EpochError>,
}

impl EpochResult {
    /// Whether everything was looked at.
    pub fn is_complete(&self) -> bool {
        self.scans.as_ref().is_ok_and(|scans| scans.iter().all(|result| result.report.complete))
    }

    /// What the epoch is to count as when findings at or above `threshold` are bad.
    pub fn verdict(&self, threshold: Severity) -> Verdict {
        match &self.scans {
            Ok(scans) if scans.iter().any(|result| result.report.is_bad(threshold)) => Verdict::Bad,
            _ if self.is_complete() => Verdict::Clean,
            _ => Verdict::Incomplete,
        }
    }
}

impl Sweep<'_> {
    /// Scans `epochs` and hands over the results in their order, as soon as they are there, until `each` breaks off.
    ///
    /// # Errors
    /// [`StoreError`] when the archive fails as a whole. An epoch that cannot be read or understood is a result.
    pub fn run(
        &self,
        epochs: Range<u64>,
        mut each: impl FnMut(EpochResult) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let Some(last) = epochs.end.checked_sub(1) else { return Ok(()) };
        self.history.learn(last)?;
        let at_once = rayon::current_num_threads() as u64 * 2;
        let mut next = epochs.start;
        while next < epochs.end {
            let end = epochs.end.min(next.saturating_add(at_once));
            let results: Vec<_> = (next..end).into_par_iter().map(|epoch| self.epoch(epoch)).collect();
            for result in results {
                if each(result).is_break() {
                    return Ok(());
                }
            }
            next = end;
        }
        Ok(())
    }

    /// Scans one epoch. [`History::learn`] must have got there.
    fn epoch(&self, epoch: u64) -> EpochResult {
        let memory = self.history.memory(epoch).map_err(EpochError::from);
        EpochResult { epoch, scans: memory.and_then(|memory| self.scan(epoch, &memory)) }
    }

    fn scan(&self, epoch: u64, memory: &EpochMemory) -> Result<Vec<ScanResult>, EpochError> {
        let guest = self.history.guest(memory)?;
        let baseline_memory =
            self.history.baseline(epoch, &guest).map(|first| self.history.memory(first)).transpose()?;
        let baseline = baseline_memory.as_ref().map(|memory| self.history.guest(memory)).transpose()?;
        let input = ScanInput { guest: &guest, baseline: baseline.as_ref(), policy: self.policy };
        let run =
            |scan: &&'static Scan| ScanResult { scan: scan.name, report: (scan.run)(&input), kept: false };
        Ok(self.scans.par_iter().map(run).collect())
    }
}
