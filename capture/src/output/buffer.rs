//! The output buffer of one guest.

use std::fmt;
use std::time::Duration;

use super::install::{self, Entry, leads};
use super::netlink::{Link, NetlinkError, Queue, Socket};
use super::plug::Action;
use super::step::{Answer, Kernel, Step};
use super::{
    Failure, Orphan, OutputError, OutputOptions, QueueStatistics, Traffic, Vif, VifStatistics, VifTraffic,
    name, orphan, remove, renew,
};

/// How often, and how long each time, to wait for a card to go with its guest: two seconds in all.
const GONE_TRIES: u32 = 40;
const GONE_PAUSE: Duration = Duration::from_millis(50);

/// Holds what a guest sends through its vifs.
///
/// Dropping the value leaves everything in place: packets stay held, and are dropped once the limit is reached, until
/// [`remove`](Self::remove) or whoever finds the [orphans](Self::orphans) ends it.
pub struct OutputBuffer {
    kernel: Box<dyn Kernel + Send>,
    entries: Vec<Entry>,
    /// The requests that close an epoch on all vifs, made beforehand: the guest waits while they are sent.
    close: Vec<Step>,
}

impl fmt::Debug for OutputBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutputBuffer").field("entries", &self.entries).finish_non_exhaustive()
    }
}

/// An error of the kernel's netlink while `doing` something.
pub(super) fn netlink(doing: &'static str) -> impl Fn(NetlinkError) -> OutputError {
    move |error| OutputError::Netlink { doing, reason: error.to_string() }
}

pub(super) fn connect() -> Result<Box<dyn Kernel + Send>, OutputError> {
    let socket = Socket::open().map_err(netlink("opening a netlink socket"))?;
    Ok(Box::new(socket))
}

impl OutputBuffer {
    /// Begins to hold what comes in through `vifs`, which must be all that the guest has, with the first epoch open.
    ///
    /// # Errors
    /// - [`OutputError::Unsuitable`], [`OutputError::NoVif`], [`OutputError::Netlink`]: nothing was done.
    /// - [`OutputError::NotInstalled`]: what was done was undone; packets pass as before.
    /// - [`OutputError::Incomplete`]: some vifs are held and stay so, others pass as before. [`OutputBuffer::orphans`] finds
    ///   them, to be removed when that has been decided.
    pub fn install(vifs: &[Vif], options: &OutputOptions) -> Result<Self, OutputError> {
        Self::install_by(connect()?, vifs, options)
    }

    pub(super) fn install_by(
        mut kernel: Box<dyn Kernel + Send>,
        vifs: &[Vif],
        options: &OutputOptions,
    ) -> Result<Self, OutputError> {
        let entries = install::install(&mut *kernel, vifs, options)?;
        Ok(Self::new(kernel, entries))
    }

    fn new(kernel: Box<dyn Kernel + Send>, entries: Vec<Entry>) -> Self {
        let close = closing(&entries);
        Self { kernel, entries, close }
    }

    /// The vifs of a domain, found by the names that Xen gives them, emulated cards included. One that was given another name
    /// (`vifname` in the domain's configuration) is not among them: `/libxl` in xenstore knows all.
    ///
    /// # Errors
    /// [`OutputError::Netlink`].
    pub fn vifs_of(domid: u16) -> Result<Vec<Vif>, OutputError> {
        let links = connect()?.links().map_err(netlink("listing devices"))?;
        let vifs = links.iter().filter_map(|link| name::of_vif(&link.name));
        Ok(vifs.filter(|vif| vif.domid == domid).collect())
    }

    /// Output buffers on this host, whoever made them. Those whose maker still runs are among them.
    ///
    /// # Errors
    /// [`OutputError::Netlink`].
    pub fn orphans() -> Result<Vec<Orphan>, OutputError> {
        orphan::find(&mut *connect()?)
    }

    /// Takes over what another process left. Where an epoch ends in its queues cannot be told any more, so that no epoch can be
    /// closed or released: packets stay held or pass as they did, until [`release_all`](Self::release_all) or
    /// [`remove`](Self::remove).
    ///
    /// # Errors
    /// [`OutputError::Netlink`].
    pub fn adopt(orphans: Vec<Orphan>) -> Result<Self, OutputError> {
        Ok(Self::adopt_by(connect()?, orphans))
    }

