//! The kernel's routing netlink: requests in bytes, answers out of bytes, and the socket between.
//!
//! Written here rather than taken from a library, because a gate needs little of it and that little exactly: requests that
//! are sent together, answers told apart one by one, and listings that neither fail on an attribute which another kernel
//! makes shorter nor drop what they cannot read.

mod answer;
mod bytes;
mod message;
mod request;
mod socket;

#[cfg(test)]
mod tests;

pub(super) use socket::Socket;

/// A device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Its number, which no other device of this network namespace gets while the system is up.
    pub(super) index: u32,
    /// Its name.
    pub(super) name: String,
    /// What made it, `ifb` for instance; `None` when no driver says.
    pub(super) kind: Option<String>,
    /// What somebody wrote on it.
    pub(super) alias: Option<String>,
    /// Whether it works.
    pub(super) up: bool,
    /// The number of the bridge it is a port of.
    pub(super) master: Option<u32>,
}

/// A queueing discipline of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Queue {
    /// The device's number.
    pub(super) link: u32,
    /// Its handle.
    pub(super) handle: u32,
    /// What it hangs from.
    pub(super) parent: u32,
    /// Its name, `plug` for instance.
    pub(super) kind: String,
    /// What it has counted.
    pub(super) statistics: crate::output::QueueStatistics,
}

impl Queue {
    /// Whether it is a plug of ours and the first that packets meet which go out through the device.
    pub(super) fn is_plug(&self) -> bool {
        self.kind == super::plug::KIND && self.handle == super::plug::HANDLE && self.parent == request::ROOT
    }

    /// Whether it is a hook for what comes in through the device.
    pub(super) fn is_hook(&self) -> bool {
        self.kind == request::HOOK && self.parent == request::INGRESS
    }
}

/// An entry of the list of filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    /// Says of a kind of filters that some follow.
    Heading,
    /// Sends every packet out of another device.
    Redirect {
        /// The device's number.
        to: u32,
    },
    /// Does something else.
    Other,
}

/// Why the kernel did not do a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// The kernel says so, and nothing has changed.
    #[error("{0}")]
    Refused(rustix::io::Errno),
    /// Nobody says: it may be done or not.
    #[error("the kernel's answer was lost")]
    Lost,
}

/// A listing that could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum NetlinkError {
    /// The system refused.
    #[error("{0}")]
    System(#[from] rustix::io::Errno),
    /// The answer is not what the protocol says.
    #[error("the kernel's answer makes no sense at byte {at}: {reason}")]
    Malformed {
        /// Where, in bytes from the start of what was received.
        at: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// The list changed each time while it was being read.
    #[error("what was listed changed {0} times while it was listed")]
    Restless(u32),
    /// More than any host has.
    #[error("a list of more than {0} entries")]
    Long(usize),
}

/// Reads `received` as the kernel's answers of every kind. For tests.
pub(crate) fn read_anything(received: &[u8]) -> usize {
    let mut rest = bytes::Bytes::new(received);
    let mut read = 0;
    while let Ok(Some(message)) = message::next(&mut rest) {
        let good = match message.content {
            message::Content::End(end) => end.is_ok(),
            message::Content::Entry(_, body) => {
                let queue = answer::queue(body).is_ok() | answer::filter(body).is_ok();
                answer::link(body).is_ok() | answer::address(body).is_ok() | queue
            }
        };
        read += usize::from(good);
    }
    read
}
