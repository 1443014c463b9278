//! Domains of a real Xen host, captured from its dom0.

mod changes;
mod disks;
mod exact;
mod gate;
mod host;
mod hvm;
mod moved;
mod own;
mod pauses;
mod plants;
mod quarantine;
mod releases;
mod story;
mod stream;
mod trace;

use serde_json::Value;
use varve_fixtures::{Process, Truth, XenGuest};

use crate::support::times;
use host::{Host, host};

/// What `/proc` and the views both tell of a process.
type Row = (u32, u32, String, u32, u32);

fn from_proc(process: &Process) -> Row {
    (process.pid, process.ppid, process.comm.clone(), process.uid[0], process.gid[0])
}

fn from_view(row: &Value) -> Row {
    let number = |key: &str| u32::try_from(row[key].as_u64().unwrap()).unwrap();
    (number("pid"), number("ppid"), row["comm"].as_str().unwrap().to_owned(), number("uid"), number("gid"))
}

/// Captures one epoch while nobody comes or goes in the guest; its number, and the guest's own account.
fn undisturbed_epoch(host: &mut Host, guest: &mut XenGuest, arguments: &[&str]) -> (u64, Truth) {
    let source = format!("xen:{}", guest.name());
    let rows = |truth: &Truth| truth.processes.iter().map(from_proc).collect::<Vec<_>>();
    for _ in 0..10 {
        let before = guest.truth().unwrap();
        let lines = host.json(guest.name(), &[&["capture", &source, "--epochs", "1"], arguments].concat(), 0);
        let after = guest.truth().unwrap();
        if rows(&before) == rows(&after) {
            return (lines[0]["epoch"].as_u64().unwrap(), after);
        }
    }
    panic!("processes come and go all the time");
}

/// Holds the lists of an epoch against the guest's own.
fn lists_agree(host: &mut Host, guest: &str, epoch: u64, truth: &Truth) {
    let epoch = epoch.to_string();
    let mut listed: Vec<Row> =
        host.json(guest, &["show", "pslist", "--epoch", &epoch], 0).iter().map(from_view).collect();
    listed.sort();
    let mut expected: Vec<Row> = truth.processes.iter().map(from_proc).collect();
    expected.sort();
    assert_eq!(listed, expected, "pslist of epoch {epoch}");
    let modules: Vec<String> = host
        .json(guest, &["show", "lsmod", "--epoch", &epoch], 0)
        .iter()
        .map(|row| row["name"].as_str().unwrap().to_owned())
        .collect();
    assert!(!modules.is_empty());
    assert!(modules.iter().eq(truth.modules.iter().map(|module| &module.name)), "{modules:?}");
}

#[test]
fn a_domain_is_captured_paused_and_suspended_and_its_lists_are_its_own() {
    let mut host = host();
    let mut guest = host.guest("lists");
    guest.spawn("xmrig", 33, "/usr/bin/sleep", &["infinity"]).unwrap();
    for arguments in [&[][..], &["--quiesce", "suspend"], &["--restore-point-every", "2"]] {
        let (epoch, truth) = undisturbed_epoch(&mut host, &mut guest, arguments);
        lists_agree(&mut host, "lists", epoch, &truth);
    }
    let epochs = host.json("lists", &["epochs"], 0);
    assert!(epochs.iter().all(|epoch| epoch["source"] == "xen:lists"), "{epochs:?}");
    host.script("lists", "printf '[process]\\ndeny = [\"xmrig\"]\\n' > /tmp/policy.toml");
    let found = host.json("lists", &["first-bad", "--policy", "/tmp/policy.toml"], 4);
    assert_eq!(found.last().unwrap()["first_bad"], 0, "{found:?}");
    assert!(guest.truth().unwrap().named("xmrig").next().is_some(), "the guest runs on");
}

#[test]
fn epochs_follow_each_other_under_load_and_the_pauses_are_split() {
    let mut host = host();
    let mut guest = host.guest("load");
    guest.spawn("workload", 1000, "/usr/bin/python3", &["/usr/lib/varve/workload.py", "4", "16"]).unwrap();
    let arguments = ["capture", "xen:load", "--epochs", "30", "--interval", "200ms"];
    let lines = host.json("load", &arguments, 0);
    let epochs: Vec<&Value> = lines.iter().filter(|line| line["type"] == "epoch").collect();
    assert_eq!(epochs.len(), 30);
    for (number, epoch) in epochs.iter().enumerate() {
        assert_eq!(epoch["epoch"], number);
        let pause = &epoch["pause_us"];
        let parts = ["quiesce", "output", "dirty", "copy", "scan", "registers", "disks", "resume"]
            .map(|part| pause[part].as_u64().unwrap());
        let total = pause["total"].as_u64().unwrap();
        assert!(total.abs_diff(parts.iter().sum::<u64>()) < 10, "{pause}");
        assert!(number == 0 || epoch["pages_changed"].as_u64().unwrap() > 10, "the workload writes: {epoch}");
    }
    println!("pauses under load: {}", lines.last().unwrap()["pause_us"]);
    host.json("load", &["check", "--read-data"], 0);
    assert!(guest.truth().is_ok());
}

