//! The output buffer in the dom0 of a real Xen, on a real kernel with `sch_plug`.
//!
//! This program is both ends: started without arguments it boots the host, puts itself into dom0, and checks what it says
//! there; in dom0 it drives the buffer by a script. A veth pair stands for a guest's card: its far end is in a network
//! namespace of its own, its near end is named like a vif. What iproute2 says of the devices is the independent witness.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed"
)]

mod dom0;

use varve_fixtures::{XenConfig, XenHost};

/// Where this program is in dom0.
const DRIVER: &str = "/run/driver";

/// Two cards of domain 7. IPv6 speaks unasked, which would spoil the counts: only the second has it, and there nothing is counted.
const CARDS: &str = r"
for card in 0 1; do
    ip netns add guest$card
    ip link add vif7.$card type veth peer name eth0 netns guest$card
    echo 1 >/proc/sys/net/ipv6/conf/vif7.$card/disable_ipv6
    ip netns exec guest$card bash -c 'echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6'
    ip link set vif7.$card address 02:00:00:00:07:0$card
    ip -n guest$card link set eth0 address 02:00:00:00:08:0$card
    ip addr add 10.7.$card.1/24 dev vif7.$card
    ip -n guest$card addr add 10.7.$card.2/24 dev eth0
    ip link set vif7.$card up
    ip -n guest$card link set eth0 up
    ip neigh replace 10.7.$card.2 lladdr 02:00:00:00:08:0$card dev vif7.$card nud permanent
    ip -n guest$card neigh replace 10.7.$card.1 lladdr 02:00:00:00:07:0$card dev eth0 nud permanent
done
echo 0 >/proc/sys/net/ipv6/conf/vif7.1/disable_ipv6
ip netns exec guest1 bash -c 'echo 0 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6'
ip addr add fd00:7::1/64 dev vif7.1 nodad
ip -n guest1 addr add fd00:7::2/64 dev eth0 nodad
ip neigh replace fd00:7::2 lladdr 02:00:00:00:08:01 dev vif7.1 nud permanent
ip -n guest1 neigh replace fd00:7::1 lladdr 02:00:00:00:07:01 dev eth0 nud permanent
";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["send", to, payloads @ ..] => dom0::send(to, payloads),
        ["drive", script] => dom0::drive(script),
        _ => on_the_host(),
    }
}

/// The checks, in turn on one host: each begins and ends without a buffer.
fn on_the_host() {
    let mut lab = Lab::boot();
    epochs_leave_one_by_one(&mut lab);
    address_resolution_and_ipv6_are_held(&mut lab);
    what_does_not_fit_is_dropped_and_counted(&mut lab);
    a_killed_process_leaves_packets_held(&mut lab);
    a_stopped_or_removed_ifb_lets_nothing_pass(&mut lab);
    inbound_packets_wait_until_they_may_pass(&mut lab);
    println!("output_xen: all passed");
}

struct Lab {
    host: XenHost,
}

impl Lab {
    fn boot() -> Self {
        let mut host = XenHost::boot(XenConfig::default()).unwrap();
        let program = std::env::current_exe().unwrap();
        let stripped = tempfile::NamedTempFile::new().unwrap();
        let mut strip = std::process::Command::new("strip");
        assert!(strip.arg("-o").args([stripped.path(), &program]).status().unwrap().success());
        host.put(DRIVER, 0o755, &std::fs::read(stripped.path()).unwrap()).unwrap();
        host.script(CARDS).unwrap();
        Self { host }
    }

    /// What the driver says to a script; the time that closing epochs took is left out, and printed.
    fn drive(&mut self, script: &str) -> String {
        self.host.put("/run/script", 0o600, script.as_bytes()).unwrap();
        let ran = self.host.run(DRIVER, &["drive", "/run/script"]).unwrap();
        let (times, said): (Vec<&str>, Vec<&str>) =
            ran.output.lines().partition(|line| line.starts_with("# "));
        times.iter().for_each(|line| println!("output_xen: {line}"));
        said.join("\n")
    }

