//! What scans of tasks have in common.

use crate::finding::FaultReason;
use crate::guest::Guest;
use crate::linux::layout::Structure;
use crate::linux::task::Task;

/// `PF_EXITING`.
const EXITING: u32 = 0x4;

/// The identity of a task, stable across epochs.
pub(super) fn task_object(task: &Task) -> String {
    format!("task:{}:{}:{}", task.start_time_ns, task.pid, task.address)
}

/// Whether a task has been taken out of all lists by the kernel itself (`release_task`, `kernel/exit.c`) and only runs its
/// last instructions or waits to be freed. Nothing that still works looks like that: it has no memory of its own and, without
/// signal handlers (`sighand`), the first signal would crash the kernel.
pub(super) fn is_departed(guest: &Guest<'_>, task: &Task) -> Result<bool, FaultReason> {
    let exited = task.flags & EXITING != 0 && task.mm.is_none() && task.state.letter() == 'X';
    if !exited {
        return Ok(false);
    }
    let sighand = Structure::named(guest.btf(), "task_struct")?.field("sighand")?;
    Ok(sighand.pointer_or_null(guest.space(), task.address)?.is_none())
}
