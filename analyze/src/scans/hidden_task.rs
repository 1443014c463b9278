//! `hidden_task`: tasks that one part of the kernel knows and another does not.
//!
//! Every task is in the task list (or, if it does not lead its process, in the thread list of the process), in the PID
//! table, and its process is among its parent's children. The kernel adds and removes all of these together, under
//! `tasklist_lock`. Process groups, control groups and run queues are a subset: a task that is known only there is hidden
//! from all the others.
//!
//! Not findings: idle tasks, which are in no list; tasks the kernel has released and not yet freed; and, while somebody
//! holds `tasklist_lock` for writing, tasks that are being created, released or executing a program.

use varve_formats::Fault;

use super::census::{Census, View, Views};
use super::tasks::{is_departed, task_object};
use super::{Scan, ScanInput, list_evidence};
use crate::finding::{Evidence, Finding, Report, Severity};
use crate::guest::Guest;
use crate::linux::layout::Structure;
use crate::linux::rwlock::is_write_locked;
use crate::linux::task::{Task, TaskLayout};

pub(super) const SCAN: Scan =
    Scan { name: "hidden_task", summary: "tasks that are missing from a list they belong in", run };

/// Findings of one report at most.
const MAX_FINDINGS: usize = 256;

fn run(input: &ScanInput<'_>) -> Report {
    let guest = input.guest;
    let mut report = Report::done();
    let census = Census::take(guest, &mut report);
    let locked =
        guest.symbol("tasklist_lock").map_err(Into::into).and_then(|lock| is_write_locked(guest, lock));
    let locked = report.try_or_note("tasklist_lock", locked).unwrap_or(true);
    for (task, seen) in census.read(guest, &mut report) {
        let missing = missing_from(&task, seen, census.complete);
        if missing == Views::default() {
            continue;
        }
        if report.try_or_note("tasks", is_departed(guest, &task)) != Some(false) {
            continue;
        }
        if locked && is_in_transition(guest, &task, seen) {
            report.fault(
                format!("task {} (PID {})", task.comm, task.pid),
                "the task lists are being changed".to_owned(),
            );
        } else if report.findings.len() < MAX_FINDINGS {
            report.findings.push(finding(guest, &task, seen, missing));
        } else {
            let limit = Fault::Limit { what: "findings", limit: MAX_FINDINGS as u64, at: task.address.0 };
            report.fault("tasks", limit);
            break;
        }
    }
    report
}

/// The views that should show a task and do not, of those that were seen to their end.
fn missing_from(task: &Task, seen: Views, complete: Views) -> Views {
    const LEADER: Views = Views::of(&[View::TaskList, View::PidTable, View::Children]);
    const THREAD: Views = Views::of(&[View::ThreadLists, View::PidTable]);
    let expected = if task.is_leader() { LEADER } else { THREAD };
    let mut missing = Views::default();
    for view in expected.iter().filter(|view| complete.contains(*view) && !seen.contains(*view)) {
        missing.insert(view);
    }
    missing
}

/// Whether a task may be half-way into or out of the lists (`copy_process`, `release_task`, `de_thread`): it is new and not
/// yet in the PID table, which comes last; or it has exited; or a thread of its process is taking over from its leader.
fn is_in_transition(guest: &Guest<'_>, task: &Task, seen: Views) -> bool {
    let is_new = !seen.contains(View::PidTable);
    let has_exited = matches!(task.state.letter(), 'X' | 'Z');
    is_new || has_exited || is_executing(guest, task)
}

/// Whether a thread of the process waits for the others to die (`signal_struct.group_exec_task`; before 5.16
/// `group_exit_task`).
fn is_executing(guest: &Guest<'_>, task: &Task) -> bool {
    let waiting = || {
        let layout = guest.layouts().task.as_ref().ok()?;
        let signal = layout.signal.pointer_or_null(guest.space(), task.address).ok()??;
        let waits = Structure::named(guest.btf(), "signal_struct").ok()?;
        let waits = waits.any(&["group_exec_task", "group_exit_task"]).ok()?;
        waits.pointer_or_null(guest.space(), signal).ok()?
    };
    waiting().is_some()
}

