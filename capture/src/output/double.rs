//! For tests: a kernel with devices, plugs, and packets, of which any step can be made to fail.
//!
//! Packets are numbers. What reaches the network or the guest is kept in the order in which it got there.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::io::Errno;

use super::netlink::{Filter, Link, NetlinkError, Queue, Refusal};
use super::plug::{Action, HANDLE, KIND};
use super::step::{Answer, Kernel, Step};
use super::{Orphan, OutputBuffer, OutputError, OutputOptions, QueueStatistics, Vif};

const ROOT: u32 = u32::MAX;
const INGRESS: u32 = 0xffff_fff1;

/// How a step is made to go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fail {
    /// The kernel refuses.
    Refuse(Errno),
    /// It is done, but the answer is lost.
    LoseAnswer,
    /// It is not done, and no answer comes.
    LoseRequest,
}

/// A plug, after the description at the top of `net/sched/sch_plug.c`.
#[derive(Debug, Default)]
struct Plug {
    queue: VecDeque<u64>,
    open: usize,
    closed: usize,
    to_release: usize,
    passes: bool,
    limit_bytes: u32,
    dropped: u32,
    passed: u32,
}

/// Bytes of each packet.
pub(crate) const PACKET_BYTES: u32 = 100;

impl Plug {
    fn enqueue(&mut self, packet: u64) {
        if (self.queue.len() as u32 + 1) * PACKET_BYTES > self.limit_bytes {
            self.dropped += 1;
            return;
        }
        if !self.passes {
            self.open += 1;
        }
        self.queue.push_back(packet);
    }

    fn tell(&mut self, action: Action) {
        match action {
            Action::Buffer => {
                self.closed = std::mem::take(&mut self.open);
                self.passes = false;
            }
            Action::ReleaseOne => self.to_release += std::mem::take(&mut self.closed),
            Action::ReleaseIndefinite => {
                (self.open, self.closed, self.to_release, self.passes) = (0, 0, 0, true);
            }
            Action::Limit { bytes } => self.limit_bytes = bytes,
        }
    }

    fn dequeue(&mut self) -> Option<u64> {
        if !self.passes {
            self.to_release = self.to_release.checked_sub(1)?;
        }
        self.passed += 1;
        self.queue.pop_front()
    }
}

#[derive(Debug)]
struct Device {
    index: u32,
    name: String,
    ifb: bool,
    up: bool,
    alias: Option<String>,
    plug: Option<Plug>,
    hook: bool,
    redirect: Option<u32>,
    master: Option<u32>,
    /// What came in through it and got on, to the bridge.
    network: Vec<u64>,
    /// Whether it goes when none of its packets waits.
    leaves: bool,
}

/// What the double holds.
#[derive(Debug, Default)]
pub(super) struct State {
    devices: Vec<Device>,
    next_index: u32,
    /// Steps carried out so far, failed ones included.
    pub(super) done: Vec<Step>,
    /// The step with this number, from 0, goes wrong.
    pub(super) fail: Vec<(usize, Fail)>,
    /// The packet that came in last, whatever became of it.
    last_sent: Option<u64>,
    /// The listing with this number, from 0, goes wrong.
    pub(super) fail_lists: Vec<usize>,
    lists: usize,
}

/// A kernel that is shared between a test and what it tests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Double(Arc<Mutex<State>>);

impl Double {
    /// A kernel with these devices.
    pub(crate) fn new(names: &[&str]) -> Self {
        let double = Self::default();
        for name in names {
            double.state().add(name, false).unwrap();
        }
        double
    }

    pub(super) fn boxed(&self) -> Box<dyn Kernel + Send> {
        Box::new(self.clone())
    }

    /// Makes the steps with these numbers, counted from now, go wrong.
    pub(crate) fn fail(&self, steps: &[(usize, Fail)]) {
        let mut state = self.state();
        let done = state.done.len();
        state.fail = steps.iter().map(|(step, fail)| (done + step, *fail)).collect();
    }

    /// What [`OutputBuffer`] does with the real kernel.
    pub(crate) fn install(&self, vifs: &[Vif], options: &OutputOptions) -> Result<OutputBuffer, OutputError> {
        OutputBuffer::install_by(self.boxed(), vifs, options)
    }

    /// See [`Double::install`].
    pub(crate) fn orphans(&self) -> Result<Vec<Orphan>, OutputError> {
        super::orphan::find(&mut *self.boxed())
    }

    /// See [`Double::install`].
    pub(crate) fn adopt(&self, orphans: Vec<Orphan>) -> OutputBuffer {
        OutputBuffer::adopt_by(self.boxed(), orphans)
    }

