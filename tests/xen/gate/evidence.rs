//! What a gate is judged by: the packets that came by on the bridge, when they did, and the gate's own journal.
//!
//! Which packets an epoch has produced is told by the sender's own count, as the archived memory of that epoch has it
//! (`fixtures/guest/traffic.rs`): it counts before it sends.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use varve_formats::{Gpa, PhysicalMemory};
use varve_store::{Access, Archive};

/// What the sender's count begins with, in its memory.
const MARK: &[u8; 24] = b"varve-traffic-count:\0\0\0\0";

/// Protocols of packets that are not sent again by themselves.
const ONCE: [char; 3] = ['4', '6', 'a'];

/// A packet on the bridge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet {
    pub(crate) at_ns: u64,
    /// `4` and `6` are datagrams, `t` a connection, `a` address resolution.
    pub(crate) protocol: char,
    pub(crate) number: u64,
}

pub(crate) struct Evidence {
    pub(crate) packets: Vec<Packet>,
    pub(crate) journal: Vec<Value>,
    /// The sender's count in each epoch.
    pub(crate) counts: Vec<u64>,
}

/// An interval whose packets were let go.
#[derive(Debug)]
struct Released {
    at_ns: u64,
    /// The count at the end of the interval, if an epoch was taken there; the one before otherwise.
    count: u64,
}

impl Evidence {
    pub(crate) fn new(packets: &str, journal: &str, archive: &std::path::Path) -> Self {
        let packet = |line: &str| {
            let mut words = line.split(' ');
            let at_ns = words.next()?.parse().ok()?;
            let protocol = words.next()?.chars().next()?;
            Some(Packet { at_ns, protocol, number: words.next()?.trim().parse().ok()? })
        };
        let journal = journal.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        Self { packets: packets.lines().filter_map(packet).collect(), journal, counts: counts(archive) }
    }

    pub(crate) fn acts<'a>(&'a self, act: &'a str) -> impl Iterator<Item = &'a Value> {
        self.journal.iter().filter(move |line| line["act"] == act)
    }

    /// When the gate began to hold.
    fn held_from(&self) -> u64 {
        self.acts("held").next().unwrap()["at_ns"].as_u64().unwrap()
    }

    /// The releases in the journal, each of which must come behind the proof that its epoch is durable and has passed.
    fn releases(&self) -> Vec<Released> {
        let (mut durable, mut passed) = (BTreeSet::new(), BTreeSet::new());
        // By interval: the count where it was closed.
        let mut closed: BTreeMap<u64, u64> = BTreeMap::new();
        let mut open_close = None;
        let (mut last_count, mut released) = (0, Vec::new());
        for line in &self.journal {
            let number = |key: &str| line[key].as_u64().unwrap();
            match line["act"].as_str().unwrap() {
                "begin" => (closed, open_close) = (BTreeMap::new(), None),
                "close" => open_close = Some(number("interval")),
                "durable" => {
                    durable.insert(number("epoch"));
                    last_count = self.counts[number("epoch") as usize];
                    if let Some(interval) = open_close.take() {
                        closed.insert(interval, last_count);
                    }
                }
                "failed" => {
                    if let Some(interval) = open_close.take() {
                        closed.insert(interval, last_count);
                    }
                }
                "verdict" if line["verdict"] == "passed" => drop(passed.insert(number("epoch"))),
                "release" => {
                    let epoch = number("epoch");
                    assert!(durable.contains(&epoch) && passed.contains(&epoch), "{line}");
                    released.push(Released { at_ns: number("at_ns"), count: closed[&number("interval")] });
                }
                _ => {}
            }
        }
        released
    }

    /// No packet was on the bridge before the interval it was sent in was released.
    pub(crate) fn nothing_leaked(&self) {
        let (releases, from) = (self.releases(), self.held_from());
        let before = self.packets.iter().filter(|packet| packet.at_ns < from);
        let free = before.map(|packet| packet.number).max().unwrap_or(0);
        let mut checked = 0;
        for packet in self.packets.iter().filter(|packet| packet.at_ns >= from && packet.number > free) {
            let until = releases.partition_point(|release| release.at_ns <= packet.at_ns);
            let allowed = releases[..until].iter().map(|release| release.count).max().unwrap_or(0);
            assert!(packet.number <= allowed, "{packet:?} is out, and only those until {allowed} may be");
            checked += 1;
        }
        println!("{checked} packets came by after {} releases", releases.len());
        assert!(checked > 0);
    }

    /// Every protocol came by, each in order, and nothing that was released is missing but what is in `lost`.
    pub(crate) fn nothing_is_stuck(&self) {
        let releases = self.releases();
        // The last was counted, and perhaps not sent any more, before the guest stood still.
        let released = releases.last().unwrap().count - 1;
        let from = self.held_from();
        for protocol in ONCE {
            let seen: Vec<u64> = self
                .packets
                .iter()
                .filter(|packet| packet.protocol == protocol)
                .map(|packet| packet.number)
                .collect();
            assert!(seen.is_sorted(), "{protocol}: out of order");
            let first = seen.first().copied().unwrap();
            let missing: Vec<u64> =
                (first..=released).filter(|number| seen.binary_search(number).is_err()).collect();
            assert!(missing.is_empty(), "{protocol}: {missing:?} of {first}..={released} never came by");
            assert!(self.packets.iter().any(|packet| packet.protocol == protocol && packet.at_ns > from));
        }
        assert!(
            self.packets.iter().any(|packet| packet.protocol == 't' && packet.at_ns > from),
            "connections"
        );
    }

    /// The last number that was on the bridge.
    pub(crate) fn last(&self) -> u64 {
        self.packets.iter().map(|packet| packet.number).max().unwrap()
    }
}

/// The sender's count in each epoch.
fn counts(path: &std::path::Path) -> Vec<u64> {
    let archive = Archive::open(path, Access::Read).unwrap();
    let epochs = archive.epoch_count("web1").unwrap();
    let memory = archive.epoch("web1", epochs - 1).unwrap();
    let mut places = Vec::new();
    for region in memory.regions() {
        for at in (region.start.0..region.start.0 + region.len).step_by(4096) {
            let mut page = [0; 4096];
            if memory.read(Gpa(at), &mut page).is_ok() {
                let lines = (0..4096).step_by(64).filter(|line| page[*line..].starts_with(MARK));
                places.extend(lines.map(|line| Gpa(at + line as u64 + MARK.len() as u64)));
            }
        }
    }
    // The program's file, in the page cache, has the mark too, with a count of zero.
    let counts = |place: &Gpa| -> Vec<u64> {
        let count = |epoch| {
            let mut bytes = [0; 8];
            archive.epoch("web1", epoch).unwrap().read(*place, &mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        };
        (0..epochs).map(count).collect()
    };
    let counts: Vec<Vec<u64>> = places.iter().map(counts).filter(|counts| counts.last() > Some(&0)).collect();
    assert_eq!(counts.len(), 1, "one place counts: {places:x?}");
    assert!(counts[0].is_sorted(), "{counts:?}");
    counts.into_iter().next().unwrap()
}
