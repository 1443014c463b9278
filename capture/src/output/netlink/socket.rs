//! The socket to the kernel.
//!
//! The kernel works through requests while they are being sent, one after the other, and goes on behind one that fails
//! (`net/netlink/af_netlink.c`, `netlink_rcv_skb`): what was sent together is done, and its answers are waiting, when the system
//! call returns.

use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::bytes::Bytes;
use super::message::{Content, Message, Writer, next};
use super::request::List;
use super::{Filter, Link, NetlinkError, Queue, Refusal, answer, request};
use crate::output::VIFS_MAX;
use crate::output::step::{Answer, Kernel, Step};

/// How long to wait for an answer. All are there already, except that the rest of a long listing is written as it is read.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Room for what is received, in bytes; the kernel writes listings in pieces of at most half of that
/// (`netlink_dump`). A longer message is an error.
const RECEIVED_MAX_BYTES: usize = 64 << 10;

/// Room in the kernel for answers that wait, in bytes; an answer takes about one kilobyte of it. The kernel cuts it down to
/// `rmem_max`, as a rule 208 KiB, and doubles that.
const QUEUE_BYTES: usize = 1 << 20;

/// Most requests sent together, so that there is room for their answers: as many as a guest has vifs.
const TOGETHER_MAX: usize = VIFS_MAX;

/// Most entries of a listing: ten thousand guests with three devices each are a third of it.
const ENTRIES_MAX: usize = 100_000;

/// Times a listing is begun anew when it changed while it was read.
const LIST_TRIES: u32 = 16;

/// Messages that are none of ours, answers to requests given up on, before we stop listening.
const STRAYS_MAX: usize = 1000;

/// A connection to the kernel's routing netlink.
#[derive(Debug)]
pub(in crate::output) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    writer: Writer,
    received: Vec<u8>,
}

impl Socket {
    /// Opens the connection. Listing is for everyone; what changes anything needs `CAP_NET_ADMIN`.
    pub(in crate::output) fn open() -> Result<Self, NetlinkError> {
        let flags = SocketFlags::CLOEXEC;
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        set_socket_recv_buffer_size(&fd, QUEUE_BYTES)?;
        set_socket_timeout(&fd, Timeout::Recv, Some(ANSWER_LIMIT))?;
        rustix::net::bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self { fd, sequence: 0, writer: Writer::default(), received: vec![0; RECEIVED_MAX_BYTES] })
    }

    fn send(&self) -> Result<(), Errno> {
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::io::retry_on_intr(|| {
            rustix::net::sendto(&self.fd, self.writer.bytes(), SendFlags::empty(), &kernel)
        })
        .map(drop)
    }

    /// Waits for messages from the kernel; others can send to us too, and are not listened to.
    fn receive(&mut self) -> Result<Bytes<'_>, NetlinkError> {
        for _ in 0..STRAYS_MAX {
            let (fd, buffer) = (&self.fd, self.received.as_mut_slice());
            let received =
                rustix::io::retry_on_intr(|| rustix::net::recvfrom(fd, &mut *buffer, RecvFlags::TRUNC));
            let (_, len, sender) = received?;
            let sender = sender.map(SocketAddrNetlink::try_from).transpose()?;
            if sender.is_some_and(|sender| sender.pid() == 0) {
                let whole = self.received.get(..len);
                return whole.map(Bytes::new).ok_or(NetlinkError::Malformed {
                    at: RECEIVED_MAX_BYTES,
                    reason: "more than is ever written at once",
                });
            }
        }
        Err(Errno::TIMEDOUT.into())
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Collects the answers to the requests from number `first` on; those that do not come stay lost.
    fn answers(&mut self, first: u32, answers: &mut [Answer]) -> Result<(), NetlinkError> {
        let (mut missing, mut strays) = (answers.len(), 0);
        while missing > 0 && strays < STRAYS_MAX {
            let mut rest = self.receive()?;
            while let Some(Message { sequence, content, .. }) = next(&mut rest)? {
                let place = answers.get_mut(sequence.wrapping_sub(first) as usize);
                let (Content::End(end), Some(place)) = (content, place) else {
                    strays += 1;
                    continue;
                };
                *place = end.map_err(Refusal::Refused);
                missing = missing.saturating_sub(1);
            }
        }
        Ok(())
    }

    fn carry_out_together(&mut self, steps: &[Step]) -> Vec<Answer> {
        self.writer.clear();
        let first = self.sequence.wrapping_add(1);
        for step in steps {
            let sequence = self.next_sequence();
            request::write(step, sequence, &mut self.writer);
        }
        if let Err(errno) = self.send() {
            // What could not be sent was not looked at.
            return vec![Err(Refusal::Refused(errno)); steps.len()];
        }
        let mut answers = vec![Err(Refusal::Lost); steps.len()];
        // When it goes wrong on the way, those that came before count and the others stay lost.
        let _ = self.answers(first, &mut answers);
        answers
    }

    /// The entries of a list, each read by `read`.
    fn list<T>(
        &mut self,
        list: List,
        read: impl Fn(Bytes<'_>) -> Result<T, NetlinkError>,
    ) -> Result<Vec<T>, NetlinkError> {
        for _ in 0..LIST_TRIES {
            let sequence = self.next_sequence();
            self.writer.clear();
            list.write(sequence, &mut self.writer);
            self.send()?;
            if let Some(entries) = self.entries(list, sequence, &read)? {
                return Ok(entries);
            }
        }
        Err(NetlinkError::Restless(LIST_TRIES))
    }

    /// Reads one listing to its end; `None` when it changed meanwhile.
    fn entries<T>(
        &mut self,
        list: List,
        sequence: u32,
        read: impl Fn(Bytes<'_>) -> Result<T, NetlinkError>,
    ) -> Result<Option<Vec<T>>, NetlinkError> {
        let (mut entries, mut steady, mut strays) = (Vec::new(), true, 0);
        while entries.len() < ENTRIES_MAX && strays < STRAYS_MAX {
            let mut rest = self.receive()?;
            while let Some(message) = next(&mut rest)? {
                if message.sequence != sequence {
                    strays += 1;
                    continue;
                }
                steady &= !message.interrupted;
                match message.content {
                    Content::End(end) => return Ok(end.map(|()| steady.then_some(entries))?),
                    Content::Entry(kind, body) if kind == list.entries() => entries.push(read(body)?),
                    Content::Entry(..) => strays += 1,
                }
            }
        }
        Err(NetlinkError::Long(ENTRIES_MAX))
    }
}

impl Socket {
    /// Numbers of the devices that have addresses, one for each address.
    pub(in crate::output) fn addresses(&mut self) -> Result<Vec<u32>, NetlinkError> {
        self.list(List::Addresses, answer::address)
    }
}

impl Kernel for Socket {
    fn carry_out(&mut self, steps: &[Step]) -> Vec<Answer> {
        steps.chunks(TOGETHER_MAX).flat_map(|steps| self.carry_out_together(steps)).collect()
    }

    fn links(&mut self) -> Result<Vec<Link>, NetlinkError> {
        self.list(List::Links, answer::link)
    }

    fn number_of(&self, name: &str) -> Option<u32> {
        rustix::net::netdevice::name_to_index(&self.fd, name).ok()
    }

    fn queues(&mut self) -> Result<Vec<Queue>, NetlinkError> {
        self.list(List::Queues, answer::queue)
    }

    fn filters(&mut self, link: u32) -> Result<Vec<Filter>, NetlinkError> {
        self.list(List::Filters { link }, answer::filter)
    }
}
