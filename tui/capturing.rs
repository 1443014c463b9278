//! What capture and import show while they run, and how they end.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use serde_json::json;
use varve_capture::{Ended, EpochReport, Observer, PauseSplit, Summary};
use varve_store::{Archive, EpochRecord};

use crate::{
    commands::epochs::Row,
    context::Context,
    exit::{Failure, Status},
    interrupt::Interrupt,
    output::{Output, bytes},
    progress::Progress,
};

impl varve_capture::Interrupt for Interrupt {
    fn finish(&self) -> bool {
        self.finish()
    }

    fn abandon(&self) -> bool {
        self.drop_it()
    }

    fn hurry(&self) -> bool {
        self.hurry()
    }
}

/// Prints each epoch when it is durable, and progress on the way there.
pub(crate) struct Reporter<'a> {
    context: &'a Context<'a>,
    state: Mutex<State>,
}

struct State {
    out: Output,
    progress: Option<Progress>,
    /// Bytes of guest memory in the epoch before.
    latest: Option<u64>,
    /// Why the result could not be written.
    failed: Option<io::Error>,
}

/// A committed epoch on a line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    r#type: &'static str,
    #[serde(flatten)]
    epoch: Row<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pause_us: Option<serde_json::Map<String, serde_json::Value>>,
    total_us: u64,
}

/// How long the guest stood still, in microseconds: in all, and its parts.
pub(crate) fn pause_us(split: &PauseSplit) -> serde_json::Map<String, serde_json::Value> {
    let parts = std::iter::once(("total", split.total())).chain(split.parts());
    parts.map(|(name, part)| (name.to_owned(), micros(part).into())).collect()
}

impl<'a> Reporter<'a> {
    /// Reports epochs of `vm`, which follow those in `archive`.
    pub(crate) fn new(context: &'a Context<'a>, archive: &Archive, vm: &str) -> Self {
        Self::on(context.output(), context, archive, vm)
    }

    /// The same, to `out`.
    pub(crate) fn on(out: Output, context: &'a Context<'a>, archive: &Archive, vm: &str) -> Self {
        // A VM that cannot be read now is one the capture itself will speak of.
        let latest = archive.epochs(vm).ok().and_then(|epochs| epochs.last().map(memory_bytes));
        let state = State { out, progress: None, latest, failed: None };
        Self { context, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Reporter<'_> {
    fn epoch_begins(&self, _number: u64, bytes: u64) {
        self.state().progress = Some(self.context.progress_of_bytes(bytes, "epoch"));
    }

    fn scanned(&self, bytes: u64) {
        if let Some(progress) = &self.state().progress {
            progress.advance(bytes);
        }
    }

    fn committed(&self, report: &EpochReport) {
        let mut state = self.state();
        state.progress = None;
        let now = memory_bytes(&report.record);
        if let Some(before) = state.latest.filter(|before| *before != now) {
            let (before, now) = (bytes(before), bytes(now));
            self.context.remark(format_args!("epoch {} has {now} of memory, the one before {before}: is it the same VM, and the whole of it?", report.record.number));
        }
        state.latest = Some(now);
        if let Err(error) = state.out.epoch(report) {
            state.failed.get_or_insert(error);
        }
    }

    fn remark(&self, text: &str) {
        self.context.remark(text);
    }
}

impl Output {
    fn epoch(&mut self, report: &EpochReport) -> io::Result<()> {
        let record = &report.record;
        if self.is_json() {
            self.line(&Line {
                r#type: "epoch",
                epoch: Row::from(record),
                pause_us: report.pause.as_ref().map(pause_us),
                total_us: micros(report.total),
            })?;
        } else {
            let pause = report.pause.as_ref().map_or(String::new(), |pause| {
                format!(", paused {:.1} ms", pause.total().as_secs_f64() * 1e3)
            });
            self.text(&format!(
                "epoch {}: {} of {} pages changed, {} stored{pause}",
                record.number,
                record.pages_changed,
                record.pages,
                bytes(record.bytes_stored)
            ))?;
        }
        self.flush()
    }
}

/// Bytes of guest memory an epoch covers.
fn memory_bytes(record: &EpochRecord) -> u64 {
    record.regions.iter().map(|region| region.len).sum()
}

/// Prints what a capture came to and turns its end into an exit status. `complete` is whether all that was asked for
/// came about, should there be no error.
pub(crate) fn conclude(
    context: &Context<'_>,
    reporter: Reporter<'_>,
    ended: Ended,
    complete: bool,
) -> Result<Status, Failure> {
    let state = reporter.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    drop(state.progress);
    let mut out = state.out;
    if let Some(error) = state.failed {
        return Err(error.into());
    }
    if out.is_json() {
        out.line(&summary(&ended.summary, complete && ended.error.is_none()))?;
        out.flush()?;
    } else if ended.summary.pauses.count() > 0 {
        context.remark(pauses(&ended.summary));
    }
    match ended.error {
        None => Ok(Status::Nothing),
        Some(error) => Err(error.into()),
    }
}

fn summary(summary: &Summary, complete: bool) -> serde_json::Value {
    let quantile = |percent| summary.pauses.percentile(percent).map(micros);
    json!({
        "type": "summary",
        "epochs": summary.epochs,
        "epochs_dropped": summary.epochs_dropped,
        "ticks_missed": summary.ticks_missed,
        "pages_changed": summary.pages_changed,
        "pages_stored": summary.pages_stored,
        "bytes_stored": summary.bytes_stored,
        "pause_us": {"p50": quantile(50), "p90": quantile(90), "p99": quantile(99), "max": micros(summary.pauses.longest())},
        "complete": complete,
    })
}

fn pauses(summary: &Summary) -> String {
    let mut text = String::from("pauses:");
    for (end, count) in summary.pauses.buckets() {
        text.push_str(&format!(" ≤{:.1} ms: {count};", end.as_secs_f64() * 1e3));
    }
    format!("{text} longest {:.1} ms", summary.pauses.longest().as_secs_f64() * 1e3)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