    /// A script all of whose answers are known.
    fn check(&mut self, what: &str, script: &str, said: &str) {
        println!("output_xen: {what}");
        let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let actual = self.drive(script);
        assert_eq!(actual, lines.join("\n"), "{what}:\n{actual}");
    }

    fn script(&mut self, script: &str) -> String {
        self.host.script(script).unwrap()
    }

    /// Nothing is left of a buffer.
    fn is_tidy(&mut self) {
        let left = self.script(
            "{ ip -o link show type ifb | grep ' vv'; tc qdisc show | grep -E 'plug|ingress'; } || true",
        );
        assert_eq!(left, "");
    }
}

fn epochs_leave_one_by_one(lab: &mut Lab) {
    let long = "x".repeat(1400);
    let script = format!(
        "install vif7.0 vif7.1
         send 0 a b c
         waiting vif7.0 3
         close
         close
         send 0 d e
         waiting vif7.0 5
         received 0
         release
         received 3
         waiting vif7.0 2
         close
         send 0 {long}
         waiting vif7.0 3
         release
         received 2
         traffic
         shell tc qdisc show dev vv7.0 | cut -d' ' -f1-4
         shell tc filter show dev vif7.0 ingress | grep -oE 'matchall|mirred .*' | tr '\\n' ' '
         shell ip -d link show vv7.0 | grep -oE 'alias .*|^ *ifb' | tr -s ' \\n' ' '
         release-all
         received 1
         send 0 g
         received 1
         remove
         send 0 h
         received 1"
    );
    let said = format!(
        "install: ok
         waiting vif7.0: 3
         close: ok
         close: closing an epoch is not possible now: vif7.0: held, with a closed epoch undecided, vif7.1: held, with a closed epoch undecided
         waiting vif7.0: 5
         received:
         release: ok
         received: a b c
         waiting vif7.0: 2
         close: ok
         waiting vif7.0: 3
         release: ok
         received: d e
         vif7.0: held, vif7.1: held
         qdisc plug 7676: root
         matchall matchall mirred (Egress Redirect to device vv7.0) stolen
         ifb alias varve vif=vif7.0 vm=web1
         release-all: ok
         received: {long}
         received: g
         remove: ok
         received: h"
    );
    lab.check("three packets in the first epoch, two in the second", &script, &said);
    lab.is_tidy();
}

fn address_resolution_and_ipv6_are_held(lab: &mut Lab) {
    // One request only, so that the count is certain: the next would follow after a minute.
    lab.script(
        "ip netns exec guest0 bash -c 'echo 60000 >/proc/sys/net/ipv4/neigh/eth0/retrans_time_ms'
         ip -n guest0 neigh del 10.7.0.1 dev eth0",
    );
    lab.check(
        "address resolution is held, and IPv6",
        "install vif7.0 vif7.1
         send 0 after-arp
         waiting vif7.0 1
         received 0
         close
         release
         waiting vif7.0 1
         received 0
         close
         release
         received 1
         send6 1 six
         some waiting vif7.1
         received6 0
         close
         release
         received6 1
         remove",
        "install: ok
         waiting vif7.0: 1
         received:
         close: ok
         release: ok
         waiting vif7.0: 1
         received:
         close: ok
         release: ok
         received: after-arp
         some waiting vif7.1
         received:
         close: ok
         release: ok
         received: six
         remove: ok",
    );
    lab.is_tidy();
    lab.script("ip -n guest0 neigh replace 10.7.0.1 lladdr 02:00:00:00:07:00 dev eth0 nud permanent");
}

