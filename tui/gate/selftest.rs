//! `varve gate --selftest`: shows on this host's own kernel that what is held is held.
//!
//! A pair of devices stands for a guest's card: one end, named as a vif of a domain that cannot exist, is this host's; the other is in a
//! network namespace of its own, where the packets come from. All of it is gone afterwards.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::json;
use varve_capture::output::{OutputBuffer, OutputError, OutputOptions, Vif};

use crate::exit::{Failure, Status};
use crate::output::Output;

/// A domain beyond the last that Xen can have (`DOMID_FIRST_RESERVED` of `xen/xen.h` is 32752), and its card.
const DOMID: u16 = 65000;
const VIF: &str = "vif65000.0";

/// The name space that stands for the guest.
const GUEST: &str = "varve-selftest";

/// Addresses for link-local use (RFC 3927); nothing is routed there.
const HOST_ADDRESS: &str = "169.254.77.1";
const GUEST_ADDRESS: &str = "169.254.77.2";

/// How long a packet may take that is not held.
const ARRIVES: Duration = Duration::from_secs(2);

/// How long to wait for packets that must not come.
const HELD: Duration = Duration::from_millis(500);

/// Makes the devices. Fixed addresses, so that no packet is sent but ours.
const SETUP: &[&str] = &[
    "netns add varve-selftest",
    "link add vif65000.0 type veth peer name eth0 netns varve-selftest",
    "link set vif65000.0 address 02:00:00:00:77:01",
    "-n varve-selftest link set eth0 address 02:00:00:00:77:02",
    "addr add 169.254.77.1/30 dev vif65000.0",
    "-n varve-selftest addr add 169.254.77.2/30 dev eth0",
    "link set vif65000.0 up",
    "-n varve-selftest link set eth0 up",
    "neigh replace 169.254.77.2 lladdr 02:00:00:00:77:02 dev vif65000.0 nud permanent",
    "-n varve-selftest neigh replace 169.254.77.1 lladdr 02:00:00:00:77:01 dev eth0 nud permanent",
];

/// The devices, gone when this is dropped.
struct Pair;

impl Pair {
    fn make() -> Result<Self, Failure> {
        let pair = Self;
        // What an interrupted test left.
        pair.remove();
        SETUP.iter().try_for_each(|arguments| ip(arguments))?;
        Ok(pair)
    }

    fn remove(&self) {
        if let Ok(left) = OutputBuffer::orphans() {
            let ours = left.into_iter().filter(|orphan| orphan.vif.domid == DOMID).collect();
            let _ = OutputBuffer::adopt(ours).map(OutputBuffer::remove);
        }
        for arguments in ["link del vif65000.0", "netns del varve-selftest"] {
            let mut command = Command::new("ip");
            let _ = command.args(arguments.split(' ')).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.remove();
    }
}

fn ip(arguments: &str) -> Result<(), Failure> {
    let failure = |reason: String| Failure::new(format_args!("ip {arguments}: {reason}"));
    let ran =
        Command::new("ip").args(arguments.split(' ')).output().map_err(|error| failure(error.to_string()))?;
    if ran.status.success() {
        return Ok(());
    }
    Err(failure(String::from_utf8_lossy(&ran.stderr).trim().to_owned()))
}

/// Both ends of a line that goes through the card.
struct Line {
    guest: UdpSocket,
    host: UdpSocket,
    to: SocketAddr,
}

impl Line {
    fn open() -> io::Result<Self> {
        let host = UdpSocket::bind((HOST_ADDRESS, 0))?;
        let to = host.local_addr()?;
        // A socket stays in the name space that the thread was in which made it.
        let guest = thread::spawn(|| -> io::Result<UdpSocket> {
            let name_space = File::open(format!("/run/netns/{GUEST}"))?;
            move_into_link_name_space(name_space.as_fd(), Some(LinkNameSpaceType::Network))?;
            UdpSocket::bind((GUEST_ADDRESS, 0))
        });
        let guest = guest.join().map_err(|_| io::Error::other("the thread in the name space ended"))??;
        Ok(Self { guest, host, to })
    }

    fn send(&self, packets: &[u8]) -> io::Result<()> {
        packets.iter().try_for_each(|packet| self.guest.send_to(&[*packet], self.to).map(drop))
    }

