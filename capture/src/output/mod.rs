//! Holding a guest's outgoing packets until the epoch that produced them has passed.
//!
//! What a guest sends comes into dom0 through its vifs. Of each vif everything that comes in, whatever its protocol, is redirected
//! to an ifb device of its own, whose `plug` holds it ([`plug`] says how); what is let go comes back in through the vif as if it
//! had just arrived.
//!
//! ```text
//!                    ┌──────────── vv7.0 (ifb) ────────────┐
//!   guest ─▶ vif7.0 ─┤ plug: [open epoch][closed][released] ├─▶ bridge
//!                    └─────────────────────────────────────┘
//! ```
//!
//! The order of everything is chosen so that a failure, or the end of this process, at any point leaves packets held or dropped
//! and never passing unseen: the plug is there before anything is redirected to it, and when the buffer is removed the ifb is
//! stopped first and goes last, as the mark by which [`orphans`](OutputBuffer::orphans) finds what was left.
//!
//! Not held: what never comes in through a vif (passed-through devices, vchan, disks), and what a program attached to the vif
//! by somebody else (XDP, tcx) takes before the ingress hook is reached.

mod buffer;
mod error;
mod install;
mod island;
mod name;
mod netlink;
mod orphan;
mod plug;
mod remove;
mod renew;
mod step;
mod traffic;

#[cfg(test)]
pub(crate) mod double;
#[cfg(test)]
mod tests;

pub use buffer::OutputBuffer;
pub use error::{Failure, OutputError, VifTraffic};
pub use island::isolated;
pub use orphan::Orphan;
pub use traffic::Traffic;

pub(crate) use netlink::read_anything;

/// Most vifs of a guest. `xl` gives a guest no more than a few.
pub const VIFS_MAX: usize = 128;

/// A guest's network card as dom0 sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vif {
    /// The domain's number.
    pub domid: u16,
    /// The card's number within the domain.
    pub devid: u32,
    /// The name of the device, as a rule `vif7.0` of domain 7. An HVM guest's emulated card is a device of its own,
    /// `vif7.0-emu`: a vif like any other here.
    pub name: String,
}

/// How to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutputOptions {
    /// Most bytes held for each vif; what is more is dropped and counted.
    pub limit_bytes: u32,
    /// Whether what is sent to the guest can be held too ([`OutputBuffer::hold_inbound`]).
    pub hold_inbound: bool,
    /// What an [`Orphan`] says of the VM: its UUID, for instance. Printable ASCII without spaces, at most 128 bytes.
    pub vm: String,
}

impl Default for OutputOptions {
    fn default() -> Self {
        Self { limit_bytes: 64 << 20, hold_inbound: false, vm: String::new() }
    }
}

/// What a plug has counted. A packet that was joined of several (segmentation offload) waits as one and passes as several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueStatistics {
    /// Packets held.
    pub waiting_packets: u32,
    /// Bytes held.
    pub waiting_bytes: u32,
    /// Packets dropped because they did not fit; counted modulo 2³².
    pub dropped_packets: u32,
    /// Packets let go; counted modulo 2³².
    pub passed_packets: u32,
    /// Bytes let go.
    pub passed_bytes: u64,
}

/// A vif's state and counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VifStatistics {
    /// The vif.
    pub vif: Vif,
    /// What becomes of its packets, as far as we drove it.
    pub traffic: Traffic,
    /// The plug for what the guest sends; `None` when it is gone, and nothing is held.
    pub outbound: Option<QueueStatistics>,
    /// The plug for what is sent to the guest; `None` when there is none.
    pub inbound: Option<QueueStatistics>,
}