fn finding(guest: &Guest<'_>, task: &Task, seen: Views, missing: Views) -> Finding {
    let what = if task.is_leader() { "Process" } else { "Thread" };
    let title = format!(
        "{what} {} (PID {}) is hidden: it is missing from {} and known to {}",
        task.comm,
        task.pid,
        names(missing),
        names(seen),
    );
    let layout = guest.layouts().task.as_ref().ok();
    let evidence = layout.map(|layout| link_evidence(guest, task, missing, layout)).unwrap_or_default();
    Finding {
        scan: SCAN.name,
        severity: Severity::High,
        title,
        object: task_object(task),
        evidence,
        attack: &["T1014", "T1564"],
    }
}

fn names(views: Views) -> String {
    let names: Vec<&str> = views.iter().map(View::name).collect();
    match names.split_last() {
        None => "nothing else".to_owned(),
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
    }
}

/// The task's own links in the lists it is missing from, and what its former neighbour points to instead of it.
fn link_evidence(guest: &Guest<'_>, task: &Task, missing: Views, layout: &TaskLayout) -> Vec<Evidence> {
    let sibling = Structure::named(guest.btf(), "task_struct").ok().and_then(|task| task.optional("sibling"));
    let links = missing.iter().filter_map(|view| match view {
        View::TaskList => Some(layout.tasks),
        View::ThreadLists => Some(layout.thread_node),
        View::Children => sibling,
        View::PidTable => guest.layouts().pid.as_ref().ok().map(|pid| pid.pid_links),
        View::Groups | View::ControlGroups | View::RunQueues => None,
    });
    let mut evidence = Vec::new();
    for link in links {
        if let Ok(node) = link.of(task.address) {
            evidence.extend(list_evidence(guest, node));
        }
    }
    evidence
}

#[cfg(test)]
mod tests {
    use varve_formats::Gva;

    use super::*;
    use crate::linux::task::TaskState;

    const COMPLETE: Views = Views::of(&View::ALL);

    fn task(pid: u32, tgid: u32) -> Task {
        Task {
            address: Gva(0xffff_8880_0000_0000),
            pid,
            tgid,
            comm: "test".into(),
            flags: 0,
            start_time_ns: 0,
            state: TaskState::new(1, 0),
            ppid: Some(1),
            cred: None,
            threads: Some(1),
            mm: None,
        }
    }

    #[test]
    fn what_is_everywhere_is_not_hidden() {
        let everywhere = Views::of(&[View::TaskList, View::ThreadLists, View::PidTable, View::Children]);
        assert_eq!(missing_from(&task(7, 7), everywhere, COMPLETE), Views::default());
        let thread = Views::of(&[View::ThreadLists, View::PidTable]);
        assert_eq!(missing_from(&task(8, 7), thread, COMPLETE), Views::default());
    }

    #[test]
    fn each_missing_view_is_told() {
        let unlinked = Views::of(&[View::PidTable, View::Children]);
        assert_eq!(missing_from(&task(7, 7), unlinked, COMPLETE), Views::of(&[View::TaskList]));
        let only_running = Views::of(&[View::RunQueues]);
        let missing = missing_from(&task(7, 7), only_running, COMPLETE);
        assert_eq!(missing, Views::of(&[View::TaskList, View::PidTable, View::Children]));
        assert_eq!(names(missing), "the task list, the PID table and its parent's children");
        assert_eq!(missing_from(&task(8, 7), unlinked, COMPLETE), Views::of(&[View::ThreadLists]));
    }

    #[test]
    fn a_view_that_broke_off_proves_nothing() {
        let complete = Views::of(&[View::PidTable]);
        let seen = Views::of(&[View::PidTable]);
        assert_eq!(missing_from(&task(7, 7), seen, complete), Views::default());
    }
}
