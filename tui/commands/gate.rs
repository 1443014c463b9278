//! `varve gate`: nothing leaves a VM before its memory has been looked at.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use varve_capture::gate::{self, Gate as Core, GateEnd, GateError, Remedy, Settings, Totals};
use varve_capture::hook::Hook;
use varve_capture::output::isolated;
use varve_capture::{CaptureError, source};

use crate::{
    commands::capture::duration,
    context::Context,
    exit::{Failure, Status},
    gate::{Scanner, Task, Teller, print, selftest, settings},
    interrupt::Interrupt,
    output::Output,
    scanning::{Selection, help},
};

/// Let nothing leave a Xen domain before the epoch that produced it is archived and has passed
///
/// What the domain sends is held in dom0. Every interval its memory is checkpointed, archived and scanned; when that has passed,
/// the interval's packets go. Without a verdict in time the domain is paused; when something is found it is frozen, or moved to an
/// isolated bridge. Whatever becomes of this program, packets stay held until another gate begins, or --off.
#[derive(Args)]
#[command(after_help = help("\
  varve -r /srv/varve gate web1 --policy web1.toml --interval 200ms
  varve gate --status
  varve gate web1 --off
  varve gate --selftest

The [gate] part of the policy file, with its defaults:
  [gate]
  interval_ms = 200
  hold_budget_ms = 2000             # no verdict for so long: the domain is paused
  incomplete_budget_ms = 60000      # none that is complete for so long, as of one that boots: the same
  scan_limit_ms = 30000             # the scanner is replaced, and the next has twice the time
  limit_mib = 64                    # most that is held for each card
  hold_inbound = false              # hold what is sent to the domain while it is copied
  restore_point_every = 0           # every so many epochs the domain can be rolled back to
  on_finding = \"freeze\"             # or \"quarantine\"
  on_undecided = \"pause\"            # or \"quarantine\", after quarantine_after_ms = 30000
  # quarantine_bridge = \"island\"

Exit status: 4 when something was found and the domain is frozen."))]
pub(crate) struct Gate {
    /// The domain, by name or number
    #[arg(required_unless_present_any = ["status", "selftest"])]
    domain: Option<String>,
    #[command(flatten)]
    selection: Selection,
    /// Time from the start of one epoch to the start of the next, such as 200ms [default: 200ms, or as the policy says]
    #[arg(long, value_parser = duration)]
    interval: Option<Duration>,
    /// Stop after this many epochs; packets stay held
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    epochs: Option<u64>,
    /// Where everything is written down before it is done [default: /var/log/varve/gate-VM.jsonl]
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Write Prometheus metrics to this file, for node_exporter's textfile collector
    #[arg(long, value_name = "FILE")]
    metrics: Option<PathBuf>,
    /// Run this command at each restore point (restore_point_every), while the domain is suspended, to take snapshots of its disks. What it
    /// prints is kept with the epoch; $VARVE_VM and $VARVE_SOURCE say which domain
    #[arg(long, value_name = "CMD", conflicts_with_all = ["off", "status", "selftest"])]
    disk_snapshot: Option<String>,
    /// UNSAFE: let packets go without a verdict when there is none in time, or when the gate fails. Every use is written down and shown
    #[arg(long)]
    fail_open: bool,
    /// Take over a domain that was frozen for findings which the policy allows by now: it goes on when an epoch passes
    #[arg(long)]
    thaw: bool,
    /// Open the gate of the domain: what is held is dropped, and everything passes from then on
    #[arg(long, conflicts_with_all = ["thaw", "epochs", "fail_open"])]
    off: bool,
    /// Show how the gates of this host are
    #[arg(long, conflicts_with_all = ["off", "thaw", "epochs", "selftest"])]
    status: bool,
    /// Show on the spot, on a pair of devices made for that, that what is held is held
    #[arg(long, conflicts_with_all = ["off", "thaw", "epochs"])]
    selftest: bool,
}

impl Gate {
    pub(crate) fn run(&self, context: &Context<'_>) -> Result<Status, Failure> {
        let mut out = context.output();
        if self.selftest {
            return selftest(&mut out);
        }
        if self.status {
            return print(&mut out, context.named_vm().or(self.domain.as_deref()));
        }
        let domain = self.domain.as_deref().unwrap_or_default();
        let spec = if domain.starts_with("xen:") { domain.to_owned() } else { format!("xen:{domain}") };
        let vm = context.named_vm().unwrap_or_else(|| domain.trim_start_matches("xen:"));
        let journal = self.journal.clone();
        let journal = journal.unwrap_or_else(|| PathBuf::from(format!("/var/log/varve/gate-{vm}.jsonl")));
        if self.off {
            source::available("xen").map_err(Failure::new)?;
            let source = source::open(&spec).map_err(Failure::new)?;
            let dropped = gate::open_up(&*source, &journal).map_err(failure)?;
            let value = json!({ "type": "off", "vm": vm, "dropped_packets": dropped });
            return say(
                &mut out,
                &value,
                &format!("{domain} is open; {dropped} packets that were held were dropped"),
            );
        }
        self.gate(context, &spec, vm, journal)
    }