    /// The bridge that a device is a port of.
    pub(crate) fn bridge(&self, name: &str) -> Option<String> {
        let mut state = self.state();
        let bridge = state.named(name).unwrap().master?;
        Some(state.device(bridge).unwrap().name.clone())
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A packet comes in through `vif`.
    pub(crate) fn send(&self, vif: &str, packet: u64) {
        let mut state = self.state();
        state.last_sent = Some(packet);
        let device = state.named(vif).unwrap();
        let Some(ifb) = device.redirect else { return device.network.push(packet) };
        let back = device.index;
        if let Some(ifb) = state.devices.iter_mut().find(|device| device.index == ifb && device.up) {
            match &mut ifb.plug {
                Some(plug) => plug.enqueue(packet),
                None => state.device(back).unwrap().network.push(packet),
            }
        }
        state.run();
    }

    /// Packets come in through `vif`.
    pub(super) fn send_all(&self, vif: &str, packets: &[u64]) {
        packets.iter().for_each(|packet| self.send(vif, *packet));
    }

    /// The packet that came in last.
    pub(crate) fn last_sent(&self) -> Option<u64> {
        self.state().last_sent
    }

    /// What got into the network through `vif`.
    pub(crate) fn network(&self, vif: &str) -> Vec<u64> {
        self.state().named(vif).unwrap().network.clone()
    }

    /// Every device with what hangs from it, except what never changes.
    pub(crate) fn picture(&self) -> Vec<String> {
        let state = self.state();
        let describe = |device: &Device| {
            let plug = device.plug.as_ref().map_or(String::new(), |plug| {
                format!(" plug({}{})", plug.queue.len(), if plug.passes { ", passes" } else { "" })
            });
            let hook = match (device.hook, device.redirect) {
                (_, Some(to)) => format!(" to {to}"),
                (true, None) => " hook".to_owned(),
                (false, None) => String::new(),
            };
            let up = if device.ifb && !device.up { " down" } else { "" };
            format!("{}{up}{plug}{hook}", device.name)
        };
        state.devices.iter().map(describe).collect()
    }

    /// A device disappears.
    pub(crate) fn unplug(&self, name: &str) {
        self.state().devices.retain(|device| device.name != name);
    }

    /// A device appears.
    pub(crate) fn plug_in(&self, name: &str) {
        self.state().add(name, false).unwrap();
    }

    /// A device disappears as soon as none of its packets waits.
    pub(super) fn unplug_when_empty(&self, name: &str) {
        self.state().named(name).unwrap().leaves = true;
    }

    /// Somebody else makes a hook with a filter of theirs.
    pub(crate) fn occupy(&self, name: &str) {
        let mut state = self.state();
        let device = state.named(name).unwrap();
        (device.hook, device.redirect) = (true, Some(9999));
    }

    /// Somebody else removes the plug of a device.
    pub(super) fn remove_plug(&self, name: &str) {
        self.state().named(name).unwrap().plug = None;
    }
}

impl State {
    fn add(&mut self, name: &str, ifb: bool) -> Result<(), Errno> {
        if self.named(name).is_ok() {
            return Err(Errno::EXIST);
        }
        self.next_index += 1;
        self.devices.push(Device {
            index: self.next_index,
            name: name.to_owned(),
            ifb,
            up: !ifb,
            alias: None,
            plug: None,
            hook: false,
            redirect: None,
            master: None,
            network: Vec::new(),
            leaves: false,
        });
        Ok(())
    }

    fn named(&mut self, name: &str) -> Result<&mut Device, Errno> {
        self.devices.iter_mut().find(|device| device.name == name).ok_or(Errno::NODEV)
    }

    fn device(&mut self, index: u32) -> Result<&mut Device, Errno> {
        self.devices.iter_mut().find(|device| device.index == index).ok_or(Errno::NODEV)
    }

    fn perform(&mut self, step: &Step) -> Result<(), Errno> {
        match step {
            Step::CreateIfb { name } => self.add(name, true)?,
            Step::Label { link, alias } => self.device(*link)?.alias = Some(alias.clone()),
            Step::Up { link } => self.device(*link)?.up = true,
            Step::Down { link } => {
                let device = self.device(*link)?;
                device.up = false;
                if let Some(plug) = &mut device.plug {
                    plug.queue.clear();
                }
            }
            Step::RemoveLink { link } => {
                self.device(*link)?;
                self.devices.retain(|device| device.index != *link);
            }
            Step::AddPlug { link, limit_bytes } => {
                let device = self.device(*link)?;
                if device.plug.is_some() {
                    return Err(Errno::EXIST);
                }
                device.plug = Some(Plug { limit_bytes: *limit_bytes, ..Plug::default() });
            }
            Step::Drive { link, action } => {
                self.device(*link)?.plug.as_mut().ok_or(Errno::NOENT)?.tell(*action);
            }
            Step::RemovePlug { link } => self.device(*link)?.plug.take().map(drop).ok_or(Errno::INVAL)?,
            Step::AddIngress { link } => {
                let device = self.device(*link)?;
                if std::mem::replace(&mut device.hook, true) {
                    return Err(Errno::EXIST);
                }
            }
            Step::RemoveIngress { link } => {
                let device = self.device(*link)?;
                device.redirect = None;
                if !std::mem::take(&mut device.hook) {
                    return Err(Errno::NOENT);
                }
            }
            Step::Redirect { from, to } => {
                self.device(*to)?;
                let device = self.device(*from)?;
                if !device.hook {
                    return Err(Errno::INVAL);
                }
                device.redirect = Some(*to);
            }
            Step::Connect { link, bridge } => {
                self.device(*bridge)?;
                self.device(*link)?.master = Some(*bridge);
            }
        }
        self.run();
        Ok(())
    }