    pub(super) fn adopt_by(kernel: Box<dyn Kernel + Send>, orphans: Vec<Orphan>) -> Self {
        Self::new(kernel, orphans.into_iter().map(orphan::entry).collect())
    }

    /// Takes over what is held of a domain that is about to be ended, and drops it with all that the domain still sends: the kernel
    /// waits for a card's packets before it lets the card go. Remove the buffer when the domain is gone. `None`: nothing is held.
    ///
    /// # Errors
    /// [`OutputError::Netlink`], [`OutputError::Incomplete`].
    pub fn silence(domid: u16) -> Result<Option<Self>, OutputError> {
        Self::silence_by(connect()?, domid)
    }

    pub(super) fn silence_by(
        mut kernel: Box<dyn Kernel + Send>,
        domid: u16,
    ) -> Result<Option<Self>, OutputError> {
        let mut orphans = orphan::find(&mut *kernel)?;
        orphans.retain(|orphan| orphan.vif.domid == domid);
        if orphans.is_empty() {
            return Ok(None);
        }
        let mut buffer = Self::adopt_by(kernel, orphans);
        let failed = remove::silence(&mut *buffer.kernel, &mut buffer.entries);
        buffer.outcome("dropping what is held", failed).map(|()| Some(buffer))
    }

    /// The vifs and what becomes of their packets, as far as we drove them.
    pub fn traffic(&self) -> Vec<VifTraffic> {
        self.entries.iter().map(Entry::state).collect()
    }

    /// Ends the epoch: what was sent until now waits for a verdict, what is sent from now on is of the next epoch. Call it while
    /// the guest is paused.
    ///
    /// # Errors
    /// - [`OutputError::Order`]: on some vif an epoch is undecided, or where it ends is unknown; nothing was done.
    /// - [`OutputError::Incomplete`]: the epoch was closed on some vifs only. On those that say so it waits for
    ///   [`release_closed`](Self::release_closed) as ever; on the others its packets belong to the next epoch.
    pub fn close_epoch(&mut self) -> Result<(), OutputError> {
        const DOING: &str = "closing an epoch";
        if !self.entries.iter().all(|entry| entry.traffic.allows(Action::Buffer)) {
            return Err(OutputError::Order { doing: DOING, now: self.traffic() });
        }
        let answers = self.kernel.carry_out(&self.close);
        let all: Vec<usize> = (0..self.entries.len()).collect();
        self.settle(DOING, Action::Buffer, &all, answers)
    }

    /// Lets the packets of the closed epoch go, on all vifs on which one was closed.
    ///
    /// # Errors
    /// - [`OutputError::Order`]: no epoch is closed; nothing was done.
    /// - [`OutputError::Incomplete`]: some vifs still hold them; it can be tried again.
    pub fn release_closed(&mut self) -> Result<(), OutputError> {
        self.drive("releasing the closed epoch", Action::ReleaseOne)
    }

    /// Lets everything go that is held, and from now on all that comes. No epoch can be closed afterwards.
    ///
    /// # Errors
    /// [`OutputError::Order`] when there is nothing to release, [`OutputError::Incomplete`] when some vifs did not; it can be
    /// tried again.
    pub fn release_all(&mut self) -> Result<(), OutputError> {
        self.drive("releasing everything", Action::ReleaseIndefinite)
    }

    /// Changes how many bytes are held for each vif. What is held already stays, also when it is more.
    ///
    /// # Errors
    /// [`OutputError::Order`] when there is nothing that holds, [`OutputError::Incomplete`] when some vifs kept their limit.
    pub fn set_limit(&mut self, bytes: u32) -> Result<(), OutputError> {
        self.drive("changing the limit", Action::Limit { bytes })
    }

    /// Holds what is sent to the guest, which otherwise reaches its memory while it is paused: Xen's network backend writes
    /// to pages that the guest granted. Does nothing unless [`OutputOptions::hold_inbound`] was set.
    ///
    /// # Errors
    /// [`OutputError::Incomplete`] when on some vif it may still pass.
    pub fn hold_inbound(&mut self) -> Result<(), OutputError> {
        self.drive_inbound("holding inbound packets", Action::Buffer)
    }

    /// Lets what is sent to the guest pass, and first what was held of it.
    ///
    /// # Errors
    /// [`OutputError::Incomplete`] when on some vif it may still be held; it can be tried again.
    pub fn pass_inbound(&mut self) -> Result<(), OutputError> {
        self.drive_inbound("passing inbound packets", Action::ReleaseIndefinite)
    }

