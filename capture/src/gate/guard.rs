//! The one who watches the clock, whatever the loop is waiting for: the archive, the scanner, the guest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::control::{Control, Mode};
use super::error::GateError;
use super::event::Event;
use super::settings::{Escalation, escalate};
use crate::source::Devices;

/// From one look to the next.
const LOOK: Duration = Duration::from_millis(50);

/// Watches until `done`.
pub(super) fn watch(control: &Control<'_>, devices: &dyn Devices, done: &AtomicBool) {
    let mut said = String::new();
    while !done.load(Ordering::Relaxed) {
        if let Err(error) = look(control, devices) {
            let text = error.to_string();
            if text != said {
                control.observer.event(&Event::Failed { what: &text });
            }
            said = text;
        }
        std::thread::park_timeout(LOOK);
    }
}

fn look(control: &Control<'_>, devices: &dyn Devices) -> Result<(), GateError> {
    if control.mode() != Mode::Gating {
        return Ok(());
    }
    let vifs = devices.vifs()?;
    control.hold_new(&vifs).or_else(|error| {
        control.brake("it has a network card whose packets are not held")?;
        Err(error)
    })?;
    match escalate(control.settings, control.waiting()?) {
        Some(Escalation::Brake(reason)) => control.brake(reason),
        Some(Escalation::Open(reason)) => control.open(reason),
        Some(Escalation::Quarantine(quarantine)) => control.quarantine(&quarantine, "no verdict in time"),
        None => Ok(()),
    }
}