#[test]
fn a_capture_that_is_killed_loses_no_epoch_and_the_next_lets_the_domain_go() {
    let kills = times("VARVE_XEN_KILLS", 50);
    let mut host = host();
    let mut guest = host.guest("killed");
    guest.spawn("workload", 1000, "/usr/bin/python3", &["/usr/lib/varve/workload.py", "2", "8"]).unwrap();
    let mut acknowledged: Vec<String> = Vec::new();
    let mut seed = 0x9e37_79b9_u64;
    for round in 0..kills {
        // Pauses and suspensions in turn, cut off somewhere between the first epoch and the tenth; one in three before that.
        let hold = if round % 2 == 0 { "pause" } else { "suspend" };
        let begun = round % 3 != 2;
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let after_ms = seed >> 33 & 0x7ff;
        host.script("killed", &format!(
            "varve --json capture xen:killed --interval 50ms --quiesce {hold} >/tmp/killed 2>/tmp/killed.err </dev/null &\n\
             echo $! >/tmp/capture\n\
             {begun} || exit 0\n\
             agent await 200 1 '' /tmp/killed || {{ cat /tmp/killed.err; exit 1; }}",
        ));
        if begun {
            assert!(guest.read_file("/proc/uptime").is_ok(), "round {round}: it runs again");
        }
        let printed = host.script(
            "killed",
            &format!(
                "sleep {}.{:03}\n\
                 kill -9 $(cat /tmp/capture)\n\
                 while [ -e /proc/$(cat /tmp/capture)/exe ]; do sleep 0.05; done\n\
                 cat /tmp/killed",
                after_ms / 1000,
                after_ms % 1000
            ),
        );
        // The last line may be cut off.
        let whole = printed.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let ids: Vec<String> = whole.filter_map(|line| Some(line["id"].as_str()?.to_owned())).collect();
        assert!(!begun || !ids.is_empty(), "round {round}: {}", host.script("killed", "cat /tmp/killed.err"));
        println!("round {round}: {hold}, killed after {after_ms} ms, {} epochs", ids.len());
        acknowledged.extend(ids);
    }
    let lines = host.json("killed", &["capture", "xen:killed", "--epochs", "1"], 0);
    acknowledged.push(lines[0]["id"].as_str().unwrap().to_owned());
    assert!(guest.truth().is_ok(), "the guest answers");
    let domain = format!("/local/domain/{}", host.script("killed", "xl domid killed").trim());
    // What is left by one that is killed just before it asks the domain to suspend itself, or when it has just taken that back.
    let about_to_ask = "S-";
    host.script("killed", "xl pause killed");
    host.leave_journal("killed", about_to_ask);
    let refused = host.varve("killed", &["capture", "xen:killed", "--epochs", "1"]);
    assert!(refused.status == Some(1) && refused.output.contains("unpause it"), "{}", refused.output);
    // The domain does not notice that it is asked.
    host.script("killed", &format!("xenstore-write {domain}/control/shutdown suspend"));
    host.json("killed", &["capture", "xen:killed", "--epochs", "1"], 0);
    host.script("killed", "xl unpause killed");
    host.leave_journal("killed", about_to_ask);
    host.json("killed", &["capture", "xen:killed", "--epochs", "1"], 0);
    let asked = host.script("killed", &format!("xenstore-read {domain}/control/shutdown"));
    assert_eq!(asked.trim(), "", "nobody asks");
    assert!(guest.truth().is_ok(), "the guest answers");
    let kept = host.json("killed", &["epochs"], 0);
    let kept: Vec<&str> = kept.iter().map(|epoch| epoch["id"].as_str().unwrap()).collect();
    for id in &acknowledged {
        assert!(kept.contains(&id.as_str()), "epoch {id} was acknowledged and is lost");
    }
    host.json("killed", &["check", "--read-data"], 0);
    assert_eq!(host.script("killed", "ls /run/varve").trim(), "", "nothing is left to undo");
}

#[test]
fn a_domain_is_started_again_from_an_epoch_in_which_it_was_suspended() {
    let mut host = host();
    let mut guest = host.guest("again");
    guest.write_file("/run/evidence", "of the first epoch").unwrap();
    host.json("again", &["capture", "xen:again", "--epochs", "2", "--restore-point-every", "2"], 0);
    guest.write_file("/run/evidence", "of later").unwrap();
    let restorable = host.json("again", &["epochs"], 0);
    assert_eq!(restorable.iter().map(|epoch| epoch["restorable"] == true).collect::<Vec<_>>(), [true, false]);
    let refused = host.varve("again", &["export", "1", "--format", "xl-save", "-o", "/tmp/refused"]);
    assert_eq!(refused.status, Some(1));
    assert!(refused.output.contains("it was paused, not suspended"), "{}", refused.output);

    host.json("again", &["export", "0", "--format", "xl-save", "-o", "/tmp/save"], 0);
    host.script("again", "xl destroy again\nxl restore -p /tmp/save");
    host.reach_again(&mut guest);
    host.script("again", "xl unpause again");
    assert_eq!(guest.read_file("/run/evidence").unwrap(), b"of the first epoch\n");
    let pid = guest.spawn("later", 33, "/usr/bin/sleep", &["infinity"]).unwrap();
    assert_eq!(
        guest.truth().unwrap().process(pid).unwrap().comm,
        "later",
        "it runs on and can do new things"
    );
    // It is a domain like any other: it can be captured again, beside the history before.
    let (epoch, truth) = undisturbed_epoch(&mut host, &mut guest, &["--quiesce", "suspend"]);
    lists_agree(&mut host, "again", epoch, &truth);
}

