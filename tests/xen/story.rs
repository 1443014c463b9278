//! What varve is for, from end to end: an intruder comes into a domain, the history says when, and the domain is put back to
//! before.

use varve_fixtures::plant::plant;

use super::host::{Host, host};

const EVIDENCE: &str = "/run/evidence";

/// Opens a connection from dom0 to what counts in the guest, and asks there whenever it is told to.
const CONNECT: &str = "mkfifo /tmp/ask
{
    until exec 3<>/dev/tcp/10.9.0.2/7078; do sleep 0.1; done
    exec 4<>/tmp/ask
    while read -r _ <&4; do echo >&3; read -r count <&3; echo $count >>/tmp/told; done
} >/tmp/asking 2>&1 </dev/null &
: >>/tmp/told";

/// Asks on that connection.
const ASK: &str = "next=$(($(wc -l </tmp/told) + 1))
echo >/tmp/ask
agent await 60 $next '' /tmp/told >/dev/null || { cat /tmp/asking; exit 1; }
tail -n 1 /tmp/told";

/// Asks on a connection of its own.
const ASK_ANEW: &str = "exec 3<>/dev/tcp/10.9.0.2/7078; echo >&3; read -r count <&3; echo $count";

/// How far the guest has counted.
fn count(host: &mut Host, ask: &str) -> u64 {
    host.script("story", ask).trim().parse().unwrap()
}

#[test]
fn a_domain_is_put_back_to_before_the_intruder_came() {
    let mut host = host();
    let mut guest = host.guest_at("story", "10.9.0.2");
    guest.spawn("count", 1000, "/init", &["count"]).unwrap();
    host.script("story", CONNECT);
    let at_first = count(&mut host, ASK);
    let capture = ["capture", "xen:story", "--epochs", "2", "--quiesce", "suspend", "--interval", "500ms"];
    guest.write_file(EVIDENCE, "before").unwrap();
    host.json("story", &capture, 0);

    let hook = plant("syscall_table").unwrap().apply(&mut guest).unwrap();
    let hidden = plant("task_hidden").unwrap().apply(&mut guest).unwrap();
    guest.write_file(EVIDENCE, "after").unwrap();
    let intruder = hidden.expected().pid.unwrap();
    assert!(guest.truth().unwrap().process(intruder).is_none(), "the guest does not show the process");
    host.json("story", &capture, 0);

    let lines = host.json("story", &["first-bad"], 4);
    let answer = lines.last().unwrap();
    assert_eq!((&answer["first_bad"], &answer["last_clean"]), (&2.into(), &1.into()), "{lines:?}");
    assert_eq!(answer["complete"], true);
    let finding = |scan: &str| lines.iter().find(|line| line["scan"] == scan).unwrap().to_string();
    assert!(finding("syscall_table").contains(&hook.expected().object), "{lines:?}");
    assert!(finding("hidden_task").contains(&intruder.to_string()), "{lines:?}");

    let at_last = count(&mut host, ASK_ANEW);
    host.json("story", &["rollback", "1", "--replace"], 0);
    host.reach_again(&mut guest);
    let again = count(&mut host, ASK);
    assert!(
        at_first < again && again < at_last,
        "the connection lives, and the guest counts on from the epoch: {at_first}, {again}, {at_last}"
    );
    assert_eq!(guest.read_file(EVIDENCE).unwrap(), b"before\n");
    let pid = guest.spawn("later", 33, "/usr/bin/sleep", &["infinity"]).unwrap();
    let truth = guest.truth().unwrap();
    assert_eq!(truth.process(pid).unwrap().comm, "later", "it runs on and can do new things");
    assert_eq!(truth.process(intruder).unwrap().comm, hidden.expected().object, "nothing is hidden any more");
    host.json("story", &capture, 0);
    host.json("story", &["scan"], 0);
}