    fn gate(&self, context: &Context<'_>, spec: &str, vm: &str, journal: PathBuf) -> Result<Status, Failure> {
        let (scans, policy) = self.selection.resolve()?;
        let mut settings =
            settings(&policy.gate).map_err(|reason| Failure::usage(format_args!("[gate]: {reason}")))?;
        settings.interval = self.interval.unwrap_or(settings.interval);
        settings.fail_open = self.fail_open;
        bridges(&settings)?;
        if self.disk_snapshot.is_some() && settings.suspend_every == 0 {
            return Err(Failure::usage(
                "--disk-snapshot needs restore_point_every in the policy: the disks of a domain that is only paused are not in order",
            ));
        }
        let archive = context.open_for_writing()?;
        let source = source::open(spec).map_err(Failure::new)?;
        let interrupt = Interrupt::install()?;
        let task = Task {
            archive: archive.clone(),
            vm: vm.to_owned(),
            policy: self.selection.policy_text()?,
            scans: scans.iter().map(|scan| scan.name.to_owned()).collect(),
        };
        let epochs = archive.epoch_count(vm).unwrap_or(0);
        let progress = context.progress(epochs, "learning from the history");
        let mut scanner = Scanner::new(task, move |learned| progress.set(learned));
        scanner.prepare(|| interrupt.finish())?;
        let teller = Teller::new(context, vm, spec, self.fail_open, self.metrics.clone());
        if self.fail_open {
            context.remark(
                "UNSAFE: this gate fails open: packets go without a verdict when there is none in time",
            );
        }
        let core = Core {
            source: &*source,
            archive: &archive,
            vm,
            settings: &settings,
            journal,
            disk_snapshot: self.disk_snapshot.as_deref().map(Hook::for_disks),
            thaw: self.thaw,
            epochs: self.epochs,
        };
        let (totals, end) = core.run(&mut scanner, &interrupt, &teller);
        conclude(context, &teller, vm, &totals, end)
    }
}

/// Bridges for quarantine must be there and lead nowhere before one is needed.
fn bridges(settings: &Settings) -> Result<(), Failure> {
    if let Remedy::Quarantine(quarantine) = &settings.on_finding {
        isolated(&quarantine.bridge).map_err(Failure::new)?;
    }
    if let Some((_, quarantine)) = &settings.on_undecided {
        isolated(&quarantine.bridge).map_err(Failure::new)?;
    }
    Ok(())
}

fn say(out: &mut Output, value: &serde_json::Value, text: &str) -> Result<Status, Failure> {
    if out.is_json() {
        out.line(value)?
    } else {
        out.text(text)?
    }
    out.flush()?;
    Ok(Status::Nothing)
}

fn failure(error: GateError) -> Failure {
    match error {
        GateError::Capture(CaptureError::Store(error)) => error.into(),
        error => Failure::new(error),
    }
}

/// Says how it ended, and what can be done.
fn conclude(
    context: &Context<'_>,
    teller: &Teller<'_>,
    vm: &str,
    totals: &Totals,
    end: Result<GateEnd, GateError>,
) -> Result<Status, Failure> {
    let mut out = context.output();
    let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let quantiles = |times: &varve_capture::Histogram| {
        let of = |percent| times.percentile(percent).map(us);
        json!({ "p50": of(50), "p90": of(90), "p99": of(99), "max": us(times.longest()) })
    };
    if out.is_json() {
        out.line(&json!({
            "type": "summary", "vm": vm, "epochs": totals.summary.epochs, "epochs_dropped": totals.summary.epochs_dropped,
            "passed": totals.passed, "bad": totals.bad, "incomplete": totals.incomplete, "missing": totals.missing,
            "last_passed": totals.last_passed, "last_restorable": totals.last_restorable,
            "pause_us": quantiles(&totals.summary.pauses), "scan_us": quantiles(&totals.scans), "waited_us": quantiles(&totals.waits),
            "frozen": matches!(end, Ok(GateEnd::Frozen { .. })), "complete": end.is_ok(),
        }))?;
        out.flush()?;
    }
    match end {
        Ok(GateEnd::Finished) => {
            teller.ended("ended", "");
            let dropped =
                if totals.missing + totals.incomplete > 0 { " (not all epochs could be judged)" } else { "" };
            context.remark(format_args!(
                "{} epochs, {} passed{dropped}. {vm} runs, and what it sends is held: the next `varve gate {vm}` goes on, `--off` opens it",
                totals.summary.epochs, totals.passed
            ));
            Ok(Status::Nothing)
        }
        Ok(GateEnd::Frozen { epoch, findings }) => {
            teller.ended("frozen", &findings.join("; "));
            context.remark(format_args!("{vm} is frozen, and what it has sent since epoch {epoch} is held"));
            context.remark(match totals.last_restorable {
                Some(clean) => format!(
                    "back to the last clean restore point: varve --vm {vm} rollback {clean} --replace --paused (with --disk-restore or --without-disk if it has disks), then gate it and `xl unpause` it"
                ),
                None => "no epoch of this gate can be rolled back to: see restore_point_every".to_owned(),
            });
            context.remark(format_args!("the proof: varve --vm {vm} first-bad, or varve --vm {vm} scan {epoch}; if it is no harm: gate it with --thaw"));
            Ok(Status::Findings)
        }
        Err(error) => {
            teller.ended("ended", &error.to_string());
            Err(failure(error))
        }
    }
}
