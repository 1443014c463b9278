//! How a gate begins, and ends: what an earlier one left is taken over, and what this one leaves is held.

use std::io;
use std::path::Path;

use serde_json::json;

use super::control::{Control, Mode};
use super::error::GateError;
use super::event::{Event, GateObserver};
use super::grip::Gated;
use super::journal::{Journal, Left};
use super::judge::Judge;
use super::run::{Attendant, Run, guarded};
use super::settings::Settings;
use super::{Gate, GateEnd, Totals};
use crate::ingest::Ingest;
use crate::output::{Orphan, OutputBuffer, OutputOptions, Traffic, Vif, isolated};
use crate::source::{Devices, Source};
use crate::{CaptureError, EpochReport, Interrupt, Observer, Options, SourceError};

/// How a gate comes to its buffer: the kernel, or what stands for it in tests.
pub(super) trait Plumbing: Sync {
    fn install(&self, vifs: &[Vif], options: &OutputOptions) -> Result<OutputBuffer, GateError>;
    fn orphans(&self) -> Result<Vec<Orphan>, GateError>;
    fn adopt(&self, orphans: Vec<Orphan>) -> Result<OutputBuffer, GateError>;
    fn isolated(&self, bridge: &str) -> Result<(), GateError>;
}

/// The kernel.
struct Netlink;

impl Plumbing for Netlink {
    fn install(&self, vifs: &[Vif], options: &OutputOptions) -> Result<OutputBuffer, GateError> {
        Ok(OutputBuffer::install(vifs, options)?)
    }

    fn orphans(&self) -> Result<Vec<Orphan>, GateError> {
        Ok(OutputBuffer::orphans()?)
    }

    fn adopt(&self, orphans: Vec<Orphan>) -> Result<OutputBuffer, GateError> {
        Ok(OutputBuffer::adopt(orphans)?)
    }

    fn isolated(&self, bridge: &str) -> Result<(), GateError> {
        Ok(isolated(bridge)?)
    }
}

pub(super) fn run(
    gate: &Gate<'_>,
    judge: &mut dyn Judge,
    interrupt: &dyn Interrupt,
    observer: &dyn GateObserver,
    totals: &mut Totals,
) -> Result<GateEnd, GateError> {
    run_with(gate, &Netlink, judge, interrupt, observer, totals)
}

pub(super) fn run_with(
    gate: &Gate<'_>,
    plumbing: &dyn Plumbing,
    judge: &mut dyn Judge,
    interrupt: &dyn Interrupt,
    observer: &dyn GateObserver,
    totals: &mut Totals,
) -> Result<GateEnd, GateError> {
    let (devices, pause) = gate.source.devices().zip(gate.source.pause()).ok_or_else(not_possible)?;
    if gate.settings.suspend_every > 0 && gate.source.suspend().is_none() {
        let reason = format!("there can be no restore points: {}", gate.source.no_suspend());
        return Err(GateError::Unsuitable { reason });
    }
    let identity = devices.identity();
    let mut journal = open_journal(&gate.journal, &identity)?;
    let left = journal.left();
    match left {
        Left::Frozen(epoch) if !gate.thaw => return Err(GateError::Frozen { epoch }),
        Left::Quarantined(bridge) => return Err(GateError::InQuarantine { bridge }),
        _ => {}
    }
    let vifs = devices.vifs()?;
    let not_held = devices.other_channels()?;
    let options = OutputOptions {
        limit_bytes: gate.settings.limit_bytes,
        hold_inbound: gate.settings.hold_inbound,
        vm: identity.clone(),
    };
    let mut write = |act: &str, rest: serde_json::Value| {
        journal.write(act, &rest).map_err(|source| GateError::Journal { source })
    };
    write(
        "begin",
        json!({
            "vm": gate.vm, "source": gate.source.spec(), "vifs": names(&vifs), "not_held": not_held,
            "interval_ms": gate.settings.interval.as_millis() as u64, "fail_open": gate.settings.fail_open,
        }),
    )?;
    let (buffer, dropped) = take_over(plumbing, &vifs, &options)?;
    if buffer.is_some() {
        write("dropped", json!({ "packets": dropped }))?;
    }
    let holds = buffer.is_some();
    let control = Control::new(gate.settings, observer, pause, plumbing, options, buffer, journal);
    if left != Left::Ordinary {
        control.begin_braked()?;
    }
    observer.event(&Event::Began { not_held: &not_held, dropped });
    if holds {
        let names = names(&vifs);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        observer.event(&Event::Holding { vifs: &names });
    }
    let end = take_epochs(gate, devices, &control, judge, interrupt, totals);
    end_with(gate.settings, &control, &end);
    end
}