    /// Holds what comes in through more vifs, which the guest was given since: until now, what they sent has passed. What they send
    /// from now on is of the epoch that is open, also while the one before is undecided.
    ///
    /// # Errors
    /// As [`OutputBuffer::install`], and [`OutputError::Order`] when others are not held. The buffer holds what it held; of
    /// [`OutputError::Incomplete`], some of the new ones too.
    pub fn extend(&mut self, vifs: &[Vif], options: &OutputOptions) -> Result<(), OutputError> {
        let held = |entry: &Entry| matches!(entry.traffic, Traffic::Held | Traffic::Undecided);
        if !self.entries.iter().all(held) {
            return Err(OutputError::Order { doing: "holding more vifs", now: self.traffic() });
        }
        self.entries.extend(install::install(&mut *self.kernel, vifs, options)?);
        self.close = closing(&self.entries);
        Ok(())
    }

    /// Whether each of `vifs` is held and still the device that it was; it costs little to ask. [`OutputBuffer::survey`] knows more.
    pub fn holds(&mut self, vifs: &[Vif]) -> bool {
        let Self { kernel, entries, .. } = self;
        vifs.iter().all(|vif| {
            let mut same = entries.iter().filter(|entry| entry.vif.name == vif.name);
            same.any(|entry| {
                entry.traffic != Traffic::Passes && entry.vif_link == kernel.number_of(&vif.name)
            })
        })
    }

    /// Looks whether all is as it was built: forgets vifs that are gone, with what is left of their part of the buffer, and gives those
    /// of `vifs` that are there and not held. One that was taken away and is there again under its name is among them.
    ///
    /// # Errors
    /// [`OutputError::Netlink`]; [`OutputError::Incomplete`] when something of a vif that is gone has stayed, or when what a vif sends
    /// does not come here any more: somebody else has changed that.
    pub fn survey(&mut self, vifs: &[Vif]) -> Result<Vec<Vif>, OutputError> {
        // Devices last: they tell of a vif that goes meanwhile.
        let mut led = Vec::new();
        for entry in &self.entries {
            let filters = entry.vif_link.map_or(Ok(Vec::new()), |link| self.kernel.filters(link));
            led.push(leads(&filters.map_err(netlink("listing filters"))?, entry.ifb_link));
        }
        let links = self.kernel.links().map_err(netlink("listing devices"))?;
        let mut astray = Vec::new();
        for (entry, led) in self.entries.iter_mut().zip(led) {
            if let Some((from, to)) =
                entry.vif_link.zip(Some(entry.ifb_link)).filter(|_| !led && is_there(&links, entry))
            {
                entry.traffic = Traffic::Passes;
                astray.push(entry.failure(&Step::Redirect { from, to }, "somebody has undone that"));
            }
        }
        self.forget(&links)?;
        self.outcome("looking whether everything is held", astray)?;
        let new = |vif: &&Vif| {
            let there = links.iter().any(|link| link.name == vif.name);
            there && self.entries.iter().all(|entry| entry.vif.name != vif.name)
        };
        Ok(vifs.iter().filter(new).cloned().collect())
    }

    /// Drops what is held of a guest that is gone, lets its vifs go, which the kernel keeps as long as packets of theirs wait, and removes
    /// what is left.
    ///
    /// # Errors
    /// [`OutputError::Netlink`], [`OutputError::Incomplete`]: a vif is still there, and its packets are dropped.
    pub fn dissolve(&mut self) -> Result<(), OutputError> {
        let failed = remove::silence(&mut *self.kernel, &mut self.entries);
        self.outcome("dropping what is held", failed)?;
        for _ in 0..GONE_TRIES {
            let links = self.kernel.links().map_err(netlink("listing devices"))?;
            self.forget(&links)?;
            if self.entries.is_empty() {
                return Ok(());
            }
            std::thread::sleep(GONE_PAUSE);
        }
        let kept = self.entries.iter();
        let kept = kept.map(|entry| {
            entry.failure(&Step::RemoveLink { link: entry.ifb_link }, "the card is still there")
        });
        self.outcome("removing what was left of a guest that is gone", kept.collect())
    }

