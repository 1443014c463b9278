//! Under load, with packets coming in: what the archive holds of an epoch is the domain's memory, frame by frame, as a copy
//! says that was taken in the same pause without varve.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use varve_fixtures::{Hypervisor, LabError, XenGuest, digest};

use super::host::{Host, host};
use crate::support::{Archive, text, times};

/// Starts a capture and pings, which go on until they are told to end.
const BEGIN: &str =
    "varve --json capture xen:web1 --interval 300ms --quiesce HOLD >/tmp/epochs 2>/tmp/said </dev/null &
echo $! >/tmp/capture
ping -q -i 0.02 -s 1200 10.9.0.2 >/tmp/ping 2>&1 </dev/null &
echo $! >/tmp/pinging";

/// Ends both. What the capture said of its epochs, and of the pings how many were answered.
const END: &str = "kill -TERM $(cat /tmp/capture)
kill -INT $(cat /tmp/pinging)
agent await 100 1 summary /tmp/epochs
grep summary /tmp/epochs
grep received /tmp/ping
du -sh /tmp/web1-archive";

/// What Xen says of grants that are in use: a line for each, with the frame as the last but one word.
const GRANTS: &str = "xl dmesg -c >/dev/null
xl debug-keys g
xl dmesg | grep -o '\\[0x.*' || true";

/// Digests of frames by their number.
type Copy = BTreeMap<u64, u64>;

/// An epoch, and what the domain was while it was taken.
pub(super) struct Copied {
    pub(super) epoch: u64,
    pub(super) frames: Copy,
    /// Frames that a backend has mapped, such as the rings of a network card. Xen notes what is written to them through that
    /// mapping when it ends.
    rings: BTreeSet<u64>,
}

#[test]
fn epochs_of_a_paused_domain_are_its_memory() {
    epochs_are_its_memory("pause", times("VARVE_ROUNDS", 10));
}

#[test]
fn epochs_of_a_suspended_domain_are_its_memory() {
    epochs_are_its_memory("suspend", times("VARVE_ROUNDS", 5));
}

/// The domain is held by hand for the epochs that are compared, since nobody else can look in varve's own pauses. The epochs
/// in between are of those pauses: what one of them missed is still missing in the next that is compared.
fn epochs_are_its_memory(hold: &str, rounds: usize) {
    let mut host = host();
    let mut guest = host.guest_at("web1", "10.9.0.2");
    guest.start_workload(4, 16).unwrap();
    let frames = frames(&guest);
    let events = events(&mut guest);
    host.script("web1", &BEGIN.replace("HOLD", hold));
    let mut copies = Vec::new();
    for _ in 0..rounds {
        guest.work(5).unwrap();
        // Right behind an epoch: a guest that has begun to suspend itself cannot go on with that while it is paused.
        host.more_epochs("web1", 1);
        guest.host_mut().pause().unwrap();
        // Packets come in while this one is taken.
        host.more_epochs("web1", 2);
        host.script("web1", "kill -STOP $(cat /tmp/pinging)");
        copies.push(copy_of_an_epoch(&mut host, &guest, &frames));
        host.script("web1", "kill -CONT $(cat /tmp/pinging)");
        guest.host_mut().resume().unwrap();
    }
    let packets = guest.read_file("/sys/class/net/eth0/statistics/rx_packets").unwrap();
    let packets: u64 = String::from_utf8_lossy(&packets).trim().parse().unwrap();
    assert!(packets > 100 * rounds as u64, "{packets} packets came in");
    assert_eq!(self::frames(&guest), frames, "no frame comes or goes");
    println!("{hold}: {packets} packets came in; {}", host.script("web1", END));
    let archive = host.bring("web1");
    // Another test may have the host meanwhile.
    drop(host);
    let epochs = archive.json(&["epochs"], 0);
    if hold == "suspend" {
        let quiet = epochs.iter().all(|epoch| epoch["residue"] == 0);
        assert!(quiet, "nothing is left of a guest that stands still: {epochs:?}");
    }
    compare(&archive, &epochs, &copies, &events);
}

