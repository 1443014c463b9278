//! The same tests on a Xen host that is not the lab's: what `scripts/xen-tests` makes is run in the dom0 of one that knows nothing of
//! it. That is the lab's all the same, without what it has for tests.

use std::process::Command;
use std::time::Duration;

use varve_fixtures::Xen;

use super::host::{building, host_of};

/// One that does a bit of everything to a domain, which it destroys in the end.
const TEST: &str = "xen::what_happens_to_a_domain_under_a_capture_is_said";

/// A domain that only needs to be there.
const MINE: &str = "cat >/run/lab/mine.cfg <<END
name = 'mine'
type = 'pvh'
kernel = '/run/lab/guest/vmlinux'
memory = 96
END
xl create -q -p /run/lab/mine.cfg";

/// All that a test could leave: what is mounted, linked, attached, and running; and what there is of domains and files.
const STATE: &str = "cat /proc/self/mounts
ls /sys/class/net /run /run/varve /run/lab /var/log /tmp 2>/dev/null || true
losetup -a
xl list | cut -d ' ' -f 1
ls -l /proc/[0-9]*/exe >/dev/shm/running 2>/dev/null || true
grep -o '/[^/]* -> .*' /dev/shm/running | sort | uniq -c";

#[test]
fn the_tests_run_on_a_host_of_ones_own_and_leave_nothing() {
    let mut host = host_of(Xen::Bookworm);
    let folder = tempfile::tempdir().unwrap();
    let packed = folder.path().join("varve-tests");
    let building = building();
    let made =
        Command::new("scripts/xen-tests").arg(&packed).current_dir(env!("CARGO_MANIFEST_DIR")).status();
    assert!(made.unwrap().success());
    drop(building);
    let tar = folder.path().join("tar");
    let pack =
        Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(folder.path()).arg("varve-tests").status();
    assert!(pack.unwrap().success());

    host.script("mine", MINE);
    host.put("/run/packed", std::fs::read(&tar).unwrap());
    host.script("mine", "mkdir -p /srv; busybox tar -xf /run/packed -C /srv; rm /run/packed");
    let run = format!("/srv/varve-tests/run --exact {TEST} >/run/said 2>&1 </dev/null");
    let refused = host.script("mine", &format!("{run} || tail -n 20 /run/said"));
    assert!(refused.contains("this host has mine"), "{refused}");
    assert!(host.script("mine", "xl list").contains("mine"));
    host.script("mine", "xl destroy mine; ip link del varvebr0");
    let before = host.script("mine", STATE);

    host.patiently("mine", &format!("{run} || {{ cat /run/said; exit 1; }}"), Duration::from_secs(900));
    let said = host.script("mine", "rm /tmp/*; cat /run/said");
    assert!(said.contains("test result: ok. 1 passed"), "{said}");
    assert!(said.contains("SKIPPED: xen::releases"), "{said}");
    assert_eq!(host.script("mine", STATE), before, "all is as it was");

    let killed = format!(
        "{run} &
until xl list | grep -q fate; do sleep 1; done
pkill -KILL -f ^/srv/varve-tests/tests
! wait $!"
    );
    host.script("mine", &killed);
    assert_eq!(host.script("mine", STATE), before, "all is as it was");
}