    /// Forgets vifs that are not among `links`, and removes what is left of their part of the buffer.
    fn forget(&mut self, links: &[Link]) -> Result<(), OutputError> {
        if self.entries.iter().all(|entry| is_there(links, entry)) {
            return Ok(());
        }
        let (kept, mut gone) =
            std::mem::take(&mut self.entries).into_iter().partition(|entry| is_there(links, entry));
        self.entries = kept;
        self.close = closing(&self.entries);
        gone.iter_mut().for_each(|entry| (entry.hooked, entry.inbound) = (false, false));
        let failed = remove::remove(&mut *self.kernel, &mut gone);
        self.outcome("removing what was left of vifs that are gone", failed)
    }

    /// Drops everything that is held and begins anew with the first epoch open, whatever was before. Nothing passes meanwhile.
    /// Returns how many packets were dropped.
    ///
    /// # Errors
    /// [`OutputError::Netlink`] when nothing was done; [`OutputError::Incomplete`]: of vifs that say so packets are dropped. It can be
    /// tried again.
    pub fn begin_anew(&mut self, limit_bytes: u32) -> Result<u64, OutputError> {
        let held = self.statistics()?;
        let held =
            held.iter().filter_map(|vif| vif.outbound).map(|plug| u64::from(plug.waiting_packets)).sum();
        let failed = renew::renew(&mut *self.kernel, &mut self.entries, limit_bytes);
        self.outcome("emptying the output buffer", failed).map(|()| held)
    }

    /// Lets what is sent to the guest pass, and makes it possible, or impossible, to hold it, whatever was before.
    ///
    /// # Errors
    /// [`OutputError::Incomplete`] when on some vif it may still be held, or cannot be; it can be tried again.
    pub fn set_inbound(&mut self, hold: bool, limit_bytes: u32) -> Result<(), OutputError> {
        let failed = renew::set_inbound(&mut *self.kernel, &mut self.entries, hold, limit_bytes);
        self.outcome("holding inbound packets, or not", failed)
    }

    /// Connects all vifs to another bridge. What is released from then on goes there.
    ///
    /// # Errors
    /// [`OutputError::NoVif`] when there is no such bridge, [`OutputError::Netlink`]: nothing was done. [`OutputError::Incomplete`] when some
    /// vifs may still be where they were: release nothing.
    pub fn move_to(&mut self, bridge: &str) -> Result<(), OutputError> {
        let links = self.kernel.links().map_err(netlink("listing devices"))?;
        let number = links.iter().find(|link| link.name == bridge).map(|link| link.index);
        let bridge = number.ok_or_else(|| OutputError::NoVif { name: bridge.to_owned() })?;
        let present = |entry: &Entry| entry.vif_link.map(|link| Step::Connect { link, bridge });
        let steps: Vec<Step> = self.entries.iter().filter_map(present).collect();
        let answers = self.kernel.carry_out(&steps);
        let told = self.entries.iter().filter(|entry| entry.vif_link.is_some()).zip(&steps).zip(answers);
        let mut failed: Vec<Failure> = told
            .filter_map(|((entry, step), answer)| answer.err().map(|refusal| entry.failure(step, refusal)))
            .collect();
        // Believe what the kernel says of where they are.
        let links = self.kernel.links().map_err(netlink("listing devices"))?;
        let there = |link: u32| links.iter().any(|known| known.index == link && known.master == Some(bridge));
        for (entry, link) in self.entries.iter().filter_map(|entry| Some((entry, entry.vif_link?))) {
            if !there(link) && failed.iter().all(|failure| failure.vif != entry.vif.name) {
                failed.push(entry.failure(&Step::Connect { link, bridge }, "it is not there afterwards"));
            }
        }
        self.outcome("moving the vifs to another bridge", failed)
    }

    /// The state and counts of every vif.
    ///
    /// # Errors
    /// [`OutputError::Netlink`].
    pub fn statistics(&mut self) -> Result<Vec<VifStatistics>, OutputError> {
        let queues = self.kernel.queues().map_err(netlink("listing queueing disciplines"))?;
        Ok(self.entries.iter().map(|entry| entry.statistics(&queues)).collect())
    }

    /// Removes the output buffer: packets then pass as if there had never been one. What is held is dropped, unless
    /// [`release_all`](Self::release_all) was called before.
    ///
    /// # Errors
    /// [`OutputError::Incomplete`] with what stayed: vifs drop their packets rather than let them pass. The buffer comes back
    /// with it, to try again.
    pub fn remove(mut self) -> Result<(), (Box<Self>, OutputError)> {
        let failed = remove::remove(&mut *self.kernel, &mut self.entries);
        if failed.is_empty() {
            return Ok(());
        }
        let error =
            OutputError::Incomplete { doing: "removing the output buffer", failed, now: self.traffic() };
        Err((Box::new(self), error))
    }

