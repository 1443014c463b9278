//! What others do to a domain while it is captured: it is saved, and made smaller.

use std::time::{Duration, Instant};

use serde_json::Value;
use varve_fixtures::XenGuest;

use super::host::host;

const EVIDENCE: &str = "/run/evidence";

/// Saves the domain and lets it run on, which ends the recording of what it writes to.
const SAVE: &str =
    "xl save -c $VARVE_VM /tmp/save >/tmp/saved 2>&1 || { cat /tmp/saved; exit 1; }\nrm /tmp/save";

#[test]
fn a_domain_is_saved_and_gives_memory_back_and_the_epochs_after_that_are_right() {
    let name = "changes";
    let mut host = host();
    let mut guest = host.guest(name);
    host.begin_capture(name, "--interval 300ms --restore-point-every 3", 2);

    host.script(name, SAVE);
    let pid = guest.spawn("later", 33, "/usr/bin/sleep", &["infinity"]).unwrap();
    host.more_epochs(name, 2);
    let said = host.script(name, "cat /tmp/said");
    for remark in ["the domain is being saved", "somebody else ended the recording"] {
        assert!(said.contains(remark), "{said}");
    }
    let listed = host.json(name, &["show", "pslist"], 0);
    assert!(listed.iter().any(|row| row["pid"] == pid && row["comm"] == "later"), "{listed:?}");

    let before = memory_kib(&mut guest);
    host.script(name, "xl mem-set $VARVE_VM 120");
    let asked = Instant::now();
    while memory_kib(&mut guest) > before - 20 * 1024 {
        assert!(asked.elapsed() < Duration::from_secs(120), "it gives no memory back");
    }
    guest.write_file(EVIDENCE, "with less memory").unwrap();
    // Pages that are gone may stay mapped for eight epochs.
    host.more_epochs(name, 10);
    host.end_capture(name);
    guest.write_file(EVIDENCE, "later").unwrap();
    let epochs = host.json(name, &["epochs"], 0);
    let pages = |epoch: Option<&Value>| epoch.unwrap()["pages"].as_u64().unwrap();
    let (first, now) = (pages(epochs.first()), pages(epochs.last()));
    assert!(now + 20 * 256 <= first, "what it gave back is in no epoch: {first} pages, then {now}");
    let last = epochs.iter().rposition(|epoch| epoch["restorable"] == true).unwrap();
    host.json(name, &["rollback", &last.to_string(), "--replace"], 0);
    host.reach_again(&mut guest);
    assert_eq!(guest.read_file(EVIDENCE).unwrap(), b"with less memory\n");
    assert!(guest.truth().unwrap().process(pid).is_some(), "it runs on");
}

/// What the guest's kernel has to give to anybody.
fn memory_kib(guest: &mut XenGuest) -> u64 {
    let text = String::from_utf8(guest.read_file("/proc/meminfo").unwrap()).unwrap();
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
    total.trim().trim_end_matches(" kB").parse().unwrap()
}
