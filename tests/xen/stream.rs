//! Domains checkpointed by their own toolstack, `xl remus`, whose stream varve takes.

use varve_fixtures::{XenGuest, XenGuestConfig, XenGuestKind};

use super::host::{GUEST_MIB, Host, host};
use super::{from_proc, lists_agree};

const EVIDENCE: &str = "/run/evidence";

/// How often a capture of a stream is killed.
const KILLS: usize = 2;

/// Starts checkpoints. `exec`, so that the process is varve.
const BEGIN: &str = ": >/tmp/epochs
xl remus -F -n -d -i 300 -s '' $VARVE_VM 'echo $$ >/tmp/receiver
exec varve --json capture xen-stream:- 2>/tmp/epochs' >/tmp/said 2>&1 </dev/null &";

/// Waits until xl has seen that nobody takes its stream any more.
const ENDED: &str = "agent await 100 1 'resuming domain at primary' /tmp/said || { cat /tmp/said; exit 1; }
cat /tmp/epochs";

fn guest_of(host: &mut Host, name: &str, kind: XenGuestKind) -> XenGuest {
    host.guest_with(name, XenGuestConfig { kind, memory_mib: GUEST_MIB, ..XenGuestConfig::default() })
}

/// Waits for an epoch that was begun after this was called, and gives its number.
fn next_epoch(host: &mut Host, name: &str) -> u64 {
    // The next may have begun before.
    host.more_epochs(name, 2)
}

/// Ends checkpoints by a signal to varve; what that said.
fn end(host: &mut Host, name: &str, signal: &str) -> String {
    host.script(name, &format!("kill -{signal} $(cat /tmp/receiver)\n{ENDED}"))
}

/// An epoch during which nobody came or went, and its lists are the guest's.
fn an_epoch_agrees(host: &mut Host, guest: &mut XenGuest) {
    let name = guest.name().to_owned();
    let mut before = guest.truth().unwrap();
    for _ in 0..10 {
        let epoch = next_epoch(host, &name);
        let after = guest.truth().unwrap();
        if before.processes.iter().map(from_proc).eq(after.processes.iter().map(from_proc)) {
            lists_agree(host, &name, epoch, &after);
            return;
        }
        before = after;
    }
    panic!("processes come and go all the time");
}

fn a_domain_is_followed_and_put_back(name: &str, kind: XenGuestKind) {
    let mut host = host();
    let mut guest = guest_of(&mut host, name, kind);
    guest.write_file(EVIDENCE, "early").unwrap();
    host.script(name, BEGIN);
    let early = next_epoch(&mut host, name);
    an_epoch_agrees(&mut host, &mut guest);
    guest.write_file(EVIDENCE, "late").unwrap();
    let late = next_epoch(&mut host, name);
    let said = end(&mut host, name, "TERM");
    assert!(said.contains("\"complete\":true"), "{said}");
    assert_eq!(guest.read_file(EVIDENCE).unwrap(), b"late\n", "the guest runs on");

    let epochs = host.json(name, &["epochs"], 0);
    assert!(epochs.iter().all(|epoch| epoch["restorable"] == true && epoch["source"] == "xen-stream:-"));
    let changed = |epoch: u64| epochs[epoch as usize]["pages_changed"].as_u64().unwrap();
    assert!(changed(0) > 10_000 && (1..=late).all(|epoch| changed(epoch) < 10_000), "{epochs:?}");
    host.json(name, &["check", "--read-data"], 0);

    for (epoch, expected) in [(early, "early\n"), (late, "late\n")] {
        host.json(name, &["rollback", &epoch.to_string(), "--replace"], 0);
        host.reach_again(&mut guest);
        assert_eq!(guest.read_file(EVIDENCE).unwrap(), expected.as_bytes());
    }
    let pid = guest.spawn("later", 33, "/usr/bin/sleep", &["infinity"]).unwrap();
    assert_eq!(guest.truth().unwrap().process(pid).unwrap().comm, "later", "it can do new things");
    // A file of the toolstack's own is the same to varve as its stream, and as an image.
    host.script(name, "xl save -c $VARVE_VM /tmp/save");
    let saved = host.json(name, &["capture", "xen-stream:/tmp/save"], 0);
    assert_eq!(saved[0]["epoch"], epochs.len(), "{saved:?}");
    let imported = host.json(name, &["import", "/tmp/save"], 0);
    assert_eq!(imported[0]["pages_changed"], 0, "{imported:?}");
}

#[test]
fn a_paravirtualised_domain_is_followed_by_its_checkpoints_and_put_back() {
    a_domain_is_followed_and_put_back("pv", XenGuestKind::Pv);
}

#[test]
fn a_domain_is_followed_by_its_checkpoints_and_put_back() {
    a_domain_is_followed_and_put_back("remus", XenGuestKind::Pvh);
}

#[test]
fn a_paravirtualised_domain_is_refused_and_the_way_to_capture_it_is_said() {
    let mut host = host();
    let mut guest = guest_of(&mut host, "pv", XenGuestKind::Pv);
    let refused = host.varve("pv", &["capture", "xen:pv", "--epochs", "1"]);
    assert_eq!(refused.status, Some(1));
    assert!(refused.output.contains("domain pv is paravirtualised (PV)"), "{}", refused.output);
    assert!(refused.output.contains("the source xen-stream"), "{}", refused.output);

    // Whoever cannot take the stream does not let it begin.
    let failed = host.script(
        "pv",
        "xl remus -F -n -d -s '' pv 'varve -r /nowhere capture xen-stream:-' 2>&1 || echo failed",
    );
    assert!(failed.contains("/nowhere") && failed.contains("failed"), "{failed}");
    assert!(!failed.contains("resuming domain"), "it was not suspended: {failed}");
    assert!(guest.truth().is_ok());
}

#[test]
fn whoever_dies_of_varve_and_xl_the_epochs_stay_and_the_domain_runs_on() {
    let mut host = host();
    let mut guest = guest_of(&mut host, "mortal", XenGuestKind::Pvh);
    guest.spawn("workload", 1000, "/usr/bin/python3", &["/usr/lib/varve/workload.py", "2", "8"]).unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..KILLS {
        host.script("mortal", BEGIN);
        next_epoch(&mut host, "mortal");
        let said = end(&mut host, "mortal", "KILL");
        // The last line may be cut off.
        let whole = said.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let ids: Vec<String> = whole.filter_map(|line| Some(line["id"].as_str()?.to_owned())).collect();
        assert!(ids.len() > 1, "round {round}: {said}");
        acknowledged.extend(ids);
        assert!(guest.truth().is_ok(), "round {round}: the guest runs on");
    }
    // The other way round; the domain may then stay suspended.
    host.script("mortal", BEGIN);
    next_epoch(&mut host, "mortal");
    let said = host.script(
        "mortal",
        "kill -KILL $(pgrep -x xl)\nagent await 100 1 summary /tmp/epochs || true\ncat /tmp/epochs",
    );
    assert!(said.contains("the domain may stand still"), "{said}");
    host.json("mortal", &["rollback", "latest", "--replace"], 0);
    host.reach_again(&mut guest);
    assert!(guest.truth().is_ok(), "the guest runs on");
    let kept = host.json("mortal", &["epochs"], 0);
    let kept: Vec<&str> = kept.iter().map(|epoch| epoch["id"].as_str().unwrap()).collect();
    for id in &acknowledged {
        assert!(kept.contains(&id.as_str()), "epoch {id} was acknowledged and is lost");
    }
    host.json("mortal", &["check", "--read-data"], 0);
}