fn take_epochs(
    gate: &Gate<'_>,
    devices: &dyn Devices,
    control: &Control<'_>,
    judge: &mut dyn Judge,
    interrupt: &dyn Interrupt,
    totals: &mut Totals,
) -> Result<GateEnd, GateError> {
    let Some(pause) = gate.source.pause() else { return Ok(GateEnd::Finished) };
    let source = Gated::new(gate.source, pause, control);
    let attendant = Attendant::new(control, judge);
    let options = Options {
        recheck_epochs: gate.settings.recheck_epochs,
        disk_snapshot: gate.disk_snapshot.clone(),
        ..Options::default()
    };
    let ear = Ear(control);
    let ingest = Ingest {
        archive: gate.archive,
        vm: gate.vm,
        options: &options,
        interrupt,
        observer: &ear,
        witness: Some(&attendant),
    };
    let run = Run { source: &source, devices, ingest, control, attendant: &attendant };
    guarded(&run, gate.epochs, totals)
}

/// Passes the pipeline's remarks on.
struct Ear<'a>(&'a Control<'a>);

impl Observer for Ear<'_> {
    fn committed(&self, _report: &EpochReport) {}

    fn remark(&self, text: &str) {
        self.0.observer.event(&Event::Remark(text));
    }
}

fn names(vifs: &[Vif]) -> Vec<String> {
    vifs.iter().map(|vif| vif.name.clone()).collect()
}

fn not_possible() -> GateError {
    let reason = "this kind of guest cannot be gated: only domains of Xen can (xen:DOMAIN)".to_owned();
    GateError::Unsuitable { reason }
}

fn open_journal(path: &Path, identity: &str) -> Result<Journal, GateError> {
    Journal::open(path, identity).map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => GateError::Busy { path: path.display().to_string() },
        _ => GateError::Journal { source },
    })
}

/// The buffer that an earlier gate left, on all of `vifs` and with the first interval open, and how many packets it held, which are
/// dropped; `None` when nothing is held: the first epoch is then looked at before anything is.
fn take_over(
    plumbing: &dyn Plumbing,
    vifs: &[Vif],
    options: &OutputOptions,
) -> Result<(Option<OutputBuffer>, u64), GateError> {
    let Some(domid) = vifs.first().map(|vif| vif.domid) else {
        let reason =
            "the guest has no network card, so that nothing is to be held: `varve capture` is what it needs";
        return Err(GateError::Unsuitable { reason: reason.to_owned() });
    };
    let orphans: Vec<Orphan> =
        plumbing.orphans()?.into_iter().filter(|orphan| orphan.vif.domid == domid).collect();
    // What was never redirected, or has no card any more, is in the way only.
    let (remains, holding): (Vec<_>, Vec<_>) =
        orphans.into_iter().partition(|orphan| matches!(orphan.traffic, Traffic::Passes | Traffic::Absent));
    if !remains.is_empty() {
        plumbing.adopt(remains)?.remove().map_err(|(_, error)| error)?;
    }
    if holding.is_empty() {
        return Ok((None, 0));
    }
    let mut buffer = plumbing.adopt(holding)?;
    let dropped = buffer.begin_anew(options.limit_bytes)?;
    buffer.set_inbound(options.hold_inbound, options.limit_bytes)?;
    let new = buffer.survey(vifs)?;
    if !new.is_empty() {
        buffer.extend(&new, options)?;
    }
    Ok((Some(buffer), dropped))
}

/// Writes down how it ended. A gate that failed leaves the guest paused, so that it does nothing unseen, unless it is to fail open.
fn end_with(settings: &Settings, control: &Control<'_>, end: &Result<GateEnd, GateError>) {
    let how = match end {
        Ok(GateEnd::Finished) => "finished".to_owned(),
        Ok(GateEnd::Frozen { .. }) => "frozen".to_owned(),
        Err(error) => error.to_string(),
    };
    let gone =
        matches!(end, Err(GateError::Capture(CaptureError::Source { source: SourceError::Gone { .. }, .. })));
    let last = match end {
        Err(_) if gone => control.clean_up(),
        // Nothing was ever held.
        Err(_) if control.mode() == Mode::Watching => Ok(()),
        Err(_) if settings.fail_open => control.give_up_open(&how),
        Err(_) => control.brake(&how),
        Ok(_) => control.leave(),
    };
    if let Err(error) = last.and_then(|()| control.note("end", &json!({ "how": how }))) {
        control.observer.event(&Event::Failed { what: &error.to_string() });
    }
}

/// See [`super::open_up`].
pub(super) fn open_up(source: &dyn Source, journal: &Path) -> Result<u64, GateError> {
    let devices = source.devices().ok_or_else(not_possible)?;
    let identity = devices.identity();
    let mut journal = open_journal(journal, &identity)?;
    journal.write("off", &json!({})).map_err(|source| GateError::Journal { source })?;
    let vifs = devices.vifs()?;
    let orphans: Vec<Orphan> = OutputBuffer::orphans()?
        .into_iter()
        .filter(|orphan| vifs.iter().any(|vif| vif.domid == orphan.vif.domid))
        .collect();
    let plugs = orphans.iter().filter_map(|orphan| orphan.outbound);
    let held = plugs.map(|plug| u64::from(plug.waiting_packets)).sum();
    OutputBuffer::adopt(orphans)?.remove().map_err(|(_, error)| error)?;
    Ok(held)
}
