//! The guest as the pipeline of a gate sees it: one that the gate may have paused, and must not pause while it is held.

use std::sync::Arc;

use super::control::Control;
use crate::SourceError;
use crate::source::{Devices, DirtyLog, GuestMemory, Hold, Pause, Registers, Source};

/// A source whose pauses the gate knows of.
pub(super) struct Gated<'a> {
    source: &'a dyn Source,
    pausing: Grip<'a>,
    suspending: Option<Grip<'a>>,
}

struct Grip<'a> {
    pause: &'a dyn Pause,
    control: &'a Control<'a>,
}

impl<'a> Gated<'a> {
    pub(super) fn new(source: &'a dyn Source, pause: &'a dyn Pause, control: &'a Control<'a>) -> Self {
        let grip = |pause| Grip { pause, control };
        Self { source, pausing: grip(pause), suspending: source.suspend().map(grip) }
    }
}

impl Pause for Grip<'_> {
    fn pause(&self) -> Result<Hold, SourceError> {
        if let Some(braked) = self.control.takes() {
            return Ok(braked);
        }
        let hold = self.pause.pause();
        if hold.is_err() {
            self.control.took();
        }
        hold
    }

    fn resume(&self, hold: &Hold) -> Result<(), SourceError> {
        match hold {
            // The gate has paused it; if it has run nevertheless, somebody else let it go.
            Hold::Theirs(_) if self.control.took() => {
                let stood_still = self.pause.resume(hold);
                if matches!(stood_still, Err(SourceError::Disturbed)) {
                    self.control.was_let_go();
                }
                stood_still
            }
            hold => {
                let resumed = self.pause.resume(hold);
                self.control.took();
                resumed
            }
        }
    }
}

impl Source for Gated<'_> {
    fn spec(&self) -> String {
        self.source.spec()
    }

    fn memory(&self) -> Result<Arc<dyn GuestMemory>, SourceError> {
        self.source.memory()
    }

    fn forget_memory(&self) {
        self.source.forget_memory();
    }

    fn pause(&self) -> Option<&dyn Pause> {
        Some(&self.pausing)
    }

    fn suspend(&self) -> Option<&dyn Pause> {
        self.suspending.as_ref().map(|grip| grip as &dyn Pause)
    }

    fn registers(&self) -> Option<&dyn Registers> {
        self.source.registers()
    }

    fn dirty_log(&self) -> Option<&dyn DirtyLog> {
        self.source.dirty_log()
    }

    fn devices(&self) -> Option<&dyn Devices> {
        self.source.devices()
    }

    fn take_remarks(&self) -> Vec<String> {
        self.source.take_remarks()
    }
}
