//! The kernel's `plug` queueing discipline, and the four things it can be told.
//!
//! A plug keeps packets in one queue and three counters beside it: packets of the epoch that is open, packets of the epoch
//! that was closed last, and packets that may go. Packets carry no mark of their epoch (`net/sched/sch_plug.c`,
//! `struct plug_sched_data`). Two consequences shape everything in this folder:
//!
//! - There is room for **one** closed epoch. [`Action::Buffer`] overwrites the count of the epoch closed before, whose packets
//!   would then be let out with the wrong verdict, or never.
//! - The state cannot be read back: the discipline has no dump operation. Whoever takes a plug over knows the length of its
//!   queue, never where in it an epoch ends.
//!
//! A new plug holds at once (`plug_init`). What does not fit within the limit is dropped at the tail (`plug_enqueue`) and
//! counted; removing the plug drops what it holds.

/// The name of the discipline.
pub(super) const KIND: &str = "plug";

/// The handle of our plugs. Requests to them name it, so that none reaches a discipline which somebody else put in
/// place of ours: the kernel answers that there is no such thing (`net/sched/sch_api.c`, `tc_modify_qdisc`).
pub(super) const HANDLE: u32 = 0x7676_0000;

/// Length of an option, in bytes.
const OPTION_BYTES: usize = 8;

/// What a plug can be told (`linux/pkt_sched.h`, `TCQ_PLUG_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Close the open epoch and open the next; from now on hold, if packets passed until now.
    Buffer,
    /// Let the packets of the closed epoch go.
    ReleaseOne,
    /// Let everything go, now and in future.
    ReleaseIndefinite,
    /// Change the limit of the queue.
    Limit {
        /// The new limit.
        bytes: u32,
    },
}

impl Action {
    /// The option that tells it (`linux/pkt_sched.h`, `struct tc_plug_qopt`): the action, then the limit.
    pub(super) fn option(self) -> [u8; OPTION_BYTES] {
        let (action, limit_bytes) = match self {
            Self::Buffer => (0_i32, 0),
            Self::ReleaseOne => (1, 0),
            Self::ReleaseIndefinite => (2, 0),
            Self::Limit { bytes } => (3, bytes),
        };
        option(action, limit_bytes)
    }
}

/// The option of a new plug with room for `limit_bytes`. Without it the kernel takes the device's queue length times its
/// MTU (`plug_init`), which is 48 kB for an ifb. The action is not looked at.
pub(super) fn creation(limit_bytes: u32) -> [u8; OPTION_BYTES] {
    option(0, limit_bytes)
}

fn option(action: i32, limit_bytes: u32) -> [u8; OPTION_BYTES] {
    let ([a, b, c, d], [e, f, g, h]) = (action.to_ne_bytes(), limit_bytes.to_ne_bytes());
    [a, b, c, d, e, f, g, h]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_those_of_the_header() {
        assert_eq!(Action::Buffer.option(), [0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Action::ReleaseOne.option(), [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Action::ReleaseIndefinite.option(), [2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Action::Limit { bytes: 0x0102_0304 }.option(), [3, 0, 0, 0, 4, 3, 2, 1]);
        assert_eq!(creation(10_000_000), [0, 0, 0, 0, 0x80, 0x96, 0x98, 0]);
    }
}
