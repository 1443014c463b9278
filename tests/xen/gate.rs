//! Nothing leaves a domain before the epoch that produced it is durable and has passed, whatever happens.

mod evidence;

use std::time::Duration;

use serde_json::Value;
use varve_fixtures::XenGuest;

use self::evidence::Evidence;
use super::host::{Lease, host};
use crate::support::times;

/// As patient as an emulated host needs.
const POLICY: &str = r#"[process]
deny = ["xmrig"]
[gate]
hold_budget_ms = 60000
"#;

/// The bridge has an address of either kind, and somebody who notes what comes by.
const WATCH: &str = "ip addr replace fd00:9::1/64 dev varvebr0 nodad
agent watch varvebr0 >/tmp/packets 2>&1 </dev/null &
agent await 60 1 watching /tmp/packets";

/// So has the guest. It does not give up a neighbour whose answer it waits for longer than three seconds, because its question is
/// held: what it then drops never leaves it.
const ADDRESS: &str =
    "busybox ip addr add fd00:9::2/64 dev eth0; echo 1000 >/proc/sys/net/ipv6/neigh/eth0/ucast_solicit";

/// What has come by, and what the gate has done, a line each.
const PACKETS: &str = "/tmp/packets";
const JOURNAL: &str = "/var/log/varve/gate-web1.jsonl";

/// How long an emulated host may take for what does not depend on anything but its speed.
const PATIENCE: Duration = Duration::from_secs(600);

/// How often a gate is killed at its work, and as often while it begins.
const KILLS: usize = 3;

/// A guest that sends numbered packets, and the host that has it.
struct Scene {
    host: Lease,
    guest: XenGuest,
}

/// How a gate ended, and what it printed.
struct Gated {
    status: i32,
    lines: Vec<Value>,
    said: String,
}

impl Scene {
    fn new(policy: &str) -> Self {
        let mut host = host();
        let mut guest = host.guest_at("web1", "10.9.0.2");
        host.put("/tmp/policy.toml", policy);
        host.script("web1", WATCH);
        guest.script(ADDRESS).unwrap();
        guest.spawn("traffic", 0, "/init", &["send", "eth0", "20", "10.9.0.1", "fd00:9::1"]).unwrap();
        let mut scene = Self { host, guest };
        scene.lines(PACKETS, " t ", 1);
        scene.lines(PACKETS, " 6 ", 1);
        scene
    }

    /// Begins to gate the guest, in the background.
    fn begin(&mut self, arguments: &str) {
        self.host.script(
            "web1",
            &format!(
                "rm -f /tmp/status
                 {{ status=0; varve --json gate web1 --policy /tmp/policy.toml {arguments} >>/tmp/gate 2>>/tmp/said </dev/null || status=$?
                 echo $status >/tmp/status; }} >/dev/null 2>&1 &"
            ),
        );
    }

    /// Waits until so many lines of a file in dom0 hold a text.
    fn lines(&mut self, path: &str, text: &str, count: usize) {
        self.lines_within(PATIENCE, path, text, count);
    }

    fn lines_within(&mut self, limit: Duration, path: &str, text: &str, count: usize) {
        if !self.host.lines(path, text, count, limit) {
            let said = self.host.script("web1", "cat /tmp/said /tmp/gate 2>/dev/null | tail -20");
            panic!("{path} has no {count} lines with {text:?} within {limit:?}: {said}");
        }
    }

    /// Waits for so many more releases.
    fn more_releases(&mut self, count: usize) {
        let seen = self.host.lines_now(JOURNAL, "\"release\"");
        self.lines(JOURNAL, "\"release\"", seen + count);
    }

    /// Waits until the gate has ended.
    fn end(&mut self) -> Gated {
        self.end_within(PATIENCE)
    }

    fn end_within(&mut self, limit: Duration) -> Gated {
        self.lines_within(limit, "/tmp/status", "", 1);
        let status = self.host.script("web1", "cat /tmp/status").trim().parse().unwrap();
        let lines = self.host.script("web1", "cat /tmp/gate");
        let lines = lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let said = self.host.script("web1", "cat /tmp/said");
        Gated { status, lines, said }
    }

    /// Everything that was seen.
    fn evidence(&mut self) -> Evidence {
        let packets = self.host.script("web1", "cat /tmp/packets");
        let journal = self.host.script("web1", "cat /var/log/varve/gate-web1.jsonl");
        let archive = self.host.bring("web1");
        Evidence::new(&packets, &journal, &archive.path())
    }

