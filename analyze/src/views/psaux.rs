//! `psaux`: the processes in the task list with their arguments.

use super::table::{Cell, Column, Table, column};
use super::{Filter, View, processes};
use crate::guest::Guest;
use crate::linux::{GuestString, Missing, Task, Walk};

const COLUMNS: &[Column] = &[
    column("pid", "process number"),
    column("ppid", "process number of the parent"),
    column("uid", "real user"),
    column("comm", "name, at most 15 bytes"),
    column(
        "args",
        "arguments, separated by spaces; [name] without any, as for kernel threads; null when not in memory",
    ),
];

pub(super) const VIEW: View =
    View { name: "psaux", summary: "processes with their arguments", columns: COLUMNS, run };

fn run(guest: &Guest<'_>, filter: &Filter) -> Result<Table, Missing> {
    let mut tasks = processes(guest, filter)?;
    let mut walk = Walk::default();
    for task in walk.absorb(std::mem::take(&mut tasks)) {
        let arguments = arguments(guest, &task, &mut walk)?;
        walk.items.push((task, arguments));
    }
    Ok(Table::new(COLUMNS, walk, cells))
}

fn arguments<T>(guest: &Guest<'_>, task: &Task, walk: &mut Walk<T>) -> Result<Option<GuestString>, Missing> {
    if let Some(mm) = task.mm.filter(|_| !task.is_kernel_thread()) {
        let layout = guest.layouts().mm.as_ref().map_err(Clone::clone)?;
        let Some(bytes) = walk.try_or_note(guest.command_line(layout, mm)) else { return Ok(None) };
        if !bytes.is_empty() {
            return Ok(Some(spaced(bytes)));
        }
    }
    let name = walk.try_or_note(guest.thread_name(task));
    Ok(name.map(|name| [b"[", name.as_bytes(), b"]"].concat().into()))
}

/// Arguments with spaces for the NULs between them.
fn spaced(mut bytes: Vec<u8>) -> GuestString {
    if bytes.last() == Some(&0) {
        bytes.pop();
    }
    for byte in &mut bytes {
        if *byte == 0 {
            *byte = b' ';
        }
    }
    bytes.into()
}

fn cells((task, arguments): (Task, Option<GuestString>)) -> Vec<Cell> {
    vec![
        Cell::Number(task.pid.into()),
        Cell::number(task.ppid),
        Cell::number(task.cred.map(|cred| cred.uid)),
        Cell::Guest(task.comm),
        Cell::guest(arguments),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_separated_and_not_terminated_by_spaces() {
        assert_eq!(spaced(b"sh\0-c\0a b\0".to_vec()), "sh -c a b");
        assert_eq!(spaced(b"nginx: worker".to_vec()), "nginx: worker");
        assert_eq!(spaced(b"x\0\0".to_vec()), "x ", "an empty last argument");
    }
}
