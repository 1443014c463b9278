//! `process_policy`: processes that the VM's owner does not allow.
//!
//! The deny list applies to every thread's own name (`task_struct.comm`), the kernel's threads included: what is denied
//! must not run under any guise. The allow list applies to processes, by the name of their first thread, because programs
//! name their other threads as they please; threads of the kernel need not be on it.
//!
//! Tasks are taken from every list the kernel has them in, so that one that was unlinked from some is still seen. A
//! process that has exited and waits for its parent to notice (a zombie) counts: it has run. One that is gone from all
//! lists, and whose `task_struct` merely lingers, does not.

use super::census::Census;
use super::tasks::{is_departed, task_object};
use super::{Scan, ScanInput, evidence};
use crate::finding::{Finding, Report, Severity};
use crate::guest::Guest;
use crate::linux::task::Task;
use crate::policy::ProcessPolicy;
use varve_formats::{Fault, VirtualMemory};

pub(super) const SCAN: Scan =
    Scan { name: "process_policy", summary: "processes that the policy denies or does not allow", run };

/// Findings of one report at most.
const MAX_FINDINGS: usize = 4096;
/// `PF_EXITING`.
const EXITING: u32 = 0x4;
/// `kthreadd`, the parent of the kernel's threads.
const KTHREADD: u32 = 2;

fn run(input: &ScanInput<'_>) -> Report {
    let mut report = Report::done();
    let policy = &input.policy.process;
    if policy.is_empty() {
        return report;
    }
    let census = Census::take(input.guest, &mut report);
    for (task, _) in census.read(input.guest, &mut report) {
        let Some(violation) = judge(&task, policy) else { continue };
        if report.try_or_note("tasks", is_departed(input.guest, &task)) == Some(true) {
            continue;
        }
        if report.findings.len() == MAX_FINDINGS {
            let limit = Fault::Limit { what: "findings", limit: MAX_FINDINGS as u64, at: task.address.0 };
            report.fault("processes", limit);
            break;
        }
        report.findings.push(finding(input.guest, &task, &violation));
    }
    report
}

/// What is wrong with a task.
#[derive(Debug, PartialEq, Eq)]
enum Violation<'p> {
    /// This pattern denies it.
    Denied(&'p str),
    /// No pattern allows it.
    Unlisted,
}

fn judge<'p>(task: &Task, policy: &'p ProcessPolicy) -> Option<Violation<'p>> {
    if let Some(pattern) = policy.denied_by(task.comm.as_bytes()) {
        return Some(Violation::Denied(pattern));
    }
    let counts = task.is_leader() && has_user_program(task);
    (counts && policy.is_unlisted(task.comm.as_bytes())).then_some(Violation::Unlisted)
}

/// Whether a task executes a program, or did until it exited. A thread of the kernel does not, even while it borrows the
/// memory of a process (`kthread_use_mm`); nor does a process that the kernel has just forked and that has no program yet
/// (`user_mode_thread`).
fn has_user_program(task: &Task) -> bool {
    if task.is_kernel_thread() {
        return task.mm.is_some() && task.ppid != Some(KTHREADD) && task.pid != KTHREADD;
    }
    task.mm.is_some() || task.flags & EXITING != 0
}

fn finding(guest: &Guest<'_>, task: &Task, violation: &Violation<'_>) -> Finding {
    let what = if task.is_leader() { "Process" } else { "Thread" };
    let (name, pid) = (&task.comm, task.pid);
    let title = match violation {
        Violation::Denied(pattern) => {
            format!("{what} {name} (PID {pid}) is denied by the policy: {pattern:?}")
        }
        Violation::Unlisted => format!("{what} {name} (PID {pid}) is not on the policy's allow list"),
    };
    Finding {
        scan: SCAN.name,
        severity: Severity::High,
        title,
        object: task_object(task),
        evidence: name_evidence(guest, task).into_iter().collect(),
        attack: &[],
    }
}

/// The name, where it stands in memory.
fn name_evidence(guest: &Guest<'_>, task: &Task) -> Option<crate::finding::Evidence> {
    let layout = guest.layouts().task.as_ref().ok()?;
    let at = layout.comm.of(task.address).ok()?;
    let mut bytes = vec![0; task.comm.as_bytes().len()];
    guest.space().read(at, &mut bytes).ok()?;
    Some(evidence(guest, at, None, Some(&bytes)))
}
