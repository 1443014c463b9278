//! For tests and benchmarks only: a scripted guest, whose memory changes and whose operations fail when told, and the
//! scan by itself.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use varve_formats::{Fault, Gfn, Gpa, PAGE_SIZE, PhysicalMemory, Region, Vcpu};

use crate::SourceError;
use crate::ingest::scan::Scanner;
use crate::source::{Dirty, DirtyLog, GuestMemory, Hold, Pause, Registers, Remainder, Source};

/// An operation that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Telling the memory's layout.
    Memory,
    /// Being there, which is asked while the next epoch is waited for.
    There,
    /// Holding the guest still.
    Pause,
    /// Taking the dirty log.
    DirtyLog,
    /// Looking at the dirty log.
    Peek,
    /// Reading registers.
    Registers,
    /// Letting the guest go.
    Resume,
}

/// What the guest does to its memory before it is held for the n-th time, from 0.
pub type Script = Box<dyn FnMut(u64, &mut Ram) + Send>;

/// A guest that does as it is told.
pub struct Scripted {
    memory: Arc<Live>,
    state: Mutex<State>,
    /// Whether it tells what it wrote to.
    pub dirty_log: bool,
    /// Whether it stands still from the start.
    pub paused_by_others: bool,
}

struct State {
    running: bool,
    script: Script,
    device: Option<Script>,
    fail: Vec<(Step, u64)>,
    done: Vec<Step>,
    resumed_by_others: bool,
}

/// The guest's memory while it is being changed.
#[derive(Debug, Default)]
pub struct Ram {
    bytes: Vec<u8>,
    dirty: Vec<Gfn>,
    regions: Vec<Region>,
    missing: Vec<Gfn>,
}

impl Ram {
    /// Fills a frame with a byte.
    pub fn fill(&mut self, gfn: Gfn, byte: u8) {
        if let Some(page) = position(&self.regions, gfn.gpa().unwrap_or_default())
            .and_then(|at| self.bytes.get_mut(at..at + PAGE_SIZE))
        {
            page.fill(byte);
            self.dirty.push(gfn);
        }
    }

    /// The same, and the dirty log does not tell.
    pub fn slip(&mut self, gfn: Gfn, byte: u8) {
        self.fill(gfn, byte);
        self.dirty.pop();
    }

    /// Makes a frame unreadable.
    pub fn lose(&mut self, gfn: Gfn) {
        self.missing.push(gfn);
        self.dirty.push(gfn);
    }
}

struct Live {
    regions: Vec<Region>,
    ram: Mutex<Ram>,
}

/// The offset of `at` among the bytes of all regions.
fn position(regions: &[Region], at: Gpa) -> Option<usize> {
    let mut base = 0;
    for region in regions {
        if let Some(into) = at.offset_from(region.start).filter(|into| *into < region.len) {
            return usize::try_from(base + into).ok();
        }
        base += region.len;
    }
    None
}

impl Scripted {
    /// A running guest with these regions, full of zeros.
    pub fn new(regions: &[Region], script: Script) -> Self {
        let bytes = regions.iter().map(|region| region.len).sum::<u64>();
        let ram = Ram { bytes: vec![0; bytes as usize], regions: regions.to_vec(), ..Ram::default() };
        let state = State {
            running: true,
            script,
            device: None,
            fail: Vec::new(),
            done: Vec::new(),
            resumed_by_others: false,
        };
        Self {
            memory: Arc::new(Live { regions: regions.to_vec(), ram: Mutex::new(ram) }),
            state: Mutex::new(state),
            dirty_log: false,
            paused_by_others: false,
        }
    }

    /// Makes the `nth` (from 0) `step` fail.
    pub fn fail(&self, step: Step, nth: u64) {
        self.state().fail.push((step, nth));
    }

    /// A device that writes to the guest's memory while it is held: before each look at the dirty log, the n-th from 0.
    pub fn attach(&self, device: Script) {
        self.state().device = Some(device);
    }

    /// Somebody else resumes the guest while it is held the next time.
    pub fn disturb(&self) {
        self.state().resumed_by_others = true;
    }

    /// Whether the guest runs.
    pub fn is_running(&self) -> bool {
        self.state().running
    }