fn what_does_not_fit_is_dropped_and_counted(lab: &mut Lab) {
    // 100 bytes of payload make a frame of 142: seven fit into a thousand bytes.
    let burst = "x".repeat(100);
    let sent = format!("{burst} ").repeat(20);
    let script = format!(
        "install limit 1000 vif7.0
         send 0 {sent}
         waiting vif7.0 7
         statistics
         limit 1000000
         send 0 {burst}
         waiting vif7.0 8
         remove
         received 0
         send 0 later
         received 1"
    );
    lab.check(
        "tail drop",
        &script,
        "install: ok
         waiting vif7.0: 7
         vif7.0: held; out: 7 waiting, 994 bytes, 13 dropped, 0 passed; in: none
         limit: ok
         waiting vif7.0: 8
         remove: ok
         received:
         received: later",
    );
    lab.is_tidy();
}

fn a_killed_process_leaves_packets_held(lab: &mut Lab) {
    lab.check(
        "a process that is killed in the middle of an epoch",
        "install vif7.0 vif7.1
         send 0 a
         waiting vif7.0 1
         close
         send 0 b
         waiting vif7.0 2
         die",
        "install: ok
         waiting vif7.0: 1
         close: ok
         waiting vif7.0: 2",
    );
    lab.check(
        "another takes over what it left, and releases it",
        "send 0 c
         orphans
         received 0
         install vif7.0
         adopt
         waiting vif7.0 3
         close
         release
         release-all
         received 3
         remove
         orphans",
        "vv7.0 for vif7.0 of domain 7, web1: held or released, which is not known; 3 waiting
         vv7.1 for vif7.1 of domain 7, web1: held or released, which is not known; some waiting
         received:
         install: vv7.0 exists: another process holds the output of vif7.0, or left it held
         adopt: ok
         waiting vif7.0: 3
         close: closing an epoch is not possible now: vif7.0: held or released, which is not known, vif7.1: held or released, which is not known
         release: releasing the closed epoch is not possible now: vif7.0: held or released, which is not known, vif7.1: held or released, which is not known
         release-all: ok
         received: a b c
         remove: ok",
    );
    lab.is_tidy();
    lab.drive("install vif7.0 vif7.1\nsend 0 never\nwaiting vif7.0 1\ndie");
    lab.check(
        "another takes over what it left, and drops it",
        "adopt
         remove
         send 0 a
         received 1",
        "adopt: ok
         remove: ok
         received: a",
    );
    lab.is_tidy();
}

fn a_stopped_or_removed_ifb_lets_nothing_pass(lab: &mut Lab) {
    lab.check(
        "a removal that stops half way drops, and is found",
        "install vif7.0
         send 0 a
         waiting vif7.0 1
         shell ip link set vv7.0 down
         send 0 b
         received 0
         orphans
         adopt
         remove
         send 0 c
         received 1
         install vif7.0
         shell ip link del vv7.0
         send 0 d
         received 0
         close
         remove
         send 0 e
         received 1",
        "install: ok
         waiting vif7.0: 1
         received:
         vv7.0 for vif7.0 of domain 7, web1: dropped; 0 waiting
         adopt: ok
         remove: ok
         received: c
         install: ok
         received:
         close: closing an epoch failed: vif7.0: closing the epoch: No such device (os error 19); now vif7.0: held or released, which is not known
         remove: ok
         received: e",
    );
    lab.is_tidy();
}

fn inbound_packets_wait_until_they_may_pass(lab: &mut Lab) {
    lab.check(
        "inbound packets are held when told, and a vif that disappears leaves an ifb",
        "install inbound vif7.0
         inbound 0 a
         inbound-passed vif7.0 1
         hold-inbound
         inbound 0 b c
         inbound-waiting vif7.0 2
         pass-inbound
         inbound-passed vif7.0 3
         remove
         install vif7.1
         shell ip link del vif7.1
         orphans
         adopt
         remove",
        "install: ok
         inbound-passed vif7.0: 1
         hold-inbound: ok
         inbound-waiting vif7.0: 2
         pass-inbound: ok
         inbound-passed vif7.0: 3
         remove: ok
         install: ok
         vv7.1 for vif7.1 of domain 7, web1: gone; some waiting
         adopt: ok
         remove: ok",
    );
    lab.is_tidy();
}
