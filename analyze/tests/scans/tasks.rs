//! `process_policy` and `hidden_task`.

use super::kernel::{Healthy, make_ready, task};
use super::synthetic::Kernel;
use super::synthetic::objects::Process;
use super::{found, objects, scan};

/// `EXIT_DEAD`, `EXIT_ZOMBIE`, `PF_EXITING`.
const DEAD: u64 = 0x10;
const ZOMBIE: u64 = 0x20;
const EXITING: u64 = 0x4;

/// Takes a node out of its list, as an intruder would: the node itself still points to its neighbours.
pub(crate) fn unlink(kernel: &mut Kernel, node: u64) {
    let (next, previous) = (kernel.read_u64(node), kernel.read_u64(node + 8));
    kernel.write(previous, &next.to_le_bytes());
    kernel.write(next + 8, &previous.to_le_bytes());
}

fn member(kernel: &Kernel, task: u64, name: &str) -> u64 {
    task + kernel.types.member("task_struct", name).0
}

/// Takes a number from its task.
fn remove_pid(kernel: &mut Kernel, task: u64) {
    let node = member(kernel, task, "pid_links");
    let pids = (0..64).filter_map(|number| {
        let slots = kernel.types.member("xa_node", "slots").0;
        let top = kernel.read_u64(
            kernel.symbol("init_pid_ns") + kernel.types.member("pid_namespace", "idr.idr_rt.xa_head").0,
        ) - 2;
        let bottom = kernel.read_u64(top + slots) - 2;
        let pid = kernel.read_u64(bottom + slots + number * 8);
        (pid != 0).then_some(pid + kernel.types.member("pid", "tasks").0)
    });
    let heads: Vec<u64> = pids.filter(|head| kernel.read_u64(*head) == node).collect();
    assert_eq!(heads.len(), 1);
    kernel.write(heads[0], &0u64.to_le_bytes());
}

fn object(start_ns: u64, pid: u32, task: u64) -> String {
    format!("task:{start_ns}:{pid}:{task:#x}")
}

#[test]
fn a_process_unlinked_from_the_task_list_is_hidden() {
    let mut healthy = Healthy::new();
    let shell = healthy.shell;
    healthy.kernel.finish();
    let node = member(&healthy.kernel, shell, "tasks");
    unlink(&mut healthy.kernel, node);
    let report = scan("hidden_task", &healthy.kernel.memory, None, "", &[]);
    assert_eq!(objects(&report), [object(5_000_000_000, 7, shell)]);
    let finding = &report.findings[0];
    assert_eq!(
        finding.title,
        "Process sh (PID 7) is hidden: it is missing from the task list and known to its process's thread list, the PID table and its parent's children"
    );
    let neighbour = &finding.evidence[0];
    assert_eq!(neighbour.before, Some(node.to_le_bytes().to_vec()), "its neighbour led to it");
    assert_eq!(neighbour.gva.unwrap().0, healthy.kernel.read_u64(node + 8));
}

#[test]
fn a_process_without_a_number_is_hidden() {
    let mut healthy = Healthy::new();
    healthy.kernel.finish();
    remove_pid(&mut healthy.kernel, healthy.shell);
    assert_eq!(found("hidden_task", &healthy.kernel.memory, None), [object(5_000_000_000, 7, healthy.shell)]);
}

#[test]
fn a_process_that_only_the_run_queue_knows_is_hidden() {
    let mut healthy = Healthy::new();
    let (init, shell) = (healthy.init, healthy.shell);
    let mm = healthy.kernel.allocate(64);
    let miner = Process { pid: 20, comm: b"miner", parent: init, mm, ..Process::default() };
    let miner = task(&mut healthy.kernel, &miner);
    healthy.kernel.finish();
    for list in ["tasks", "sibling"] {
        let node = member(&healthy.kernel, miner, list);
        unlink(&mut healthy.kernel, node);
    }
    remove_pid(&mut healthy.kernel, miner);
    assert_eq!(found("hidden_task", &healthy.kernel.memory, None), [""; 0], "nothing leads to it");
    make_ready(&mut healthy.kernel, miner);
    make_ready(&mut healthy.kernel, shell);
    assert_eq!(found("hidden_task", &healthy.kernel.memory, None), [object(0, 20, miner)]);
    let denied = scan("process_policy", &healthy.kernel.memory, None, "[process]\ndeny = [\"min?r\"]", &[]);
    assert_eq!(objects(&denied), [object(0, 20, miner)]);
}

#[test]
fn a_thread_unlinked_from_its_process_is_hidden() {
    let mut healthy = Healthy::new();
    healthy.kernel.finish();
    let node = member(&healthy.kernel, healthy.thread, "thread_node");
    unlink(&mut healthy.kernel, node);
    assert_eq!(found("hidden_task", &healthy.kernel.memory, None), [object(0, 8, healthy.thread)]);
}

