//! The domain of an epoch, started where it can harm nobody beside the one it was, and watched there.

use serde_json::Value;

use super::host::host;

/// Bridges: one for guests alone, one with an end of a pair, whose other end may be anywhere, and two through which this host can be
/// reached: at once, or as soon as something is connected.
const BRIDGES: &str = "ip link add varve-island type bridge
ip link set varve-island addrgenmode none
ip link set varve-island up
ip link add varve-paired type bridge
ip link add varve-near type veth peer name varve-far
ip link set varve-near master varve-paired
ip link add varve-home type bridge
ip link set varve-home addrgenmode none
ip address add 192.0.2.1/24 dev varve-home
ip link add varve-plain type bridge";

/// Watches it until told to end.
const BEGIN: &str =
    "varve --json quarantine 0 --bridge varve-island --interval 500ms >/tmp/watch 2>/tmp/said </dev/null &
echo $! >/tmp/watching
agent await 200 1 '\"epoch\":1,' /tmp/watch || { cat /tmp/said; exit 1; }";

const END: &str = "agent await 100 +2 '\"type\":\"epoch\"' /tmp/watch || true
kill -INT $(cat /tmp/watching)
agent await 100 1 summary /tmp/watch || true
cat /tmp/watch /tmp/said";

#[test]
fn a_domain_is_watched_on_an_island_while_the_one_it_was_runs_on() {
    let mut host = host();
    let mut guest = host.guest_at("bait", "10.9.0.2");
    host.script("bait", BRIDGES);
    guest.write_file("/run/evidence", "of the epoch").unwrap();
    host.json("bait", &["capture", "xen:bait", "--epochs", "1", "--quiesce", "suspend"], 0);
    guest.write_file("/run/evidence", "of later").unwrap();
    let mut refusals = vec![
        ("varve-paired", "\"varve-near\" on it leads to a network".to_owned()),
        ("nowhere", "is no bridge of this host".to_owned()),
        ("varve-home", "this host has an address on it".to_owned()),
        ("varve-plain", "this host has an address on it, or gets one".to_owned()),
    ];
    if let Some(card) = host.spare_card() {
        let bridge = "varve-outside";
        host.script("bait", &format!("ip link add {bridge} type bridge\nip link set {card} master {bridge}"));
        refusals.push((bridge, format!("\"{card}\" on it leads to a network")));
    }
    for (bridge, reason) in &refusals {
        let refused = host.varve("bait", &["quarantine", "0", "--bridge", bridge]);
        assert_eq!(refused.status, Some(1), "{}", refused.output);
        assert!(refused.output.contains(reason), "{}", refused.output);
    }

    host.script("bait", BEGIN);
    let mut twin = host.reach_twin(&guest, "bait-quarantine");
    assert_eq!(twin.read_file("/run/evidence").unwrap(), b"of the epoch\n");
    assert_eq!(guest.read_file("/run/evidence").unwrap(), b"of later\n", "the other runs on");
    let pid = twin.spawn("trapped", 33, "/usr/bin/sleep", &["infinity"]).unwrap();
    let watched = host.script("bait", END);
    assert!(watched.contains("is captured from here on"), "{watched}");
    let listed = host.script("bait", "varve --json --vm bait-quarantine show pslist");
    let mut listed = listed.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    assert!(
        listed.any(|row| row["pid"] == pid && row["comm"] == "trapped"),
        "the archive has what happens there"
    );
    assert!(guest.truth().unwrap().named("trapped").next().is_none());
    assert!(twin.truth().unwrap().named("trapped").next().is_some(), "it runs on unwatched");

    let addresses = ["bait", "bait-quarantine"].map(|name| {
        let listed = host.script("bait", &format!("xl network-list {name} | grep -o '00:16:3e:[0-9a-f:]*'"));
        listed.trim().to_owned()
    });
    assert_eq!(addresses[0], addresses[1]);
    let ports = host.script("bait", "ls /sys/class/net/varve-island/brif /sys/class/net/varvebr0/brif");
    assert_eq!(ports.matches("vif").count(), 2, "{ports}");
    // The answer can come from the first alone.
    host.script("bait", "ping -c 1 -W 5 10.9.0.2\nxl destroy bait-quarantine\nping -c 1 -W 5 10.9.0.2");
    host.script(
        "bait",
        "for link in /sys/class/net/varve-*; do [ ! -e $link ] || ip link del ${link##*/}; done",
    );
}