    /// How many packets are held.
    fn held(&mut self) -> u64 {
        self.host.json("web1", &["gate", "--status"], 0)[0]["held_packets"].as_u64().unwrap()
    }

    /// How many packets have come by.
    fn packets(&mut self) -> usize {
        self.host.lines_now(PACKETS, "")
    }
}

#[test]
fn packets_leave_in_order_when_their_epoch_is_durable_and_has_passed() {
    let mut scene = Scene::new(POLICY);
    let epochs: u64 = times("VARVE_GATE_EPOCHS", 300);
    scene.begin(&format!("--interval 200ms --epochs {epochs} --metrics /tmp/gate.prom"));
    let gated = scene.end_within(Duration::from_secs(60 + epochs * 20));
    assert_eq!(gated.status, 0, "{}", gated.said);
    let summary = gated.lines.last().unwrap();
    println!("{summary}");
    assert_eq!(
        (&summary["epochs"], &summary["bad"], &summary["missing"]),
        (&epochs.into(), &0.into(), &0.into())
    );
    let metrics = scene.host.script("web1", "cat /tmp/gate.prom");
    assert!(metrics.contains("varve_gate_epochs_total{vm=\"web1\",verdict=\"passed\"}"), "{metrics}");
    let evidence = scene.evidence();
    evidence.nothing_leaked();
    evidence.nothing_is_stuck();
    // The gate has ended, and the kernel goes on holding.
    let before = scene.packets();
    scene.host.script("web1", "sleep 2");
    assert_eq!(scene.packets(), before);
    let status = scene.host.json("web1", &["gate", "--status"], 0);
    assert_eq!(status[0]["state"], "held, and no gate is at work", "{status:?}");
    assert!(status[0]["held_packets"].as_u64().unwrap() > 0, "{status:?}");
    scene.host.json("web1", &["gate", "web1", "--off"], 0);
    scene.lines(PACKETS, "", before + 11);
}

#[test]
fn nothing_of_the_epoch_in_which_the_intruder_came_ever_leaves() {
    let mut scene = Scene::new(POLICY);
    scene.begin("--interval 200ms");
    scene.more_releases(5);
    scene.guest.spawn("xmrig", 33, "/usr/bin/sleep", &["infinity"]).unwrap();
    let gated = scene.end();
    assert_eq!(gated.status, 4, "{}", gated.said);
    let before = scene.packets();
    let listed = scene.host.script("web1", "sleep 3; xl list web1");
    assert!(listed.contains("--p---"), "it is frozen: {listed}");
    assert_eq!(scene.packets(), before, "nothing more comes");
    let evidence = scene.evidence();
    evidence.nothing_leaked();
    let bad = evidence.acts("freeze").next().unwrap()["epoch"].as_u64().unwrap() as usize;
    let (last, clean) = (evidence.last(), evidence.counts[bad - 1]);
    assert!(last <= clean, "packet {last} is out; epoch {} had counted {clean}", bad - 1);

    // Another gate does not open it; one that is told that it is no harm does.
    let refused = scene.host.varve("web1", &["gate", "web1", "--policy", "/tmp/policy.toml"]);
    assert_eq!(refused.status, Some(1), "{}", refused.output);
    assert!(refused.output.contains("was frozen because of what was found"), "{}", refused.output);
    scene.host.put("/tmp/policy.toml", POLICY.replace("xmrig", "other"));
    scene.begin("--interval 200ms --epochs 20 --thaw");
    let gated = scene.end();
    assert_eq!(gated.status, 0, "{}", gated.said);
    assert!(scene.guest.truth().is_ok(), "the guest runs on");
    assert!(scene.packets() > before, "and is heard");
}

