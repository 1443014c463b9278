//! The two ways to hold a domain still: pausing its vCPUs, and having its kernel suspend itself.

use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use super::domain::{Domain, failed};
use super::info::DomainInfo;
use super::journal::{Holding, Journal};
use crate::SourceError;
use crate::source::{Hold, Pause};

/// How the guest takes events from Xen; zero until its drivers have asked for them (`xen/hvm/params.h`).
const HVM_PARAM_CALLBACK_IRQ: u32 = 0;

/// How long a guest may take to notice that it is to suspend itself.
const NOTICE: Duration = Duration::from_secs(10);

/// How long it may take to be suspended from there on.
const SUSPEND: Duration = Duration::from_secs(60);

/// From one look at a guest that is suspending itself to the next.
const LOOK: Duration = Duration::from_micros(200);

/// How often others may write to xenstore while a request is being taken back.
const ATTEMPTS: u32 = 100;

/// Stops the vCPUs where they are.
pub(super) struct Pausing {
    pub(super) domain: Arc<Domain>,
    pub(super) journal: Arc<Journal>,
}

impl Pause for Pausing {
    fn pause(&self) -> Result<Hold, SourceError> {
        if let Some(theirs) = stands_still(&self.domain.info()?) {
            return Ok(theirs);
        }
        self.journal.holding(Holding::Paused)?;
        match self.domain.control.pause(self.domain.id) {
            Ok(()) => Ok(Hold::Ours),
            Err(error) => {
                let _ = self.journal.holding(Holding::Nothing);
                Err(self.domain.failed("pausing the domain", error))
            }
        }
    }

    fn resume(&self, hold: &Hold) -> Result<(), SourceError> {
        if *hold != Hold::Ours {
            return stood_still(&self.domain.info()?);
        }
        let unpaused = self.domain.control.unpause(self.domain.id);
        let Err(error) = unpaused else { return self.journal.holding(Holding::Nothing) };
        // Xen refuses to unpause what is not paused.
        let info = self.domain.info()?;
        if info.paused {
            return Err(failed("unpausing the domain", error));
        }
        self.journal.holding(Holding::Nothing)?;
        Err(SourceError::Disturbed)
    }

    /// Pausing is counted, and what the journal does not tell of is nobody's to undo.
    fn leave_held(&self, hold: &Hold) -> Result<(), SourceError> {
        if *hold == Hold::Ours { self.journal.holding(Holding::Nothing) } else { Ok(()) }
    }
}

/// Has the guest suspend itself, and then tells it that nothing came of it.
pub(super) struct Suspending {
    pub(super) domain: Arc<Domain>,
    pub(super) journal: Arc<Journal>,
}

impl Suspending {
    /// Whether the guest's kernel has offered to suspend itself: it says so when it boots (`control/feature-suspend`,
    /// docs/misc/xenstore-paths), but not again when it was restored. Like libxl, believe one then that takes events. One that
    /// was restored and has not run yet can say nothing, and was suspended before.
    pub(super) fn is_offered(domain: &Domain) -> bool {
        let said = domain.store.read(&domain.path("control/feature-suspend"));
        let takes_events =
            || domain.control.hvm_param(domain.id, HVM_PARAM_CALLBACK_IRQ).is_ok_and(|via| via != 0);
        let stands_still = || domain.info().is_ok_and(|info| info.paused);
        matches!(said, Ok(Some(value)) if value == "1") || takes_events() || stands_still()
    }
}

impl Pause for Suspending {
    fn pause(&self) -> Result<Hold, SourceError> {
        if let Some(theirs) = stands_still(&self.domain.info()?) {
            return Ok(theirs);
        }
        self.journal.holding(Holding::Suspended)?;
        let suspended = request(&self.domain).and_then(|()| wait_until_suspended(&self.domain, SUSPEND));
        match suspended {
            Ok(()) => Ok(Hold::Ours),
            Err(error) => {
                // A guest that may still suspend itself, or could not be let go on, is for the next to come.
                if matches!(take_back(&self.domain), Ok(TakenBack::Resumed | TakenBack::Withdrawn)) {
                    let _ = self.journal.holding(Holding::Nothing);
                }
                Err(error)
            }
        }
    }

    fn resume(&self, hold: &Hold) -> Result<(), SourceError> {
        let info = self.domain.info()?;
        if *hold != Hold::Ours {
            return stood_still(&info);
        }
        if !info.suspended() {
            self.journal.holding(Holding::Nothing)?;
            return Err(SourceError::Disturbed);
        }
        resume(&self.domain)?;
        self.journal.holding(Holding::Nothing)
    }
}

