//! What a gate tells while it is at work: to the user, to Prometheus, and to whoever asks for its status.

use std::path::PathBuf;
use std::process;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde_json::json;
use varve_capture::gate::{Event, GateObserver, Judged, Verdict};

use super::metrics::Metrics;
use super::status::{Said, status_path};
use crate::capturing::pause_us;
use crate::context::Context;
use crate::output::{Output, bytes, printable};

/// From one writing of the metrics to the next.
const METRICS_EVERY: Duration = Duration::from_secs(1);

/// Tells what happens.
pub(crate) struct Teller<'a> {
    context: &'a Context<'a>,
    metrics_path: Option<PathBuf>,
    metrics: Metrics,
    state: Mutex<State>,
}

struct State {
    out: Output,
    said: Said,
    written: Option<Instant>,
    /// The remark made last, which is not made again.
    remark: String,
    /// Files that could not be written, said once.
    complained: bool,
}

impl<'a> Teller<'a> {
    pub(crate) fn new(
        context: &'a Context<'a>,
        vm: &str,
        source: &str,
        fail_open: bool,
        metrics_path: Option<PathBuf>,
    ) -> Self {
        let said = Said {
            vm: vm.to_owned(),
            source: source.to_owned(),
            pid: process::id(),
            state: "starting".to_owned(),
            fail_open,
            ..Said::default()
        };
        let state =
            State { out: context.output(), said, written: None, remark: String::new(), complained: false };
        Self { context, metrics_path, metrics: Metrics::new(vm), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that the gate has come to its end, and how.
    pub(crate) fn ended(&self, state: &str, because: &str) {
        let mut now = self.state();
        (now.said.state, now.said.because) = (state.to_owned(), because.to_owned());
        now.written = None;
        self.write(&mut now);
    }

    /// Writes status and metrics.
    fn write(&self, state: &mut State) {
        state.said.at =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let mut written = state.said.write(&status_path(&state.said.vm));
        if state.written.is_none_or(|written| written.elapsed() > METRICS_EVERY) {
            state.written = Some(Instant::now());
            let metrics = self.metrics_path.as_ref().map_or(Ok(()), |path| self.metrics.write(path));
            written = written.and(metrics);
        }
        if let Err(error) = written
            && !std::mem::replace(&mut state.complained, true)
        {
            self.context.remark(format_args!("status or metrics cannot be written: {error}"));
        }
    }

    fn line(&self, state: &mut State, value: &serde_json::Value, text: &str) {
        let printed = match state.out.is_json() {
            true => state.out.line(value),
            false => state.out.text(text),
        };
        // A gate goes on when nobody reads what it says.
        let _ = printed.and_then(|()| state.out.flush());
    }

    fn judged(&self, state: &mut State, judged: &Judged<'_>) {
        let epoch = judged.report.record.number;
        let verdict = judged.verdict.name();
        self.metrics.judged(verdict, judged.scan, judged.waited, judged.report.pause.as_ref(), judged.held);
        state.said.epoch = Some(epoch);
        verdict.clone_into(&mut state.said.verdict);
        if *judged.verdict == Verdict::Passed {
            state.said.last_passed = Some(epoch);
        }
        let reasons = match judged.verdict {
            Verdict::Passed => Vec::new(),
            Verdict::Bad(findings) => findings.clone(),
            Verdict::Incomplete(reason) | Verdict::Missing(reason) => vec![reason.clone()],
        };
        let held: u64 =
            judged.held.iter().filter_map(|vif| vif.outbound).map(|plug| u64::from(plug.waiting_bytes)).sum();
        let pause = judged.report.pause.as_ref();
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let value = json!({
            "type": "epoch", "epoch": epoch, "id": judged.report.record.id.to_string(), "verdict": verdict,
            "because": reasons, "restorable": judged.report.record.restorable,
            "pages_changed": judged.report.record.pages_changed, "held_bytes": held,
            "pause_us": pause.map(pause_us), "scan_us": micros(judged.scan), "waited_us": judged.waited.map(micros),
            "total_us": micros(judged.report.total),
        });
        let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
        let mut text = format!("epoch {epoch}: {verdict} in {}", ms(judged.scan));
        if let Some(pause) = pause {
            text.push_str(&format!(", paused {}", ms(pause.total())));
        }
        match judged.waited {
            Some(waited) => text.push_str(&format!(", packets waited {}", ms(waited))),
            None => text.push_str(&format!(", {} held", bytes(held))),
        }
        for reason in &reasons {
            text.push_str(&format!("\n  {}", printable(reason)));
        }
        for line in text.lines().take(1) {
            self.line(state, &value, line);
        }
        if !state.out.is_json() {
            text.lines().skip(1).for_each(|line| drop(state.out.text(line)));
            let _ = state.out.flush();
        }
    }

    fn act(&self, state: &mut State, act: &str, because: &str, text: &str) {
        self.line(state, &json!({ "type": act, "because": because }), text);
    }
}

impl GateObserver for Teller<'_> {
    fn event(&self, event: &Event<'_>) {
        let mut guard = self.state();
        let state = &mut *guard;
        match event {
            Event::Began { not_held, dropped } => {
                let value = json!({ "type": "began", "not_held": not_held, "dropped_packets": dropped });
                let left = match dropped {
                    0 => String::new(),
                    dropped => format!("; {dropped} packets that an earlier gate left held were dropped"),
                };
                let others = match not_held.is_empty() {
                    true => "nothing that the host knows of".to_owned(),
                    false => not_held.join(", "),
                };
                self.line(
                    state,
                    &value,
                    &format!("leads out of the guest and cannot be held: {others}{left}"),
                );
            }
            Event::Holding { vifs } => {
                state.said.vifs = vifs.iter().map(|vif| (*vif).to_owned()).collect();
                "gating".clone_into(&mut state.said.state);
                let text = format!("what comes through {} is held from now on", vifs.join(", "));
                self.line(state, &json!({ "type": "holding", "vifs": vifs }), &text);
            }
            Event::Judged(judged) => self.judged(state, judged),
            Event::Braked { reason } => {
                (state.said.state, state.said.because) = ("paused".to_owned(), (*reason).to_owned());
                self.metrics.braked.set(1);
                self.metrics.brakes.inc();
                self.act(state, "paused", reason, &format!("the guest is paused: {reason}"));
            }
            Event::Going { paused } => {
                (state.said.state, state.said.because) = ("gating".to_owned(), String::new());
                self.metrics.braked.set(0);
                let text = format!("the guest runs again after {:.1} s", paused.as_secs_f64());
                self.act(state, "going", "", &text);
            }
            Event::FailedOpen { reason } => {
                state.said.failed_open += 1;
                self.metrics.failed_open.inc();
                self.act(state, "failed_open", reason, &format!("PACKETS WENT WITHOUT A VERDICT: {reason}"));
            }
            Event::Quarantined { bridge, reason } => {
                let because = format!("on bridge {bridge}: {reason}");
                (state.said.state, state.said.because) = ("quarantined".to_owned(), because);
                self.act(
                    state,
                    "quarantined",
                    reason,
                    &format!("the guest runs on in quarantine on {bridge}: {reason}"),
                );
            }
            Event::VifsAdded { vifs } => {
                state.said.vifs.extend(vifs.iter().map(|vif| (*vif).to_owned()));
                let text = format!(
                    "the guest was given {}: held from now on, what it sent until now has passed",
                    vifs.join(", ")
                );
                self.act(state, "vifs_added", &vifs.join(", "), &text);
            }
            Event::Failed { what } => {
                self.remark(state, &format!("{what} (tried again)"));
            }
            Event::Remark(text) => self.remark(state, text),
            _ => {}
        }
        self.write(state);
    }
}

impl Teller<'_> {
    /// A remark, unless it is the one before.
    fn remark(&self, state: &mut State, text: &str) {
        if state.remark != text {
            text.clone_into(&mut state.remark);
            self.context.remark(text);
        }
    }
}
