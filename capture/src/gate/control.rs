//! What the gate has in its hands: the output buffer, the guest's pause, and the journal, which is written first.
//!
//! Three parties use it: the loop that takes epochs, the pipeline while it takes one, and the [guard](super::guard) that watches the
//! clock. Each act happens under the lock as a whole.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::error::GateError;
use super::event::{Event, GateObserver};
use super::journal::{Journal, Left};
use super::settings::{Quarantine, Settings, Waiting, may_run_on};
use super::start::Plumbing;
use crate::SourceError;
use crate::output::{OutputBuffer, OutputError, OutputOptions, Traffic, Vif, VifStatistics, VifTraffic};
use crate::source::{Hold, Pause};

/// The gate's hands.
pub(super) struct Control<'a> {
    pub(super) settings: &'a Settings,
    pub(super) observer: &'a dyn GateObserver,
    pause: &'a dyn Pause,
    plumbing: &'a dyn Plumbing,
    options: OutputOptions,
    state: Mutex<State>,
    changed: Condvar,
}

/// Whether packets are still held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Nothing is held yet: the first epoch is looked at before.
    Watching,
    /// Nothing leaves before it has passed.
    Gating,
    /// Everything goes where it can harm nobody.
    Quarantined,
    /// Nothing is let go any more.
    Frozen,
}

struct State {
    buffer: Option<OutputBuffer>,
    journal: Journal,
    mode: Mode,
    /// The interval that is open, from 0: between two ends of epochs of the output.
    interval: u64,
    /// Since when the packets of a closed interval wait, and since when nothing was heard of them.
    undecided: Option<(Instant, Instant)>,
    /// Whether something was found: nothing is let go any more but to where it can harm nobody.
    condemned: bool,
    /// Whether the pipeline holds the guest, or is about to.
    taking: bool,
    /// Since when the gate has paused the guest.
    brake: Option<(Instant, Hold)>,
}

impl State {
    fn buffer(&mut self) -> Result<&mut OutputBuffer, OutputError> {
        let nothing = || OutputError::Unsuitable { reason: "nothing is held yet".to_owned() };
        self.buffer.as_mut().ok_or_else(nothing)
    }

    fn traffic(&self) -> Vec<VifTraffic> {
        self.buffer.as_ref().map(OutputBuffer::traffic).unwrap_or_default()
    }

    fn statistics(&mut self) -> Result<Vec<VifStatistics>, OutputError> {
        self.buffer.as_mut().map_or(Ok(Vec::new()), OutputBuffer::statistics)
    }

    fn write(&mut self, act: &str, rest: &serde_json::Value) -> Result<(), GateError> {
        self.journal.write(act, rest).map_err(|source| GateError::Journal { source })
    }

    fn waiting(&mut self) -> Result<Waiting, OutputError> {
        let counts = self.statistics()?;
        let bytes = counts.iter().filter_map(|vif| vif.outbound).map(|plug| plug.waiting_bytes).max();
        Ok(Waiting {
            undecided: self.undecided.map(|(since, _)| since.elapsed()),
            silent: self.undecided.map_or(Duration::ZERO, |(_, heard)| heard.elapsed()),
            bytes: bytes.unwrap_or(0),
            braked: self.brake.as_ref().map(|(since, _)| since.elapsed()),
        })
    }

    /// The pause that the gate has the guest in, made if there is none.
    fn hold(&mut self, pause: &dyn Pause) -> Result<Hold, SourceError> {
        match &self.brake {
            Some((_, hold)) => Ok(hold.clone()),
            None => pause.pause(),
        }
    }
}

impl<'a> Control<'a> {
    /// `buffer`: what holds already, if anything does.
    pub(super) fn new(
        settings: &'a Settings,
        observer: &'a dyn GateObserver,
        pause: &'a dyn Pause,
        plumbing: &'a dyn Plumbing,
        options: OutputOptions,
        buffer: Option<OutputBuffer>,
        journal: Journal,
    ) -> Self {
        let mode = if buffer.is_some() { Mode::Gating } else { Mode::Watching };
        let (interval, undecided, condemned, taking, brake) = (0, None, false, false, None);
        let state =
            Mutex::new(State { buffer, journal, mode, interval, undecided, condemned, taking, brake });
        Self { settings, observer, pause, plumbing, options, state, changed: Condvar::new() }
    }