/// Undoes what a process that died was doing to the domain; whether there was anything.
pub(super) fn undo(domain: &Domain, holding: Holding) -> Result<bool, SourceError> {
    match holding {
        Holding::Nothing => Ok(false),
        Holding::Paused if domain.info()?.paused => {
            let unpaused = domain.control.unpause(domain.id);
            unpaused.map_err(|error| domain.failed("unpausing the domain", error)).map(|()| true)
        }
        Holding::Paused => Ok(false),
        Holding::Suspended => match take_back(domain)? {
            TakenBack::Resumed => Ok(true),
            TakenBack::Withdrawn => Ok(false),
            TakenBack::Paused => {
                let reason = format!(
                    "domain {} was asked to suspend itself by an earlier varve and is paused, so that it cannot: unpause it, and start again",
                    domain.name
                );
                Err(SourceError::Unsuitable { reason })
            }
            // That varve was killed before it asked, or after it had taken that back.
            TakenBack::Silent => Ok(false),
        },
    }
}

/// What became of a request to suspend that was taken back.
#[derive(PartialEq)]
enum TakenBack {
    /// The guest had suspended itself and runs on.
    Resumed,
    /// It has not noticed the request.
    Withdrawn,
    /// It has noticed, if it was asked at all, and is paused.
    Paused,
    /// It has noticed, if it was asked at all, and has done something else.
    Silent,
}

/// How a domain stands still that nobody of us holds.
fn stands_still(info: &DomainInfo) -> Option<Hold> {
    let reason = match info.shutdown {
        None if info.paused => "paused".to_owned(),
        None => return None,
        Some(0) => "powered off".to_owned(),
        Some(1) => "rebooting".to_owned(),
        Some(2) => "suspended".to_owned(),
        Some(3) => "crashed".to_owned(),
        Some(code) => format!("shut down with code {code}"),
    };
    Some(Hold::Theirs(reason))
}

fn stood_still(info: &DomainInfo) -> Result<(), SourceError> {
    stands_still(info).map(drop).ok_or(SourceError::Disturbed)
}

/// Asks the guest to suspend itself and waits until it has noticed: it empties the node.
fn request(domain: &Domain) -> Result<(), SourceError> {
    let doing = "asking the guest to suspend itself";
    let node = domain.path("control/shutdown");
    domain.store.write(&node, "suspend").map_err(|error| domain.failed(doing, error))?;
    let since = Instant::now();
    while domain.store.read(&node).map_err(|error| domain.failed(doing, error))?.as_deref() == Some("suspend")
    {
        if since.elapsed() > NOTICE {
            return Err(SourceError::Timeout { doing: doing.to_owned(), limit: NOTICE });
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

fn wait_until_suspended(domain: &Domain, limit: Duration) -> Result<(), SourceError> {
    let since = Instant::now();
    loop {
        let info = domain.info()?;
        if info.suspended() {
            return Ok(());
        }
        if let Some(Hold::Theirs(reason)) = stands_still(&info).filter(|_| info.shutdown.is_some()) {
            let doing = "asking the guest to suspend itself".to_owned();
            return Err(SourceError::Refused { doing, reason: format!("it {reason} instead") });
        }
        if since.elapsed() > limit {
            return Err(SourceError::Timeout { doing: "the guest's suspending itself".to_owned(), limit });
        }
        thread::sleep(LOOK);
    }
}

/// Takes the request back, or, when the guest has noticed it already, waits for it and lets the guest go on.
fn take_back(domain: &Domain) -> Result<TakenBack, SourceError> {
    if withdraw(domain)? {
        return Ok(TakenBack::Withdrawn);
    }
    let paused = || domain.info().map(|info| info.paused && !info.suspended());
    if paused()? {
        return Ok(TakenBack::Paused);
    }
    match wait_until_suspended(domain, SUSPEND) {
        Ok(()) => resume(domain).map(|()| TakenBack::Resumed),
        Err(SourceError::Timeout { .. }) if paused()? => Ok(TakenBack::Paused),
        Err(SourceError::Timeout { .. } | SourceError::Refused { .. }) => Ok(TakenBack::Silent),
        Err(error) => Err(error),
    }
}

/// Takes the request back unless the guest has noticed it; whether that was so. Like libxl (`tools/libs/light/libxl_dom_suspend.c`) and
/// the guest (`shutdown_handler` of Linux' `drivers/xen/manage.c`) in a transaction: one of both has it.
fn withdraw(domain: &Domain) -> Result<bool, SourceError> {
    let node = domain.path("control/shutdown");
    let mut attempts = 0..ATTEMPTS;
    loop {
        match domain.store.exchange(&node, "suspend", "") {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && attempts.next().is_some() => {}
            done => return done.map_err(|error| domain.failed("taking back the request to suspend", error)),
        }
    }
}

fn resume(domain: &Domain) -> Result<(), SourceError> {
    domain.control.resume(domain.id).map_err(|error| domain.failed("resuming the domain", error))?;
    domain
        .store
        .resumed(domain.id)
        .map_err(|error| failed("telling xenstore that the domain runs again", error))
}
