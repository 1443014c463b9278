//! What a capture tells while it runs, and what it asks.

use crate::EpochReport;

/// Sees a capture at work. Everything is optional.
pub trait Observer: Sync {
    /// Epoch `number` begins; `bytes` of memory will be looked at, for the first epoch of a live guest twice.
    fn epoch_begins(&self, _number: u64, _bytes: u64) {}

    /// That many more bytes of memory have been dealt with.
    fn scanned(&self, _bytes: u64) {}

    /// An epoch is in the archive, durably.
    fn committed(&self, _report: &EpochReport) {}

    /// Something the user should know.
    fn remark(&self, _text: &str) {}
}

/// Tells a capture when to stop, and when not to wait. Asked often.
pub trait Interrupt: Sync {
    /// Whether to stop after the epoch in hand.
    fn finish(&self) -> bool {
        false
    }

    /// Whether to drop the epoch in hand and stop.
    fn abandon(&self) -> bool {
        false
    }

    /// Whether to take an epoch at once though none is due. Says so once each time that somebody wants it.
    fn hurry(&self) -> bool {
        false
    }
}

/// Watches nothing and stops nothing.
impl Observer for () {}

/// Watches nothing and stops nothing.
impl Interrupt for () {}
