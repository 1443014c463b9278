//! A live Xen domain: `xen:DOMAIN`, by name or number, from the dom0 it runs beside.
//!
//! The domain's frames are mapped once, read-only. Xen records which of them are written to (log-dirty); for each epoch
//! the domain is held, the frames written to since are copied, and it runs on.
//!
//! There are two ways to hold it. **Pausing** stops its vCPUs where they are. That takes microseconds, but dom0's
//! backends may still write packets into its memory; the capture copies such frames again until they are quiet.
//! **Suspending** asks the guest's kernel to suspend itself, as for a migration: its devices are quiet, and a guest can
//! be started from what is captured. The kernel takes milliseconds for that.
//!
//! **The domain always comes back.** Whatever fails while it is held, it is let go. For our own sudden death there is a
//! journal that says what was being done to which domain; the next capture of the domain, whatever
//! process that is, undoes it first.

#[cfg(feature = "xen")]
mod devices;
#[cfg(feature = "xen")]
mod domain;
#[cfg(feature = "xen")]
mod emulator;
#[cfg(feature = "xen")]
mod hold;
#[cfg(feature = "xen")]
mod info;
#[cfg(feature = "xen")]
mod journal;
#[cfg(feature = "xen")]
mod live;
#[cfg(feature = "xen")]
mod log;
#[cfg(feature = "xen")]
mod memory;
#[cfg(feature = "xen")]
mod own;
#[cfg(feature = "xen")]
mod state;
#[cfg(feature = "xen")]
mod sys;

use crate::SourceError;
use crate::source::{Source, SourceKind};

/// The line for [`SOURCES`](crate::source::SOURCES).
pub(crate) const KIND: SourceKind = SourceKind { name: "xen", argument: "DOMAIN", available, open };

#[cfg(feature = "xen")]
fn available() -> Result<(), SourceError> {
    Ok(())
}

#[cfg(feature = "xen")]
fn open(domain: &str) -> Result<Box<dyn Source>, SourceError> {
    Ok(Box::new(live::Xen::open(domain)?))
}

#[cfg(not(feature = "xen"))]
fn available() -> Result<(), SourceError> {
    Err(missing())
}

#[cfg(not(feature = "xen"))]
fn open(_domain: &str) -> Result<Box<dyn Source>, SourceError> {
    Err(missing())
}

#[cfg(not(feature = "xen"))]
fn missing() -> SourceError {
    let reason = "this varve was built without Xen's libraries: on the Xen host's release, install libxen-dev and build with \
                  `cargo build --release --features xen`";
    SourceError::Unsuitable { reason: reason.to_owned() }
}
