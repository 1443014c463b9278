//! What a capture reports: per epoch, and at the end.

use std::time::Duration;

use varve_store::EpochRecord;

use crate::histogram::Histogram;

/// How long a guest stood still for an epoch, and for what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PauseSplit {
    /// Until it stood still.
    pub quiesce: Duration,
    /// To end the epoch of what it sends, where that is held.
    pub output: Duration,
    /// To learn which frames are dirty, where the source tells.
    pub dirty: Duration,
    /// To copy the dirty frames until they were quiet.
    pub copy: Duration,
    /// To compare its memory, and to copy what differs, where it has to be compared while the guest is held.
    pub scan: Duration,
    /// To read its registers, and the state that is kept with them.
    pub registers: Duration,
    /// To take a snapshot of its disks.
    pub disks: Duration,
    /// Until it ran again.
    pub resume: Duration,
}

impl PauseSplit {
    /// All of it.
    pub fn total(&self) -> Duration {
        self.parts().iter().map(|(_, part)| *part).sum()
    }

    /// Its parts in their order, by name.
    pub fn parts(&self) -> [(&'static str, Duration); 8] {
        [
            ("quiesce", self.quiesce),
            ("output", self.output),
            ("dirty", self.dirty),
            ("copy", self.copy),
            ("scan", self.scan),
            ("registers", self.registers),
            ("disks", self.disks),
            ("resume", self.resume),
        ]
    }
}

/// A committed epoch, and what it took.
#[derive(Clone, Debug)]
pub struct EpochReport {
    /// Its record in the archive.
    pub record: EpochRecord,
    /// How long the guest stood still; `None` when it did not have to.
    pub pause: Option<PauseSplit>,
    /// Frames looked at, those looked at twice counted twice.
    pub frames_scanned: u64,
    /// How long the scan waited because the archive did not keep up, summed over its threads.
    pub staging_wait: Duration,
    /// How long the commit took, after everything was stored.
    pub commit: Duration,
    /// From beginning to commit.
    pub total: Duration,
}

/// What a run of epochs came to.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// Epochs committed.
    pub epochs: u64,
    /// Epochs begun and dropped: torn by somebody who resumed the guest, or given up by the user.
    pub epochs_dropped: u64,
    /// Times an epoch was due while the one before still went on.
    pub ticks_missed: u64,
    /// Frames that changed, over all epochs.
    pub pages_changed: u64,
    /// Pages that were new to the archive.
    pub pages_stored: u64,
    /// Bytes they take there, compressed.
    pub bytes_stored: u64,
    /// How long the guest stood still each time.
    pub pauses: Histogram,
}

impl Summary {
    pub(crate) fn add(&mut self, report: &EpochReport) {
        self.epochs += 1;
        self.pages_changed += report.record.pages_changed;
        self.pages_stored += report.record.pages_stored;
        self.bytes_stored += report.record.bytes_stored;
        if let Some(pause) = &report.pause {
            self.pauses.add(pause.total());
        }
    }
}