    /// What comes until `wanted` packets are there or `limit` is over.
    fn receive(&self, wanted: usize, limit: Duration) -> io::Result<Vec<u8>> {
        let mut received = Vec::new();
        self.host.set_read_timeout(Some(limit))?;
        while received.len() < wanted {
            let mut packet = [0];
            match self.host.recv(&mut packet) {
                Ok(_) => received.extend(packet),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(received)
    }
}

/// Runs the test and says of each part how it went.
pub(crate) fn selftest(out: &mut Output) -> Result<Status, Failure> {
    let _pair = Pair::make()?;
    let line = Line::open()
        .map_err(|error| Failure::new(format_args!("a pair of sockets for the test: {error}")))?;
    let mut test = Test { out, failed: false };
    test.run(&line)?;
    let status = if test.failed { Status::Error } else { Status::Nothing };
    let text = match test.failed {
        true => "FAILED: do not rely on a gate on this host",
        false => "passed: what is held is held on this host",
    };
    if out.is_json() {
        out.line(&json!({ "type": "summary", "passed": status == Status::Nothing }))?;
    } else {
        out.text(text)?;
    }
    out.flush()?;
    Ok(status)
}

struct Test<'a> {
    out: &'a mut Output,
    failed: bool,
}

impl Test<'_> {
    fn run(&mut self, line: &Line) -> Result<(), Failure> {
        let vif = Vif { domid: DOMID, devid: 0, name: VIF.to_owned() };
        let options =
            OutputOptions { limit_bytes: 1 << 20, vm: GUEST.to_owned(), ..OutputOptions::default() };
        let output = |error: OutputError| Failure::new(error);
        let system = |error: io::Error| Failure::new(format_args!("sending and receiving: {error}"));

        line.send(&[1]).map_err(system)?;
        self.expect("without a buffer a packet passes", &[1], &line.receive(1, ARRIVES).map_err(system)?)?;
        let mut buffer = OutputBuffer::install(&[vif], &options).map_err(output)?;
        line.send(&[2, 3, 4]).map_err(system)?;
        self.expect("packets are held", &[], &line.receive(1, HELD).map_err(system)?)?;
        buffer.close_epoch().map_err(output)?;
        line.send(&[5, 6]).map_err(system)?;
        self.expect("packets of a closed interval are held", &[], &line.receive(1, HELD).map_err(system)?)?;
        buffer.release_closed().map_err(output)?;
        let received = line.receive(3, ARRIVES).map_err(system)?;
        self.expect("a release lets exactly the closed interval go, in order", &[2, 3, 4], &received)?;
        self.expect("and nothing of the next", &[], &line.receive(1, HELD).map_err(system)?)?;
        drop(buffer);
        line.send(&[7]).map_err(system)?;
        self.expect("without a gate packets stay held", &[], &line.receive(1, HELD).map_err(system)?)?;
        let left = OutputBuffer::orphans().map_err(output)?;
        let ours = left.into_iter().filter(|orphan| orphan.vif.domid == DOMID).collect();
        let mut buffer = OutputBuffer::adopt(ours).map_err(output)?;
        buffer.begin_anew(options.limit_bytes).map_err(output)?;
        line.send(&[8]).map_err(system)?;
        self.expect("the next gate drops what was held", &[], &line.receive(1, HELD).map_err(system)?)?;
        buffer.close_epoch().map_err(output)?;
        buffer.release_closed().map_err(output)?;
        self.expect("and begins anew", &[8], &line.receive(1, ARRIVES).map_err(system)?)?;
        buffer.remove().map_err(|(_, error)| output(error))?;
        line.send(&[9]).map_err(system)?;
        self.expect("an open gate lets packets pass", &[9], &line.receive(1, ARRIVES).map_err(system)?)
    }

    fn expect(&mut self, what: &str, expected: &[u8], received: &[u8]) -> Result<(), Failure> {
        let passed = expected == received;
        self.failed |= !passed;
        if self.out.is_json() {
            let line = json!({ "type": "check", "what": what, "passed": passed, "expected": expected, "received": received });
            self.out.line(&line)?;
        } else if passed {
            self.out.text(&format!("ok      {what}"))?;
        } else {
            self.out.text(&format!("FAILED  {what}: expected {expected:?}, received {received:?}"))?;
        }
        self.out.flush()?;
        Ok(())
    }
}