    /// What may go comes back in through the vif that is redirected.
    fn run(&mut self) {
        let mut let_go = Vec::new();
        for device in self.devices.iter_mut().filter(|device| device.ifb && device.up) {
            while let Some(packet) = device.plug.as_mut().and_then(Plug::dequeue) {
                let_go.push((device.name.clone(), packet));
            }
        }
        for (ifb, packet) in let_go {
            let vif = super::name::of_ifb(&ifb).unwrap().name;
            if let Ok(vif) = self.named(&vif) {
                vif.network.push(packet);
            }
        }
        let waits = |device: &Device| device.plug.as_ref().is_some_and(|plug| !plug.queue.is_empty());
        let waiting: Vec<u32> =
            self.devices.iter().filter(|device| waits(device)).map(|device| device.index).collect();
        self.devices
            .retain(|device| !device.leaves || device.redirect.is_some_and(|to| waiting.contains(&to)));
    }

    fn list(&mut self) -> Result<(), NetlinkError> {
        self.lists += 1;
        if self.fail_lists.contains(&(self.lists - 1)) { Err(Errno::NOBUFS.into()) } else { Ok(()) }
    }
}

impl Kernel for Double {
    fn carry_out(&mut self, steps: &[Step]) -> Vec<Answer> {
        let mut state = self.state();
        let one = |step: &Step| {
            let number = state.done.len();
            state.done.push(step.clone());
            let fail = state.fail.iter().find(|(at, _)| *at == number).map(|(_, fail)| *fail);
            match fail {
                Some(Fail::Refuse(errno)) => Err(Refusal::Refused(errno)),
                Some(Fail::LoseRequest) => Err(Refusal::Lost),
                Some(Fail::LoseAnswer) => {
                    let _ = state.perform(step);
                    Err(Refusal::Lost)
                }
                None => state.perform(step).map_err(Refusal::Refused),
            }
        };
        steps.iter().map(one).collect()
    }

    fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let mut state = self.state();
        state.list()?;
        let link = |device: &Device| Link {
            index: device.index,
            name: device.name.clone(),
            kind: device.ifb.then(|| "ifb".to_owned()),
            alias: device.alias.clone(),
            up: device.up,
            master: device.master,
        };
        Ok(state.devices.iter().map(link).collect())
    }

    fn number_of(&self, name: &str) -> Option<u32> {
        self.state().named(name).ok().map(|device| device.index)
    }

    fn queues(&mut self) -> Result<Vec<Queue>, NetlinkError> {
        let mut state = self.state();
        state.list()?;
        let mut queues = Vec::new();
        for device in &state.devices {
            let queue = |kind: &str, handle, parent, statistics| Queue {
                link: device.index,
                handle,
                parent,
                kind: kind.to_owned(),
                statistics,
            };
            if let Some(plug) = &device.plug {
                let waiting = plug.queue.len() as u32;
                let statistics = QueueStatistics {
                    waiting_packets: waiting,
                    waiting_bytes: waiting * PACKET_BYTES,
                    dropped_packets: plug.dropped,
                    passed_packets: plug.passed,
                    passed_bytes: u64::from(plug.passed * PACKET_BYTES),
                };
                queues.push(queue(KIND, HANDLE, ROOT, statistics));
            }
            if device.hook {
                queues.push(queue("ingress", 0xffff_0000, INGRESS, QueueStatistics::default()));
            }
        }
        Ok(queues)
    }

    fn filters(&mut self, link: u32) -> Result<Vec<Filter>, NetlinkError> {
        let mut state = self.state();
        state.list()?;
        // As of a device that is not there (`net/sched/cls_api.c`, `tc_dump_tfilter`): none.
        let to = state.device(link).ok().and_then(|device| device.redirect);
        Ok(to.map(|to| vec![Filter::Heading, Filter::Redirect { to }]).unwrap_or_default())
    }
}
