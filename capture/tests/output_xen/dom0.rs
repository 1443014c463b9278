//! In dom0: an output buffer driven by a script, one command a line, each answered by a line.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::process::Command;
use std::time::{Duration, Instant};

use varve_capture::output::{OutputBuffer, OutputOptions, Vif, VifStatistics};

use crate::DRIVER;

/// How long to wait for what must happen. What must not happen is checked after something behind it in the queue has.
const DEADLINE: Duration = Duration::from_secs(20);

/// Sends datagrams.
pub(crate) fn send(to: &str, payloads: &[&str]) {
    let local = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(local).unwrap();
    for payload in payloads {
        socket.send_to(payload.as_bytes(), to).unwrap();
    }
}

/// Runs the script in the file `path`.
pub(crate) fn drive(path: &str) {
    let listen = |address: &str| {
        // The card with IPv6 is gone in the end.
        let socket = UdpSocket::bind(address).ok()?;
        socket.set_nonblocking(true).unwrap();
        Some(socket)
    };
    let mut driver = Driver { buffer: None, four: listen("10.7.0.1:9000"), six: listen("[fd00:7::1]:9000") };
    for line in std::fs::read_to_string(path).unwrap().lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        driver.command(line.trim(), &words);
    }
}

struct Driver {
    buffer: Option<OutputBuffer>,
    four: Option<UdpSocket>,
    six: Option<UdpSocket>,
}

impl Driver {
    fn command(&mut self, line: &str, words: &[&str]) {
        match words {
            ["install", what @ ..] => self.install(what),
            ["adopt"] => self.buffer = said("adopt", OutputBuffer::adopt(OutputBuffer::orphans().unwrap())),
            ["orphans"] => orphans(),
            ["remove"] => {
                let removed = self.buffer.take().unwrap().remove().map_err(|(_, error)| error);
                said("remove", removed);
            }
            ["close"] => {
                let start = Instant::now();
                said("close", self.buffer().close_epoch());
                println!("# closed within {} µs", start.elapsed().as_micros());
            }
            ["release"] => drop(said("release", self.buffer().release_closed())),
            ["release-all"] => drop(said("release-all", self.buffer().release_all())),
            ["hold-inbound"] => drop(said("hold-inbound", self.buffer().hold_inbound())),
            ["pass-inbound"] => drop(said("pass-inbound", self.buffer().pass_inbound())),
            ["limit", bytes] => drop(said("limit", self.buffer().set_limit(bytes.parse().unwrap()))),
            ["traffic"] => {
                let traffic: Vec<String> = self.buffer().traffic().iter().map(ToString::to_string).collect();
                println!("{}", traffic.join(", "));
            }
            ["send", card, payloads @ ..] => guest(card, &format!("10.7.{card}.1:9000"), payloads),
            ["send6", card, payloads @ ..] => guest(card, "[fd00:7::1]:9000", payloads),
            ["inbound", card, payloads @ ..] => send(&format!("10.7.{card}.2:9000"), payloads),
            ["received", count] => received(self.four.as_ref().unwrap(), count.parse().unwrap()),
            ["received6", count] => received(self.six.as_ref().unwrap(), count.parse().unwrap()),
            ["waiting", vif, count] => {
                let waiting = |vif: &VifStatistics| vif.outbound.unwrap().waiting_packets;
                self.wait("waiting", vif, count, waiting);
            }
            ["inbound-waiting", vif, count] => {
                let waiting = |vif: &VifStatistics| vif.inbound.unwrap().waiting_packets;
                self.wait("inbound-waiting", vif, count, waiting);
            }
            ["inbound-passed", vif, count] => {
                let passed = |vif: &VifStatistics| vif.inbound.unwrap().passed_packets;
                self.wait("inbound-passed", vif, count, passed);
            }
            ["some", "waiting", vif] => {
                until(|| self.of(vif).outbound.unwrap().waiting_packets > 0);
                println!("some waiting {vif}");
            }
            ["statistics"] => self.buffer().statistics().unwrap().iter().for_each(statistics),
            ["shell", ..] => shell(line.trim_start_matches("shell ")),
            ["die"] => {
                let this = rustix::process::getpid();
                rustix::process::kill_process(this, rustix::process::Signal::KILL).unwrap();
            }
            _ => panic!("{line:?} is no command"),
        }
    }

