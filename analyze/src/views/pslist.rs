//! `pslist`: the processes in the task list.

use super::table::{Cell, Column, Table, column};
use super::{Filter, View, processes};
use crate::guest::Guest;
use crate::linux::{Missing, Task};

const COLUMNS: &[Column] = &[
    column("pid", "process number"),
    column("ppid", "process number of the parent; 0 for what the kernel started"),
    column("tgid", "thread group; equal to pid"),
    column("comm", "name, at most 15 bytes"),
    column("uid", "real user"),
    column("gid", "real group"),
    column("euid", "effective user"),
    column("egid", "effective group"),
    column("start_time_ns", "start, nanoseconds since boot including suspension"),
    column(
        "state",
        "as ps shows it: R running, S sleeping, D in the kernel, T stopped, t traced, Z zombie, I idle",
    ),
    column("threads", "threads of the process"),
    column("kernel_thread", "runs in the kernel only"),
    column("task", "address of the task_struct"),
];

pub(super) const VIEW: View =
    View { name: "pslist", summary: "processes in the task list", columns: COLUMNS, run };

fn run(guest: &Guest<'_>, filter: &Filter) -> Result<Table, Missing> {
    Ok(Table::new(COLUMNS, processes(guest, filter)?, cells))
}

fn cells(task: Task) -> Vec<Cell> {
    vec![
        Cell::Number(task.pid.into()),
        Cell::number(task.ppid),
        Cell::Number(task.tgid.into()),
        Cell::Guest(task.comm.clone()),
        Cell::number(task.cred.map(|cred| cred.uid)),
        Cell::number(task.cred.map(|cred| cred.gid)),
        Cell::number(task.cred.map(|cred| cred.euid)),
        Cell::number(task.cred.map(|cred| cred.egid)),
        Cell::Number(task.start_time_ns.into()),
        Cell::Text(task.state.letter().to_string()),
        Cell::number(task.threads),
        Cell::Flag(task.is_kernel_thread()),
        Cell::Address(task.address),
    ]
}