    /// What was asked of it, in order.
    pub fn done(&self) -> Vec<Step> {
        self.state().done.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the step, and fails if told to.
    fn step(&self, step: Step) -> Result<u64, SourceError> {
        let mut state = self.state();
        let nth = state.done.iter().filter(|done| **done == step).count() as u64;
        state.done.push(step);
        if state.fail.contains(&(step, nth)) {
            return Err(SourceError::Refused {
                doing: format!("{step:?} {nth}"),
                reason: "as scripted".to_owned(),
            });
        }
        Ok(nth)
    }
}

impl Live {
    fn ram(&self) -> MutexGuard<'_, Ram> {
        self.ram.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PhysicalMemory for Live {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        let ram = self.ram();
        for (index, byte) in buf.iter_mut().enumerate() {
            let at = at.checked_add(index as u64).ok_or(Fault::Overflow { at: at.0 })?;
            let found = position(&self.regions, at).and_then(|at| ram.bytes.get(at));
            *byte = *found.filter(|_| !ram.missing.contains(&at.gfn())).ok_or(Fault::NotCaptured { at })?;
        }
        Ok(())
    }

    fn regions(&self) -> &[Region] {
        &self.regions
    }
}

impl GuestMemory for Live {
    fn slice(&self, _at: Gpa, _len: usize) -> Option<&[u8]> {
        None
    }
}

impl Source for Scripted {
    fn spec(&self) -> String {
        "scripted:guest".to_owned()
    }

    fn memory(&self) -> Result<Arc<dyn GuestMemory>, SourceError> {
        self.step(Step::Memory)?;
        Ok(self.memory.clone())
    }

    fn is_there(&self) -> Result<(), SourceError> {
        self.step(Step::There).map(drop)
    }

    fn pause(&self) -> Option<&dyn Pause> {
        Some(self)
    }

    fn registers(&self) -> Option<&dyn Registers> {
        Some(self)
    }

    fn dirty_log(&self) -> Option<&dyn DirtyLog> {
        self.dirty_log.then_some(self)
    }
}

impl Pause for Scripted {
    fn pause(&self) -> Result<Hold, SourceError> {
        let nth = self.step(Step::Pause)?;
        let mut state = self.state();
        (state.script)(nth, &mut self.memory.ram());
        if self.paused_by_others {
            return Ok(Hold::Theirs("paused".to_owned()));
        }
        state.running = false;
        Ok(Hold::Ours)
    }

    fn resume(&self, hold: &Hold) -> Result<(), SourceError> {
        self.step(Step::Resume)?;
        let mut state = self.state();
        state.running = *hold == Hold::Ours;
        if std::mem::take(&mut state.resumed_by_others) { Err(SourceError::Disturbed) } else { Ok(()) }
    }

    fn leave_held(&self, _hold: &Hold) -> Result<(), SourceError> {
        Ok(())
    }
}

impl Registers for Scripted {
    fn read(&self) -> Result<Remainder, SourceError> {
        let nth = self.step(Step::Registers)?;
        let vcpus = vec![Vcpu { rip: nth, ..Vcpu::default() }];
        Ok(Remainder { vcpus, state: Some(nth.to_le_bytes().to_vec()) })
    }
}

impl DirtyLog for Scripted {
    fn take(&self) -> Result<Dirty, SourceError> {
        self.step(Step::DirtyLog)?;
        Ok(Dirty::Frames(sorted(std::mem::take(&mut self.memory.ram().dirty))))
    }

    fn peek(&self) -> Result<Dirty, SourceError> {
        let nth = self.step(Step::Peek)?;
        let mut ram = self.memory.ram();
        if let Some(device) = &mut self.state().device {
            device(nth, &mut ram);
        }
        Ok(Dirty::Frames(sorted(ram.dirty.clone())))
    }
}

fn sorted(mut frames: Vec<Gfn>) -> Vec<Gfn> {
    frames.sort_unstable();
    frames.dedup();
    frames
}

/// Scans all of `memory` as for an epoch, and returns how many frames differ from `previous`.
pub fn scan(memory: &dyn GuestMemory, previous: &[[u8; 32]]) -> usize {
    let changed = AtomicUsize::new(0);
    Scanner { memory, previous, dirty: None }.run(|_, changes| {
        changed.fetch_add(changes.frames.len(), Ordering::Relaxed);
        ControlFlow::Continue(())
    });
    changed.into_inner()
}

/// The digests of all frames of `memory`, as an epoch of it has them.
pub fn digests(memory: &dyn GuestMemory) -> Vec<[u8; 32]> {
    let frames = memory.regions().iter().map(|region| region.len / PAGE_SIZE as u64).sum::<u64>();
    let absent = vec![varve_store::Digest::ABSENT.0; frames as usize];
    let digests = Mutex::new(absent.clone());
    Scanner { memory, previous: &absent, dirty: None }.run(|_, changes| {
        changes.enter(&mut digests.lock().unwrap_or_else(PoisonError::into_inner));
        ControlFlow::Continue(())
    });
    digests.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Reads `received` as the kernel's answers to an output buffer's requests, and returns how many messages made sense.
pub fn read_netlink(received: &[u8]) -> usize {
    crate::output::read_anything(received)
}
