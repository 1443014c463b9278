//! `pidhashtable`: the tasks that the kernel finds by number. Independent of the task list: what is missing there and
//! listed here is hidden.

use super::table::{Cell, Column, Table, column};
use super::{Filter, View};
use crate::guest::Guest;
use crate::linux::pid::PidEntry;
use crate::linux::{Missing, Task};

const COLUMNS: &[Column] = &[
    column("pid", "thread number"),
    column("tgid", "thread group: the process number"),
    column("ppid", "process number of the parent"),
    column("comm", "name, at most 15 bytes"),
    column("uid", "real user"),
    column("start_time_ns", "start, nanoseconds since boot including suspension"),
    column("kernel_thread", "runs in the kernel only"),
    column("number", "number under which the task is found; equal to pid"),
    column("task", "address of the task_struct"),
    column("pid_struct", "address of the struct pid"),
];

pub(super) const VIEW: View =
    View { name: "pidhashtable", summary: "threads that have a number", columns: COLUMNS, run };

fn run(guest: &Guest<'_>, filter: &Filter) -> Result<Table, Missing> {
    let mut walk = guest.tasks_by_pid()?;
    walk.items.retain(|(_, task)| filter.admits(task));
    Ok(Table::new(COLUMNS, walk, cells))
}

fn cells((entry, task): (PidEntry, Task)) -> Vec<Cell> {
    vec![
        Cell::Number(task.pid.into()),
        Cell::Number(task.tgid.into()),
        Cell::number(task.ppid),
        Cell::Guest(task.comm.clone()),
        Cell::number(task.cred.map(|cred| cred.uid)),
        Cell::Number(task.start_time_ns.into()),
        Cell::Flag(task.is_kernel_thread()),
        Cell::Number(entry.number.into()),
        Cell::Address(task.address),
        Cell::Address(entry.pid),
    ]
}
