//! The engine: a VM's history as guests, and what runs over all of it.
//!
//! ```text
//! History   archive + VM → guests, each with the baseline of its boot       (history.rs, boots.rs)
//! Sweep     epochs × scans in parallel, results in the order of epochs      (sweep.rs)
//! FirstBad  where a history turns bad, from verdicts alone                  (first_bad.rs)
//! Live      epochs of a running guest, one by one as they are taken         (live.rs, footprint.rs)
//! Diff      what began, ended and changed between two epochs                (diff.rs)
//! ```

mod boots;
mod diff;
mod first_bad;
mod footprint;
mod history;
mod live;
mod sweep;

pub use diff::{ChangedPage, Diff, ModuleChange, ProcessChange};
pub use first_bad::{FirstBad, Verdict};
pub use footprint::{Change, LINE_BYTES};
pub use history::{EpochError, History};
pub use live::{Live, Past, PastEpoch};
pub use sweep::{EpochResult, ScanResult, Sweep};
