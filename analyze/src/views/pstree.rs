//! `pstree`: the processes in the task list, each under its parent.

use std::collections::HashMap;

use super::table::{Cell, Column, Table, column};
use super::{Filter, View};
use crate::guest::Guest;
use crate::linux::{Missing, Task, Walk};

const COLUMNS: &[Column] = &[
    column("depth", "ancestors in the tree"),
    column("pid", "process number"),
    column("ppid", "process number of the parent"),
    column("comm", "name, at most 15 bytes"),
    column("uid", "real user"),
    column("start_time_ns", "start, nanoseconds since boot including suspension"),
    column("kernel_thread", "runs in the kernel only"),
    column("task", "address of the task_struct"),
];

pub(super) const VIEW: View =
    View { name: "pstree", summary: "processes under their parents", columns: COLUMNS, run };

fn run(guest: &Guest<'_>, filter: &Filter) -> Result<Table, Missing> {
    let mut walk = guest.processes()?;
    let items = in_tree_order(std::mem::take(&mut walk.items), filter.pid);
    Ok(Table::new(COLUMNS, Walk { items, faults: walk.faults, complete: walk.complete }, cells))
}

fn cells((depth, task): (u32, Task)) -> Vec<Cell> {
    vec![
        Cell::Number(depth.into()),
        Cell::Number(task.pid.into()),
        Cell::number(task.ppid),
        Cell::Guest(task.comm.clone()),
        Cell::number(task.cred.map(|cred| cred.uid)),
        Cell::Number(task.start_time_ns.into()),
        Cell::Flag(task.is_kernel_thread()),
        Cell::Address(task.address),
    ]
}

/// Parents before their children, children by number; the subtree of `root` only, if given. Processes whose parents
/// are not listed, or are their own ancestors, stand at the top: none is left out.
fn in_tree_order(tasks: Vec<Task>, root: Option<u32>) -> Vec<(u32, Task)> {
    let listed: HashMap<u32, usize> = tasks.iter().enumerate().map(|(at, task)| (task.pid, at)).collect();
    let mut order: Vec<usize> = (0..tasks.len()).collect();
    order.sort_by_key(|at| tasks.get(*at).map(|task| task.pid));
    let parent =
        |at: usize| tasks.get(at).and_then(|task| listed.get(&task.ppid?)).copied().filter(|up| *up != at);
    let mut children: HashMap<usize, Vec<usize>> = HashMap::new();
    for at in &order {
        if let Some(up) = parent(*at) {
            children.entry(up).or_default().push(*at);
        }
    }
    let is_root = |at: &usize| match root {
        Some(pid) => tasks.get(*at).is_some_and(|task| task.pid == pid),
        None => parent(*at).is_none(),
    };
    let roots = order.iter().copied().filter(is_root);
    // What no root leads to goes in a circle; any of it will do as the beginning.
    let circles = order.iter().copied().filter(|_| root.is_none());
    let mut depths: Vec<Option<(u32, usize)>> = vec![None; tasks.len()];
    let mut position = 0;
    for start in roots.chain(circles) {
        let mut stack = vec![(0, start)];
        while let Some((depth, at)) = stack.pop() {
            let Some(slot) = depths.get_mut(at).filter(|slot| slot.is_none()) else { continue };
            *slot = Some((depth, position));
            position += 1;
            let below = children.get(&at).into_iter().flatten().rev();
            stack.extend(below.map(|child| (depth + 1, *child)));
        }
    }
    let mut placed: Vec<(usize, u32, Task)> = tasks
        .into_iter()
        .zip(depths)
        .filter_map(|(task, place)| place.map(|(depth, position)| (position, depth, task)))
        .collect();
    placed.sort_by_key(|(position, ..)| *position);
    placed.into_iter().map(|(_, depth, task)| (depth, task)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use varve_formats::Gva;

    use super::*;
    use crate::linux::task::TaskState;

    fn task(pid: u32, ppid: u32) -> Task {
        Task {
            address: Gva(u64::from(pid) * 0x1000),
            pid,
            tgid: pid,
            comm: "t".into(),
            flags: 0,
            start_time_ns: 0,
            state: TaskState::new(0, 0),
            ppid: Some(ppid),
            cred: None,
            threads: None,
            mm: None,
        }
    }

    fn order(pairs: &[(u32, u32)], root: Option<u32>) -> Vec<(u32, u32)> {
        let tasks = pairs.iter().map(|(pid, ppid)| task(*pid, *ppid)).collect();
        in_tree_order(tasks, root).into_iter().map(|(depth, task)| (depth, task.pid)).collect()
    }

    #[test]
    fn children_follow_their_parent_by_number() {
        let pairs = [(1, 0), (2, 0), (9, 1), (5, 1), (6, 5), (7, 2)];
        assert_eq!(order(&pairs, None), [(0, 1), (1, 5), (2, 6), (1, 9), (0, 2), (1, 7)]);
        assert_eq!(order(&pairs, Some(5)), [(0, 5), (1, 6)]);
        assert_eq!(order(&pairs, Some(99)), []);
    }

    #[test]
    fn processes_that_are_their_own_ancestors_are_listed_all_the_same() {
        assert_eq!(order(&[(3, 4), (4, 3), (5, 5), (6, 77)], None), [(0, 5), (0, 6), (0, 3), (1, 4)]);
    }

    proptest! {
        #[test]
        fn no_process_is_lost_or_repeated(pairs in prop::collection::vec((0u32..8, 0u32..8), 0..24)) {
            let mut listed: Vec<u32> = order(&pairs, None).into_iter().map(|(_, pid)| pid).collect();
            let mut expected: Vec<u32> = pairs.into_iter().map(|(pid, _)| pid).collect();
            listed.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(listed, expected);
        }
    }
}
