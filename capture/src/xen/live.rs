//! The source.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use varve_formats::xen::hvm_context;

use super::domain::{Domain, failed};
use super::emulator::Emulator;
use super::hold::{Pausing, Suspending, undo};
use super::journal::{Holding, Journal};
use super::log::{self, Log};
use super::memory::DomainMemory;
use super::own::Own;
use super::state::Constants;
use super::sys::ForeignMemory;
use crate::SourceError;
use crate::source::{Devices, Dirty, DirtyLog, GuestMemory, Pause, Registers, Remainder, Source};

/// A live domain.
pub(super) struct Xen {
    domain: Arc<Domain>,
    journal: Arc<Journal>,
    foreign: Arc<ForeignMemory>,
    constants: Constants,
    pausing: Pausing,
    /// There if the guest's kernel can suspend itself and can be started from what is captured then.
    suspending: Option<Suspending>,
    emulated: bool,
    state: Mutex<State>,
}

struct State {
    memory: Option<Arc<DomainMemory>>,
    log: Log,
    own: Own,
    name: String,
    remarks: Vec<String>,
}

impl Xen {
    /// Finds the domain, undoes what a capture that was killed has left, and makes sure that it can be captured.
    pub(super) fn open(wanted: &str) -> Result<Self, SourceError> {
        let domain = Arc::new(Domain::find(wanted)?);
        let (journal, left, logging) = Journal::take(&domain)?;
        let journal = Arc::new(journal);
        let mut remarks = Vec::new();
        // Should that fail, the journal keeps saying what is to be undone.
        if undo(&domain, left)? {
            remarks.push(format!(
                "domain {} stood still since an earlier varve was killed: resumed",
                domain.name
            ));
        }
        journal.holding(Holding::Nothing)?;
        let emulator = Emulator::of(&domain)?;
        if logging {
            // What it would end may be another's by now.
            if log::is_being_saved(domain.id) {
                return Err(SourceError::Saved);
            }
            log::stop(&domain, emulator.as_ref(), &journal)?;
        }
        if !domain.info()?.hvm {
            let reason = format!(
                "domain {} is paravirtualised (PV): its page tables hold machine frames, which only Xen's own tools turn into \
                 the guest's. Have `xl remus` take the checkpoints, and capture them with the source xen-stream",
                domain.name
            );
            return Err(SourceError::Unsuitable { reason });
        }
        let emulated = emulator.is_some();
        let suspending = (!emulated && Suspending::is_offered(&domain))
            .then(|| Suspending { domain: Arc::clone(&domain), journal: Arc::clone(&journal) });
        let foreign =
            ForeignMemory::open().map_err(|error| failed("opening the way to foreign memory", error))?;
        Ok(Self {
            pausing: Pausing { domain: Arc::clone(&domain), journal: Arc::clone(&journal) },
            constants: Constants::read(&domain)?,
            suspending,
            emulated,
            foreign: Arc::new(foreign),
            journal,
            state: Mutex::new(State {
                memory: None,
                log: Log::new(emulator),
                own: Own::default(),
                name: domain.name.clone(),
                remarks,
            }),
            domain,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere must not keep us from letting the guest go.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mapped(&self, state: &State) -> Result<Arc<DomainMemory>, SourceError> {
        let unmapped = || SourceError::Protocol {
            doing: "reading the dirty log".to_owned(),
            reason: "the domain's memory is not mapped".to_owned(),
        };
        state.memory.clone().ok_or_else(unmapped)
    }
}

impl Source for Xen {
    fn spec(&self) -> String {
        format!("xen:{}", self.domain.name)
    }

    fn memory(&self) -> Result<Arc<dyn GuestMemory>, SourceError> {
        let mut state = self.state();
        // What it writes is recorded once, and Xen's tools take that too.
        if state.log.is_on() && log::is_being_saved(self.domain.id) {
            return Err(SourceError::Saved);
        }
        if let Some(now) = self.domain.current_name()?.filter(|now| *now != state.name) {
            let remark = format!("domain {} was renamed from {:?} to {now:?}", self.domain.id, state.name);
            state.remarks.push(remark);
            state.name = now;
        }
        let pages = self.domain.info()?.pages;
        let maximum = self.domain.control.maximum_gfn(self.domain.id);
        let maximum = maximum.map_err(|error| self.domain.failed("asking for the domain's memory", error))?;
        if let Some(memory) = state.memory.clone().filter(|memory| memory.serves(pages, maximum))
            && state.own.look(&self.domain, &self.foreign, &memory)?
        {
            return Ok(memory);
        }
        // The old mapping would keep pages alive that the domain has given back.
        let owned = state.memory.take().map(|memory| memory.pages);
        // Before it is mapped: where a page is moved from then on is noted.
        state.log.begin(&self.domain, &self.journal)?;
        let memory = Arc::new(DomainMemory::map(&self.domain, &self.foreign)?);
        state.log.mapped_anew();
        if let Some(owned) = owned {
            let now = memory.pages;
            state.remarks.push(format!(
                "the domain owned {owned} pages and owns {now} now, or has moved some: mapped anew"
            ));
        }
        state.own.look(&self.domain, &self.foreign, &memory)?;
        state.memory = Some(Arc::clone(&memory));
        Ok(memory)
    }

    fn forget_memory(&self) {
        self.state().memory = None;
    }

    fn is_there(&self) -> Result<(), SourceError> {
        match self.domain.info() {
            Err(gone @ SourceError::Gone { .. }) => Err(gone),
            _ => Ok(()),
        }
    }

    fn pause(&self) -> Option<&dyn Pause> {
        Some(&self.pausing)
    }

    fn suspend(&self) -> Option<&dyn Pause> {
        self.suspending.as_ref().map(|suspending| suspending as &dyn Pause)
    }

    fn no_suspend(&self) -> String {
        if self.emulated {
            return "the domain's devices are emulated, and what their emulator knows is not kept: it cannot be started from an \
                    epoch"
                .to_owned();
        }
        "this domain does not suspend itself for others: its kernel lacks the drivers, or has not started them yet".to_owned()
    }

    fn registers(&self) -> Option<&dyn Registers> {
        Some(self)
    }

    fn dirty_log(&self) -> Option<&dyn DirtyLog> {
        Some(self)
    }

    fn devices(&self) -> Option<&dyn Devices> {
        Some(&*self.domain)
    }

    fn take_remarks(&self) -> Vec<String> {
        std::mem::take(&mut self.state().remarks)
    }
}

impl Registers for Xen {
    fn read(&self) -> Result<Remainder, SourceError> {
        let context = self.domain.control.hvm_context(self.domain.id);
        let context = context.map_err(|error| self.domain.failed("reading the domain's registers", error))?;
        let vcpus = hvm_context::vcpus(&context)?;
        Ok(Remainder { vcpus, state: Some(self.constants.with(&self.domain, context)?) })
    }
}

impl DirtyLog for Xen {
    fn take(&self) -> Result<Dirty, SourceError> {
        let mut state = self.state();
        let memory = self.mapped(&state)?;
        if state.log.mend(&self.domain, &self.journal)? {
            state.memory = None;
            state.remarks.push(
                "somebody else ended the recording of what the domain writes to, as `xl save -c` does: begun again, and everything is \
                 looked at anew; epochs taken meanwhile may hold pages as they were before"
                    .to_owned(),
            );
            return Err(SourceError::Relaid);
        }
        let mut taken = state.log.take(&self.domain, &self.foreign, &memory);
        match &mut taken {
            Ok(Dirty::Frames(frames)) => {
                frames.extend(state.own.frames().filter(|gfn| memory.has(*gfn)));
                frames.sort_unstable();
                frames.dedup();
            }
            Err(SourceError::Relaid) => state.memory = None,
            _ => {}
        }
        taken
    }

    fn peek(&self) -> Result<Dirty, SourceError> {
        let mut state = self.state();
        let memory = self.mapped(&state)?;
        let seen = state.log.peek(&self.domain, &self.foreign, &memory);
        if matches!(seen, Err(SourceError::Relaid)) {
            state.memory = None;
        }
        seen
    }
}

impl Drop for Xen {
    fn drop(&mut self) {
        let mut state = self.state();
        state.log.end(&self.domain, &self.journal);
        self.journal.remove_if_idle();
    }
}
