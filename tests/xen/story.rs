//! What varve is for, from end to end: an intruder comes into a domain, the history says when, and the domain is put back to
//! before.

use varve_fixtures::plant::plant;

use super::host::host;

const EVIDENCE: &str = "/run/evidence";

#[test]
fn a_domain_is_put_back_to_before_the_intruder_came() {
    let mut host = host();
    let mut guest = host.guest("story");
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

    host.json("story", &["rollback", "1", "--replace"], 0);
    host.reach_again(&mut guest);
    assert_eq!(guest.read_file(EVIDENCE).unwrap(), b"before\n");
    let pid = guest.spawn("later", 33, "/usr/bin/sleep", &["infinity"]).unwrap();
    let truth = guest.truth().unwrap();
    assert_eq!(truth.process(pid).unwrap().comm, "later", "it runs on and can do new things");
    assert_eq!(truth.process(intruder).unwrap().comm, hidden.expected().object, "nothing is hidden any more");
    host.json("story", &capture, 0);
    host.json("story", &["scan"], 0);
}