#[test]
fn a_task_that_the_kernel_has_released_is_not_hidden() {
    let mut healthy = Healthy::new();
    let (shell, thread) = (healthy.shell, healthy.thread);
    healthy.kernel.finish();
    let node = member(&healthy.kernel, thread, "thread_node");
    unlink(&mut healthy.kernel, node);
    remove_pid(&mut healthy.kernel, thread);
    make_ready(&mut healthy.kernel, thread);
    let kernel = &mut healthy.kernel;
    kernel.set(thread, "task_struct", "exit_state", DEAD);
    kernel.set(thread, "task_struct", "flags", EXITING);
    kernel.set(thread, "task_struct", "mm", 0);
    assert_eq!(found("hidden_task", &kernel.memory, None), [object(0, 8, thread)], "it has signal handlers");
    kernel.set(thread, "task_struct", "sighand", 0);
    assert_eq!(found("hidden_task", &kernel.memory, None), [""; 0]);
    let denied = scan("process_policy", &kernel.memory, None, "[process]\ndeny = [\"worker\"]", &[]);
    assert_eq!(objects(&denied), [""; 0]);
    kernel.set(shell, "task_struct", "exit_state", ZOMBIE);
    let denied = scan("process_policy", &kernel.memory, None, "[process]\ndeny = [\"sh\"]", &[]);
    assert_eq!(objects(&denied), [object(5_000_000_000, 7, shell)], "a zombie counts");
}

#[test]
fn a_task_half_way_into_the_lists_leaves_the_scan_incomplete() {
    let mut healthy = Healthy::new();
    let lock = healthy.kernel.symbol("tasklist_lock");
    healthy.kernel.finish();
    remove_pid(&mut healthy.kernel, healthy.shell);
    healthy.kernel.write(lock, &[0xff]);
    let report = scan("hidden_task", &healthy.kernel.memory, None, "", &[]);
    assert!(!report.complete && report.findings.is_empty());
    let node = member(&healthy.kernel, healthy.init, "tasks");
    unlink(&mut healthy.kernel, node);
    let report = scan("hidden_task", &healthy.kernel.memory, None, "", &[]);
    let found: Vec<&str> = report.findings.iter().map(|finding| finding.object.as_str()).collect();
    assert_eq!(found, [object(0, 1, healthy.init)], "the lock does not excuse everything");
}

#[test]
fn a_list_that_breaks_off_is_never_clean() {
    let mut healthy = Healthy::new();
    healthy.kernel.finish();
    let node = member(&healthy.kernel, healthy.kthread, "tasks");
    healthy.kernel.write(node, &0xdead_0000_0000_0100u64.to_le_bytes());
    for name in ["hidden_task", "process_policy"] {
        let report = scan(name, &healthy.kernel.memory, None, "[process]\ndeny = [\"sh\"]", &[]);
        assert!(!report.complete, "{name}");
        assert_eq!(report.findings.len(), usize::from(name == "process_policy"), "{name}");
    }
}

#[test]
fn allow_lists_are_for_processes_that_run_programs() {
    let mut healthy = Healthy::new();
    let init_task = healthy.kernel.symbol("init_task");
    let forked = Process { pid: 30, comm: b"kworker/u4:0", parent: init_task, ..Process::default() };
    task(&mut healthy.kernel, &forked);
    let mm = healthy.kernel.allocate(64);
    let flags = 0x20_0000;
    let disguised =
        Process { pid: 31, comm: b"kworker/1:1", flags, parent: healthy.init, mm, ..Process::default() };
    let disguised = task(&mut healthy.kernel, &disguised);
    let borrows =
        Process { pid: 32, comm: b"vhost-1", flags, parent: healthy.kthread, mm, ..Process::default() };
    task(&mut healthy.kernel, &borrows);
    healthy.kernel.finish();
    let allowed = |list: &str| {
        let policy = format!("[process]\nallow = [{list}]");
        objects(&scan("process_policy", &healthy.kernel.memory, None, &policy, &[]))
    };
    let disguised = object(0, 31, disguised);
    assert_eq!(
        allowed("\"init\", \"sh\""),
        std::slice::from_ref(&disguised),
        "a flag alone makes no kernel thread"
    );
    assert_eq!(allowed("\"init\""), [object(5_000_000_000, 7, healthy.shell), disguised]);
    assert_eq!(allowed("\"*\""), [""; 0]);
}

#[test]
fn guest_names_cannot_forge_a_report() {
    let mut healthy = Healthy::new();
    let evil = Process { pid: 40, comm: b"\x1b[2Jx\n\xff", parent: healthy.init, ..Process::default() };
    task(&mut healthy.kernel, &evil);
    healthy.kernel.finish();
    let report = scan("process_policy", &healthy.kernel.memory, None, "[process]\ndeny = [\"*x*\"]", &[]);
    assert_eq!(
        report.findings[0].title,
        r#"Process \x1b[2Jx\x0a\xff (PID 40) is denied by the policy: "*x*""#
    );
    assert_eq!(report.findings[0].evidence[0].after.as_deref(), Some(b"\x1b[2Jx\n\xff".as_slice()));
}
