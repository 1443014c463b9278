//! What a gate tells while it is at work.

use std::time::Duration;

use super::settings::Verdict;
use crate::EpochReport;
use crate::output::VifStatistics;

/// Something that happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The gate is at work. Until [`Event::Holding`] it holds nothing.
    Began {
        /// What else leads out of the guest, and is not held.
        not_held: &'a [String],
        /// Packets that an earlier gate left held, and which were dropped.
        dropped: u64,
    },
    /// From now on what the guest sends is held.
    Holding {
        /// The network cards.
        vifs: &'a [&'a str],
    },
    /// An epoch is durable, and there is a verdict.
    Judged(Judged<'a>),
    /// The guest was paused, because its packets cannot go.
    Braked {
        /// Why.
        reason: &'a str,
    },
    /// It runs again.
    Going {
        /// How long it was paused.
        paused: Duration,
    },
    /// Packets went without a verdict, as was allowed.
    FailedOpen {
        /// Why there was none.
        reason: &'a str,
    },
    /// The guest runs on where it can harm nobody.
    Quarantined {
        /// The bridge.
        bridge: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// The guest was given more network cards; what they sent until now has passed.
    VifsAdded {
        /// Their names.
        vifs: &'a [&'a str],
    },
    /// Something went wrong, and is tried again.
    Failed {
        /// What.
        what: &'a str,
    },
    /// Something the user should know.
    Remark(&'a str),
}

/// An epoch and its verdict.
#[derive(Debug)]
pub struct Judged<'a> {
    /// The epoch.
    pub report: &'a EpochReport,
    /// What the scanner says.
    pub verdict: &'a Verdict,
    /// How long it took to say so.
    pub scan: Duration,
    /// How long the packets that go now have waited; `None` when none go.
    pub waited: Option<Duration>,
    /// What is held.
    pub held: &'a [VifStatistics],
}

/// Is told what happens, from several threads.
pub trait GateObserver: Sync {
    /// Something happened.
    fn event(&self, _event: &Event<'_>) {}
}

/// Hears nothing.
impl GateObserver for () {}
