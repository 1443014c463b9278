//! What is asked of the kernel, as data: each step is one request, so that each can be made to fail.

use std::fmt;

use super::netlink::{Filter, Link, NetlinkError, Queue, Refusal};
use super::plug::Action;

/// A change to devices, disciplines or filters. Devices go by their number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Make an ifb; it is down.
    CreateIfb { name: String },
    /// Write on a device what it is for.
    Label { link: u32, alias: String },
    /// Let a device work.
    Up { link: u32 },
    /// Stop it: what it holds is dropped, and so is what is redirected to it.
    Down { link: u32 },
    /// Remove it with all that hangs from it.
    RemoveLink { link: u32 },
    /// Put a plug in front of what goes out through a device; it holds from the first packet on.
    AddPlug { link: u32, limit_bytes: u32 },
    /// Tell a plug something.
    Drive { link: u32, action: Action },
    /// Remove a plug with what it holds.
    RemovePlug { link: u32 },
    /// Make the hook for what comes in through a device.
    AddIngress { link: u32 },
    /// Remove the hook with its filters.
    RemoveIngress { link: u32 },
    /// Send everything that comes in through a device out of another.
    Redirect { from: u32, to: u32 },
    /// Make a device a port of a bridge, and of no other.
    Connect { link: u32, bridge: u32 },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CreateIfb { .. } => "creating an ifb device",
            Self::Label { .. } => "writing a label on the ifb device",
            Self::Up { .. } => "taking the ifb device up",
            Self::Down { .. } => "taking the ifb device down",
            Self::RemoveLink { .. } => "removing the ifb device",
            Self::AddPlug { .. } => "adding a plug",
            Self::Drive { action: Action::Buffer, .. } => "closing the epoch",
            Self::Drive { action: Action::ReleaseOne, .. } => "releasing the closed epoch",
            Self::Drive { action: Action::ReleaseIndefinite, .. } => "releasing everything",
            Self::Drive { action: Action::Limit { .. }, .. } => "changing the limit",
            Self::RemovePlug { .. } => "removing the plug",
            Self::AddIngress { .. } => "adding an ingress hook",
            Self::RemoveIngress { .. } => "removing the ingress hook",
            Self::Redirect { .. } => "redirecting to the ifb device",
            Self::Connect { .. } => "connecting it to another bridge",
        })
    }
}

/// How a step went.
pub(super) type Answer = Result<(), Refusal>;

/// The kernel: carries steps out and lists what there is.
pub(super) trait Kernel {
    /// Carries out all of `steps` in their order, whatever becomes of each, and tells of each how it went. As many
    /// as a guest has vifs reach the kernel together, so that nothing of ours waits between them.
    fn carry_out(&mut self, steps: &[Step]) -> Vec<Answer>;

    /// All devices of this network namespace.
    fn links(&mut self) -> Result<Vec<Link>, NetlinkError>;

    /// The number of the device with this name, if there is one.
    fn number_of(&self, name: &str) -> Option<u32>;

    /// The disciplines of all devices.
    fn queues(&mut self) -> Result<Vec<Queue>, NetlinkError>;

    /// The filters that packets meet which come in through a device.
    fn filters(&mut self, link: u32) -> Result<Vec<Filter>, NetlinkError>;
}