    /// Begins to hold what comes through `vifs`, if that has not begun yet.
    pub(super) fn begin_holding(&self, vifs: &[Vif]) -> Result<(), GateError> {
        let mut state = self.state();
        if state.mode != Mode::Watching {
            return Ok(());
        }
        let names: Vec<&str> = vifs.iter().map(|vif| vif.name.as_str()).collect();
        state.write("hold", &json!({ "vifs": names }))?;
        state.buffer = Some(self.plumbing.install(vifs, &self.options)?);
        state.mode = Mode::Gating;
        state.write("held", &json!({}))?;
        drop(state);
        self.observer.event(&Event::Holding { vifs: &names });
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn mode(&self) -> Mode {
        self.state().mode
    }

    /// Notes something that is not an act of the gate's.
    pub(super) fn note(&self, act: &str, rest: &serde_json::Value) -> Result<(), GateError> {
        self.state().write(act, rest)
    }

    /// The counts of every vif.
    pub(super) fn statistics(&self) -> Result<Vec<VifStatistics>, OutputError> {
        self.state().statistics()
    }

    /// What is known of packets that wait.
    pub(super) fn waiting(&self) -> Result<Waiting, OutputError> {
        self.state().waiting()
    }

    /// The pipeline is about to hold the guest: how it stands still already, if the gate has paused it.
    pub(super) fn takes(&self) -> Option<Hold> {
        let mut state = self.state();
        if state.brake.is_some() {
            return Some(Hold::Theirs("the gate has paused it".to_owned()));
        }
        state.taking = true;
        None
    }

    /// The pipeline has let the guest go. Whether it stands still nevertheless.
    pub(super) fn took(&self) -> bool {
        let mut state = self.state();
        state.taking = false;
        state.brake.is_some()
    }

    /// Ends the open interval, unless the one before it is undecided. The guest stands still.
    pub(super) fn close(&self) -> Result<(), GateError> {
        let mut state = self.state();
        if state.mode != Mode::Gating {
            return Ok(());
        }
        if self.options.hold_inbound {
            state.buffer()?.hold_inbound()?;
        }
        if state.undecided.is_some() {
            return Ok(());
        }
        let interval = state.interval;
        state.write("close", &json!({ "interval": interval }))?;
        let closed = state.buffer()?.close_epoch();
        // Closed on one vif is closed.
        if state.traffic().iter().any(|vif| vif.traffic == Traffic::Undecided) {
            let now = Instant::now();
            state.undecided = Some((now, now));
            state.interval += 1;
        }
        closed.map_err(GateError::Output)
    }

    /// Lets through again what is sent to the guest.
    pub(super) fn pass_inbound(&self) -> Result<(), GateError> {
        let mut state = self.state();
        // The mode may have changed since it was held.
        match state.mode != Mode::Watching && self.options.hold_inbound {
            true => Ok(state.buffer()?.pass_inbound()?),
            false => Ok(()),
        }
    }

    /// Lets the packets of the closed interval go, for which `epoch` has passed, and tells how long they have waited.
    pub(super) fn release(&self, epoch: u64) -> Result<Option<Duration>, GateError> {
        let mut state = self.state();
        let may_go = state.mode == Mode::Gating && !state.condemned;
        let Some((since, _)) = state.undecided.filter(|_| may_go) else {
            return Ok(None);
        };
        let interval = state.interval.saturating_sub(1);
        state.write("release", &json!({ "interval": interval, "epoch": epoch }))?;
        state.buffer()?.release_closed()?;
        state.undecided = None;
        Ok(Some(since.elapsed()))
    }

    /// Lets the guest go on, if the gate had paused it and nothing is undecided any more.
    pub(super) fn go_on(&self) -> Result<(), GateError> {
        let mut state = self.state();
        let free = state.undecided.is_none() && matches!(state.mode, Mode::Gating | Mode::Watching);
        if free { self.go(&mut state) } else { Ok(()) }
    }

    /// A verdict came that was incomplete. For another the guest has to run on, which it may for some time.
    pub(super) fn look_again(&self) -> Result<(), GateError> {
        let mut state = self.state();
        let now = Instant::now();
        state.undecided = state.undecided.map(|(since, _)| (since, now));
        let waiting = state.waiting()?;
        if may_run_on(self.settings, waiting) { self.go(&mut state) } else { Ok(()) }
    }

    /// Lets the guest go on, if the gate had paused it.
    fn go(&self, state: &mut State) -> Result<(), GateError> {
        let Some((since, hold)) = state.brake.clone() else { return Ok(()) };
        // One that was left frozen is so until now.
        let act = if matches!(state.journal.left(), Left::Frozen(_)) { "thaw" } else { "go" };
        state.write(act, &json!({}))?;
        let resumed = self.pause.resume(&hold);
        state.brake = None;
        self.observer.event(&Event::Going { paused: since.elapsed() });
        match resumed {
            // Somebody else let it go before.
            Ok(()) | Err(SourceError::Disturbed) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Pauses the guest until its packets may go. Not while an epoch is being taken, for which it stands still anyway.
    pub(super) fn brake(&self, reason: &str) -> Result<(), GateError> {
        let mut state = self.state();
        // One that is frozen may not be: that can fail.
        if state.taking || state.brake.is_some() || state.mode == Mode::Quarantined {
            return Ok(());
        }
        // To pause it is right also when it cannot be written down.
        let written = state.write("brake", &json!({ "reason": reason }));
        let hold = self.pause.pause()?;
        state.brake = Some((Instant::now(), hold));
        self.changed.notify_all();
        drop(state);
        self.observer.event(&Event::Braked { reason });
        written
    }

    /// Somebody else has let a guest go on that the gate had paused.
    pub(super) fn was_let_go(&self) {
        self.state().brake = None;
    }

    /// Something was found. From here on nothing lets the guest's packets go, whatever else fails.
    pub(super) fn condemn(&self) {
        self.state().condemned = true;
    }

    /// Takes over a guest that stands still since an earlier gate: it goes on with the first epoch that passes.
    pub(super) fn begin_braked(&self) -> Result<(), GateError> {
        let mut state = self.state();
        // Whoever paused it, it is for us to let go.
        self.pause.pause()?;
        state.brake = Some((Instant::now(), Hold::Ours));
        Ok(())
    }

    /// Lets the packets of the closed interval go without a verdict.
    pub(super) fn open(&self, reason: &str) -> Result<(), GateError> {
        let mut state = self.state();
        if state.mode != Mode::Gating || state.condemned || state.undecided.is_none() {
            return Ok(());
        }
        let interval = state.interval.saturating_sub(1);
        state.write("fail-open", &json!({ "interval": interval, "reason": reason }))?;
        state.buffer()?.release_closed()?;
        state.undecided = None;
        self.go(&mut state)?;
        drop(state);
        self.observer.event(&Event::FailedOpen { reason });
        Ok(())
    }

    /// Leaves the guest paused for good, and its packets held.
    pub(super) fn freeze(&self, epoch: u64) -> Result<(), GateError> {
        let mut state = self.state();
        state.mode = Mode::Frozen;
        // Should it not be written down, a later gate finds a guest that is paused by others: it stays so.
        let written = state.write("freeze", &json!({ "epoch": epoch }));
        let hold = state.hold(self.pause)?;
        self.pause.leave_held(&hold)?;
        written
    }

    /// Lets the guest run on where it can harm nobody. Its packets go there, and are never seen elsewhere.
    pub(super) fn quarantine(&self, quarantine: &Quarantine, reason: &str) -> Result<(), GateError> {
        let mut state = self.state();
        if state.mode != Mode::Gating {
            return Ok(());
        }
        // It may have been connected to something since the gate began.
        self.plumbing.isolated(&quarantine.bridge)?;
        state.write("quarantine", &json!({ "bridge": quarantine.bridge, "reason": reason }))?;
        if let Err(error) = state.buffer()?.move_to(&quarantine.bridge) {
            // Nothing was let go, so that it is held as before.
            state.write("stay", &json!({ "reason": error.to_string() }))?;
            return Err(error.into());
        }
        state.mode = Mode::Quarantined;
        state.undecided = None;
        state.buffer()?.release_all()?;
        self.go(&mut state)?;
        drop(state);
        self.observer.event(&Event::Quarantined { bridge: &quarantine.bridge, reason });
        Ok(())
    }

    /// Holds vifs that the guest was given since. Costs little when there are none.
    pub(super) fn hold_new(&self, vifs: &[Vif]) -> Result<(), GateError> {
        let held = {
            let mut state = self.state();
            state.mode != Mode::Gating || state.buffer.as_mut().is_some_and(|buffer| buffer.holds(vifs))
        };
        if held { Ok(()) } else { self.hold_all(vifs) }
    }

    /// Holds vifs that the guest was given since, forgets those that are gone, and makes sure that nobody has undone what holds the others.
    pub(super) fn hold_all(&self, vifs: &[Vif]) -> Result<(), GateError> {
        let mut state = self.state();
        if state.mode != Mode::Gating {
            return Ok(());
        }
        let new = state.buffer()?.survey(vifs)?;
        if state.traffic().iter().all(|vif| vif.traffic == Traffic::Held) {
            // Those that waited for a verdict are gone with their card.
            state.undecided = None;
        }
        if !new.is_empty() {
            let names: Vec<&str> = new.iter().map(|vif| vif.name.as_str()).collect();
            state.write("extend", &json!({ "vifs": names }))?;
            state.buffer()?.extend(&new, &self.options)?;
            self.observer.event(&Event::VifsAdded { vifs: &names });
        }
        Ok(())
    }

    /// Ends the gate as it may fail: everything passes from now on, unless something was found.
    pub(super) fn give_up_open(&self, reason: &str) -> Result<(), GateError> {
        let mut state = self.state();
        if state.condemned {
            drop(state);
            return self.brake(reason);
        }
        state.write("fail-open", &json!({ "reason": reason, "all": true }))?;
        if state.buffer.is_some() {
            state.buffer()?.release_all()?;
        }
        self.go(&mut state)?;
        drop(state);
        self.observer.event(&Event::FailedOpen { reason });
        Ok(())
    }

    /// Waits for so long, or until the guest was paused because of packets whose interval is still open.
    pub(super) fn wait(&self, time: Duration) -> bool {
        let state = self.state();
        let (state, _) = self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner);
        state.brake.is_some() && state.undecided.is_none()
    }

    /// Lets the guest go on, though not its packets, and removes what is left of cards that are gone.
    pub(super) fn leave(&self) -> Result<(), GateError> {
        let mut state = self.state();
        if state.mode == Mode::Gating {
            self.go(&mut state)?;
        }
        Ok(())
    }

    /// Removes what is left of the buffer of a guest that is gone.
    pub(super) fn clean_up(&self) -> Result<(), GateError> {
        let mut state = self.state();
        Ok(state.buffer.as_mut().map_or(Ok(()), OutputBuffer::dissolve)?)
    }
}