#[test]
fn a_domain_is_rolled_back_and_a_twin_is_started_beside_it() {
    let mut host = host();
    let mut guest = host.guest("back");
    guest.write_file("/run/evidence", "of the first epoch").unwrap();
    let capture = ["capture", "xen:back", "--epochs", "2", "--restore-point-every", "2"];
    let hook = "echo $VARVE_VM is; xl list | grep back | wc -l";
    let captured = host.varve("back", &[&capture[..], &["--disk-snapshot", hook]].concat());
    assert_eq!(captured.status, Some(0), "{}", captured.output);
    guest.write_file("/run/evidence", "of later").unwrap();
    let snapshots = host.json("back", &["epochs"], 0);
    assert_eq!(
        snapshots.iter().map(|epoch| epoch["disk_snapshot"].as_str()).collect::<Vec<_>>(),
        [Some("back is\n1"), None],
        "{}",
        captured.output
    );

    let before = host.script("back", "xl domid back");
    for (arguments, reason) in [
        (&["rollback", "0"][..], "there is a domain \"back\" already"),
        (&["rollback", "1", "--replace"][..], "it was paused, not suspended"),
        (&["rollback", "0", "--name", "12"][..], "is no name for a domain"),
    ] {
        let refused = host.varve("back", arguments);
        assert_eq!(refused.status, Some(1), "{}", refused.output);
        assert!(refused.output.contains(reason), "{}", refused.output);
    }
    let tried = &host.json("back", &["rollback", "0", "--replace", "--dry-run"], 0)[0];
    assert_eq!(tried["replaced"].to_string(), before.trim());
    assert_eq!((&tried["domid"], &tried["dry_run"]), (&Value::Null, &true.into()));
    assert_eq!(host.script("back", "xl domid back"), before, "nothing has changed so far");
    assert_eq!(guest.read_file("/run/evidence").unwrap(), b"of later\n");

    let done = &host.json("back", &["rollback", "0", "--replace"], 0)[0];
    assert_eq!(done["domid"].to_string(), host.script("back", "xl domid back").trim());
    assert_ne!(done["domid"].to_string(), before.trim());
    host.reach_again(&mut guest);
    assert_eq!(guest.read_file("/run/evidence").unwrap(), b"of the first epoch\n");
    let pid = guest.spawn("later", 33, "/usr/bin/sleep", &["infinity"]).unwrap();
    assert_eq!(
        guest.truth().unwrap().process(pid).unwrap().comm,
        "later",
        "it runs on and can do new things"
    );

    let twin = &host.json("back", &["rollback", "0", "--name", "twin", "--paused"], 0)[0];
    assert_eq!((&twin["domain"], &twin["replaced"]), (&"twin".into(), &Value::Null));
    assert_ne!(twin["uuid"], done["uuid"]);
    let listed = host.script("back", "xl list");
    let twin = listed.lines().find(|line| line.starts_with("twin ")).unwrap();
    assert!(twin.contains("--p---"), "{listed}");
    assert!(listed.lines().any(|line| line.starts_with("back ")), "{listed}");
    host.script("back", "xl destroy twin");
}

#[test]
fn what_happens_to_a_domain_under_a_capture_is_said() {
    let mut host = host();
    host.guest("fate");
    let missing = host.varve("fate", &["capture", "xen:nobody", "--epochs", "1"]);
    assert_eq!(missing.status, Some(1));
    assert!(missing.output.contains("there is no domain \"nobody\": `xl list`"), "{}", missing.output);
    let capture = "varve capture xen:fate --interval 100ms >/tmp/fate 2>&1";
    let started = "agent await 200 1 'epoch 1:' /tmp/fate || true";
    let seen = host.script("fate", &format!(
        "{capture} &\n{started}\nxl rename fate other\nsleep 1\nxl pause other\nsleep 1\nxl unpause other\nsleep 1\n\
         xl destroy other\nwait $! || echo ended with $?\ncat /tmp/fate"
    ));
    assert!(seen.contains("ended with 1"), "{seen}");
    assert!(seen.contains("was renamed from \"fate\" to \"other\""), "{seen}");
    assert!(seen.contains("stood still already (paused), and stays so"), "{seen}");
    assert!(seen.contains("the guest is gone: domain") && seen.contains("was destroyed"), "{seen}");
    assert!(!host.script("fate", "xl list").contains("(null)"), "no mapping keeps the dead domain");
}