/// Holds epochs against copies of the domain. `events`: where Xen tells it of events.
fn compare(archive: &Archive, epochs: &[Value], copies: &[Copied], events: &BTreeSet<u64>) {
    let mut earlier = &Copy::new();
    for Copied { epoch, frames, rings } in copies {
        let residue = epochs[*epoch as usize]["residue"].as_u64().unwrap();
        let archived = archived(archive, *epoch);
        assert!(archived.keys().eq(frames.keys()), "epoch {epoch} has other frames");
        let different = differing(&archived, frames);
        let changed = differing(earlier, frames).len();
        let seen = format!("epoch {epoch}, residue {residue}: different {different:x?}, rings {rings:x?}");
        println!("{seen}, {changed} changed");
        let unexplained = &(&different - rings) - events;
        assert!(unexplained.len() as u64 <= residue, "{seen}, events {events:x?}");
        assert!(changed > 10, "the guest works");
        assert!(rings.len() < 10, "few frames may differ");
        earlier = frames;
    }
}

/// A copy of a domain that stands still and the number of an epoch taken between two looks at it that saw the same.
pub(super) fn copy_of_an_epoch(host: &mut Host, guest: &XenGuest, frames: &[u64]) -> Copied {
    for _ in 0..20 {
        let before = copy(guest, frames);
        // The next may have begun before; that behind it has not.
        let epoch = host.more_epochs("web1", 2);
        let after = copy(guest, frames);
        if before == after {
            return Copied { epoch, frames: after, rings: rings(host) };
        }
        println!("backends write: {:x?}", differing(&before, &after));
    }
    panic!("backends write to the domain all the time");
}

/// The frames that backends have mapped.
fn rings(host: &mut Host) -> BTreeSet<u64> {
    let frame = |line: &str| {
        let word = line.split_whitespace().rev().nth(1).and_then(|word| word.strip_prefix("0x"));
        u64::from_str_radix(word.unwrap_or(line), 16).unwrap()
    };
    host.script("web1", GRANTS).lines().map(frame).collect()
}

/// Where Xen tells the domain's processor that an event has come, and of which: its `vcpu_info`, the control block and the
/// array of `include/public/event_channel.h`. Xen does not note what it writes there, which the domain overwrites when it takes
/// the event: an epoch is known not to see it if the domain stands still from then on.
fn events(guest: &mut XenGuest) -> BTreeSet<u64> {
    guest.learn().unwrap();
    let found = guest.paused(|guest| {
        let processor = guest.read_u64(guest.symbols()?.address("__per_cpu_offset")?)?;
        let places = ["xen_vcpu", "cpu_control_block"].map(|own| (own, processor));
        let places = places.into_iter().chain([("event_array", 0)]);
        let frames = places.map(|(name, base)| {
            let pointer = guest.symbols()?.address(name)?.wrapping_add(base);
            let place = guest.read_u64(pointer)?;
            guest.translate(place).map(|gpa| gpa >> 12)
        });
        frames.collect::<Result<_, LabError>>()
    });
    found.unwrap().unwrap()
}

/// The numbers of the frames that there are, ascending.
pub(super) fn frames(guest: &XenGuest) -> Vec<u64> {
    guest.digests().unwrap().into_iter().map(|(frame, _)| frame).collect()
}

/// The frames that there are, looked at now.
fn copy(guest: &XenGuest, frames: &[u64]) -> Copy {
    let mut found = Copy::new();
    for run in frames.chunk_by(|frame, next| next - frame < 1024) {
        let (first, last) = (run[0], run[run.len() - 1]);
        found.extend(guest.digests_within(first, last - first + 1).unwrap());
    }
    found
}

/// What the archive holds of an epoch. A LiME file is runs of memory, each behind a header of 32 bytes: magic number, version,
/// first and last address, and nothing.
pub(super) fn archived(archive: &Archive, epoch: u64) -> Copy {
    let file = archive.beside("exported");
    let arguments = ["export", &epoch.to_string(), "--format", "lime", "--force", "-o", text(&file)];
    archive.run(&arguments).expect_status(0);
    let bytes = std::fs::read(&file).unwrap();
    let (mut found, mut rest) = (Copy::new(), bytes.as_slice());
    while let Some((header, behind)) = rest.split_at_checked(32) {
        let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap());
        assert_eq!(number(0), 0x1_4c69_4d45);
        let (first, end) = (number(8), number(16) + 1);
        let (run, behind) = behind.split_at((end - first) as usize);
        found.extend((first >> 12..).zip(run.chunks(4096).map(digest)));
        rest = behind;
    }
    assert!(rest.is_empty());
    found
}

pub(super) fn differing(one: &Copy, other: &Copy) -> BTreeSet<u64> {
    let numbers = one.keys().chain(other.keys());
    numbers.filter(|number| one.get(number) != other.get(number)).copied().collect()
}