    /// Tells all plugs that may be told.
    fn drive(&mut self, doing: &'static str, action: Action) -> Result<(), OutputError> {
        let allowed = |entry: &&Entry| entry.traffic.allows(action);
        let steps: Vec<Step> = self.entries.iter().filter(allowed).map(|entry| entry.drive(action)).collect();
        if steps.is_empty() {
            return Err(OutputError::Order { doing, now: self.traffic() });
        }
        let told = self.entries.iter().enumerate().filter(|(_, entry)| entry.traffic.allows(action));
        let told: Vec<usize> = told.map(|(index, _)| index).collect();
        let answers = self.kernel.carry_out(&steps);
        self.settle(doing, action, &told, answers)
    }

    /// Enters the answers of the plugs that were told.
    fn settle(
        &mut self,
        doing: &'static str,
        action: Action,
        told: &[usize],
        answers: Vec<Answer>,
    ) -> Result<(), OutputError> {
        let mut failed = Vec::new();
        for (index, answer) in told.iter().zip(answers) {
            let Some(entry) = self.entries.get_mut(*index) else { continue };
            entry.traffic = entry.traffic.after(action, answer);
            entry.released |= entry.traffic == Traffic::Released;
            failed.extend(answer.err().map(|refusal| entry.failure(&entry.drive(action), refusal)));
        }
        self.outcome(doing, failed)
    }

    fn drive_inbound(&mut self, doing: &'static str, action: Action) -> Result<(), OutputError> {
        let steps: Vec<Step> = self.entries.iter().filter_map(|entry| entry.inbound_drive(action)).collect();
        if steps.is_empty() {
            return Ok(());
        }
        let answers = self.kernel.carry_out(&steps);
        let told = self.entries.iter().filter(|entry| entry.inbound_drive(action).is_some());
        let failed = told
            .zip(steps.iter().zip(answers))
            .filter_map(|(entry, (step, answer))| answer.err().map(|refusal| entry.failure(step, refusal)));
        let failed = failed.collect();
        self.outcome(doing, failed)
    }

    fn outcome(&self, doing: &'static str, failed: Vec<Failure>) -> Result<(), OutputError> {
        if failed.is_empty() {
            return Ok(());
        }
        Err(OutputError::Incomplete { doing, failed, now: self.traffic() })
    }
}

/// Whether the device that an entry is for is among `links`: another of its name has another number.
fn is_there(links: &[Link], entry: &Entry) -> bool {
    links.iter().any(|link| Some(link.index) == entry.vif_link)
}

fn closing(entries: &[Entry]) -> Vec<Step> {
    entries.iter().map(|entry| entry.drive(Action::Buffer)).collect()
}

/// The counts of our plug on a device.
pub(super) fn plug_of(queues: &[Queue], link: u32) -> Option<QueueStatistics> {
    queues.iter().find(|queue| queue.link == link && queue.is_plug()).map(|queue| queue.statistics)
}

impl Entry {
    fn drive(&self, action: Action) -> Step {
        Step::Drive { link: self.ifb_link, action }
    }

    fn inbound_drive(&self, action: Action) -> Option<Step> {
        let link = self.vif_link.filter(|_| self.inbound)?;
        Some(Step::Drive { link, action })
    }

    fn statistics(&self, queues: &[Queue]) -> VifStatistics {
        VifStatistics {
            vif: self.vif.clone(),
            traffic: self.traffic,
            outbound: plug_of(queues, self.ifb_link),
            inbound: self.vif_link.filter(|_| self.inbound).and_then(|link| plug_of(queues, link)),
        }
    }

    pub(super) fn state(&self) -> VifTraffic {
        VifTraffic { vif: self.vif.name.clone(), traffic: self.traffic }
    }

    pub(super) fn failure(&self, step: &Step, reason: impl fmt::Display) -> Failure {
        Failure { vif: self.vif.name.clone(), doing: step.to_string(), reason: reason.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_can_move_between_threads() {
        fn movable<T: Send>() {}
        movable::<OutputBuffer>();
        assert_eq!(Traffic::Held.to_string(), "held");
    }
}