#[test]
fn a_scanner_that_dies_or_hangs_is_replaced_and_nothing_leaks_meanwhile() {
    let policy = POLICY.replace("60000", "4000") + "scan_limit_ms = 30000\n";
    let mut scene = Scene::new(&policy);
    scene.begin("--interval 200ms");
    scene.more_releases(1);
    let owner = scene.host.script(
        "web1",
        "ps -o uid= -p $(pgrep -f gate-scanner); grep Seccomp: /proc/$(pgrep -f gate-scanner)/status",
    );
    assert_eq!(owner.split_whitespace().collect::<Vec<_>>(), ["65534", "Seccomp:", "2"], "it has no rights");
    scene.host.script("web1", "kill -9 $(pgrep -f gate-scanner)");
    scene.more_releases(3);
    scene.host.script("web1", "kill -STOP $(pgrep -f gate-scanner)");
    // No verdict: the guest is paused. The journal says so first.
    scene.lines(JOURNAL, "\"brake\"", 1);
    scene.host.script("web1", "until varve --json gate --status | grep -q '\"paused\"'; do sleep 1; done");
    assert!(scene.host.script("web1", "xl list web1").contains("--p---"));
    scene.more_releases(3);
    assert!(scene.guest.truth().is_ok(), "the guest runs again");
    scene.host.script("web1", "kill -TERM $(pgrep -xf 'varve --json gate.*')");
    let gated = scene.end();
    assert_eq!(gated.status, 0, "{}", gated.said);
    let evidence = scene.evidence();
    let said = |what: &str| evidence.acts("failed").any(|act| act["what"].as_str().unwrap().contains(what));
    assert!(said("does not answer"), "{:#?}", evidence.journal);
    evidence.nothing_leaked();
    evidence.nothing_is_stuck();
    assert_eq!(scene.host.script("web1", "pgrep -f gate-scanner || true"), "");
}

#[test]
fn a_gate_that_is_killed_leaves_packets_held_and_the_next_goes_on() {
    let mut scene = Scene::new(POLICY);
    let mut seed = 0x9e37_79b9_u64;
    for kill in 0..2 * KILLS {
        let begun = scene.host.lines_now(JOURNAL, "\"begin\"");
        scene.begin("--interval 200ms");
        scene.lines(JOURNAL, "\"begin\"", begun + 1);
        if kill % 2 == 0 {
            scene.more_releases(2);
        }
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let after_ms = seed >> 33 & 0x3ff;
        scene
            .host
            .script("web1", &format!("sleep 0.{after_ms:03}; kill -9 $(pgrep -xf 'varve --json gate.*')"));
        println!(
            "killed after {after_ms} ms: {}",
            scene.host.script("web1", &format!("tail -n 1 {JOURNAL}")).trim()
        );
        scene.end();
        let before = scene.packets();
        scene.host.script("web1", "sleep 2");
        assert_eq!(scene.packets(), before, "the kernel goes on holding");
        assert_eq!(
            scene.host.script("web1", "pgrep -f gate-scanner || true"),
            "",
            "the scanner ends with its gate"
        );
    }
    scene.begin("--interval 200ms --epochs 3");
    let gated = scene.end();
    assert_eq!(gated.status, 0, "{}", gated.said);
    assert!(scene.guest.truth().is_ok(), "the guest runs");
    let kept = scene.host.json("web1", &["epochs"], 0);
    let kept: Vec<&str> = kept.iter().map(|epoch| epoch["id"].as_str().unwrap()).collect();
    let acknowledged: Vec<&str> = gated.lines.iter().filter_map(|line| line["id"].as_str()).collect();
    assert!(
        acknowledged.len() >= 2 * KILLS + 3 && acknowledged.iter().all(|id| kept.contains(id)),
        "none is lost"
    );
    let evidence = scene.evidence();
    evidence.nothing_leaked();
    let dropped = evidence.acts("dropped").count();
    assert!(dropped >= KILLS, "what was held is dropped, and it is said: {:#?}", evidence.journal);
}

#[test]
fn a_full_disk_ends_the_gate_with_the_guest_paused_and_room_lets_it_go_on() {
    let mut scene = Scene::new(POLICY);
    scene.host.script("web1", "mount -t tmpfs -o size=200m small /tmp/web1-archive && varve init");
    scene.begin("--interval 200ms");
    scene.more_releases(3);
    scene.host.script("web1", "dd if=/dev/zero of=/tmp/web1-archive/filler bs=64k 2>/dev/null || true");
    let gated = scene.end();
    assert_eq!(gated.status, 1, "{}", gated.said);
    assert!(gated.said.contains("space"), "{}", gated.said);
    assert!(scene.host.script("web1", "xl list web1").contains("--p---"), "the guest is paused");
    let before = scene.packets();
    scene.host.script("web1", "sleep 2; rm /tmp/web1-archive/filler");
    assert_eq!(scene.packets(), before, "nothing leaks");
    scene.begin("--interval 200ms --epochs 3");
    let gated = scene.end();
    assert_eq!(gated.status, 0, "{}", gated.said);
    assert!(scene.guest.truth().is_ok() && scene.packets() > before, "the guest runs on and is heard");
    scene.host.json("web1", &["check", "--read-data"], 0);
    scene.evidence().nothing_leaked();
}