    fn install(&mut self, what: &[&str]) {
        let mut options = OutputOptions { vm: "web1".to_owned(), ..OutputOptions::default() };
        let mut wanted = BTreeSet::new();
        let mut words = what.iter();
        while let Some(word) = words.next() {
            match *word {
                "inbound" => options.hold_inbound = true,
                "limit" => options.limit_bytes = words.next().unwrap().parse().unwrap(),
                name => drop(wanted.insert(name)),
            }
        }
        let mut vifs: Vec<Vif> = OutputBuffer::vifs_of(7).unwrap();
        vifs.retain(|vif| wanted.contains(vif.name.as_str()));
        assert_eq!(vifs.len(), wanted.len());
        let installed = said("install", OutputBuffer::install(&vifs, &options));
        self.buffer = installed.or_else(|| self.buffer.take());
    }

    fn buffer(&mut self) -> &mut OutputBuffer {
        self.buffer.as_mut().unwrap()
    }

    fn of(&mut self, name: &str) -> VifStatistics {
        self.buffer().statistics().unwrap().into_iter().find(|vif| vif.vif.name == name).unwrap()
    }

    fn wait(&mut self, what: &str, name: &str, count: &str, of: impl Fn(&VifStatistics) -> u32) {
        let count: u32 = count.parse().unwrap();
        until(|| of(&self.of(name)) == count);
        println!("{what} {name}: {}", of(&self.of(name)));
    }
}

/// Sends from the far end of a card.
fn guest(card: &str, to: &str, payloads: &[&str]) {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &format!("guest{card}"), DRIVER, "send", to]).args(payloads);
    assert!(command.status().unwrap().success());
}

/// Prints what came, `count` datagrams at least if they come in time, and whatever else is there by then.
fn received(socket: &UdpSocket, count: usize) {
    let mut came = String::new();
    let mut number = 0;
    let mut take = || {
        let mut buffer = [0; 2048];
        while let Ok((len, _)) = socket.recv_from(&mut buffer) {
            came.push(' ');
            came.push_str(&String::from_utf8_lossy(&buffer[..len]));
            number += 1;
        }
        number >= count
    };
    until(&mut take);
    take();
    println!("received:{came}");
}

fn until(mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() && start.elapsed() < DEADLINE {
        std::thread::yield_now();
    }
}

fn said<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> Option<T> {
    match result {
        Ok(value) => {
            println!("{what}: ok");
            Some(value)
        }
        Err(error) => {
            println!("{what}: {error}");
            None
        }
    }
}

fn orphans() {
    for orphan in OutputBuffer::orphans().unwrap() {
        // What a card with IPv6 sends unasked cannot be told.
        let waiting = match (orphan.vif.devid, orphan.outbound) {
            (0, Some(plug)) => format!("{} waiting", plug.waiting_packets),
            (_, Some(_)) => "some waiting".to_owned(),
            (_, None) => "no plug".to_owned(),
        };
        let (vif, vm) = (&orphan.vif, orphan.vm.as_deref().unwrap_or("nobody"));
        println!(
            "{} for {} of domain {}, {vm}: {}; {waiting}",
            orphan.ifb, vif.name, vif.domid, orphan.traffic
        );
    }
}

fn statistics(vif: &VifStatistics) {
    let out = vif.outbound.unwrap();
    let inbound = if vif.inbound.is_some() { "some" } else { "none" };
    println!(
        "{}: {}; out: {} waiting, {} bytes, {} dropped, {} passed; in: {inbound}",
        vif.vif.name,
        vif.traffic,
        out.waiting_packets,
        out.waiting_bytes,
        out.dropped_packets,
        out.passed_packets
    );
}

fn shell(line: &str) {
    let output = Command::new("bash").args(["-c", line]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if !text.trim().is_empty() {
        println!("{}", text.trim());
    }
}