/// What the documentation tells to do when something was found.
#[test]
fn a_frozen_domain_is_rolled_back_and_gated_before_it_runs() {
    let mut scene = Scene::new(&format!("{POLICY}restore_point_every = 3\n"));
    scene.begin("--interval 200ms --disk-snapshot 'echo of $VARVE_VM'");
    scene.more_releases(7);
    // What is taken while the intruder comes may be found clean, and has them come again.
    let before = scene.host.json("web1", &["epochs"], 0);
    let clean = before.iter().rfind(|epoch| epoch["restorable"] == true).unwrap();
    assert_eq!(clean["disk_snapshot"], "of web1");
    let clean = clean["epoch"].to_string();
    scene.guest.spawn("xmrig", 33, "/usr/bin/sleep", &["infinity"]).unwrap();
    let gated = scene.end();
    assert_eq!(gated.status, 4, "{}", gated.said);
    let summary = gated.lines.iter().find(|line| line["type"] == "summary").unwrap();
    let hint = format!("rollback {} --replace --paused", summary["last_restorable"]);
    assert!(gated.said.contains(&hint), "{}", gated.said);

    let before = scene.packets();
    let done = &scene.host.json("web1", &["rollback", &clean, "--replace", "--paused"], 0)[0];
    assert_eq!(done["paused"], true, "{done}");
    scene.begin("--interval 200ms");
    scene.lines(JOURNAL, "\"held\"", 2);
    assert_eq!(scene.packets(), before, "nothing is sent unseen");
    scene.host.reach_again(&mut scene.guest);
    scene.host.script("web1", "xl unpause web1");
    scene.more_releases(3);
    scene.lines(PACKETS, "", before + 11);
    assert!(scene.guest.truth().unwrap().named("xmrig").next().is_none(), "the intruder is gone");
    scene.host.script("web1", "kill -TERM $(pgrep -xf 'varve --json gate.*')");
    let gated = scene.end();
    assert_eq!(gated.status, 0, "{}", gated.said);
}

#[test]
fn a_card_that_is_put_back_is_held_again() {
    let mut scene = Scene::new(POLICY);
    scene.begin("--interval 200ms");
    scene.more_releases(2);
    scene.host.script("web1", "xl network-detach web1 0");
    scene.host.script("web1", "xl network-attach web1 bridge=varvebr0 script=/run/lab/vif type=vif");
    scene.lines(JOURNAL, "\"extend\"", 1);
    let before = scene.packets();
    let up = "until busybox ifconfig eth0 10.9.0.2 netmask 255.255.255.0 up; do sleep 0.1; done 2>/dev/null";
    let address = "busybox ip addr add fd00:9::2/64 dev eth0";
    let send = format!("{up}; {address}; exec /init send eth0 20 10.9.0.1 fd00:9::1");
    scene.guest.spawn("again", 0, "/usr/bin/bash", &["-c", &send]).unwrap();
    scene.lines(PACKETS, "", before + 11);
    scene.host.script("web1", "kill -9 $(pgrep -xf 'varve --json gate.*')");
    scene.end();
    // Should the gate have held the guest just then.
    scene.host.script("web1", "xl unpause web1 || true");
    let (before, held) = (scene.packets(), scene.held());
    while scene.held() < held + 11 {}
    assert_eq!(scene.packets(), before, "the kernel goes on holding");
    scene.host.json("web1", &["gate", "web1", "--off"], 0);
    scene.lines(PACKETS, "", before + 11);
}

#[test]
fn the_selftest_passes_here() {
    let mut host = host();
    let checks = host.json("web1", &["gate", "--selftest"], 0);
    assert!(checks.len() > 8 && checks.last().unwrap()["passed"] == true, "{checks:?}");
    assert_eq!(host.script("web1", "ip -o link | grep -E 'vv65000|vif65000' || true; ip netns list"), "");
}
