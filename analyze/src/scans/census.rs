//! Every task of a guest, by every way the kernel has to come across it.

use std::collections::BTreeMap;

use varve_formats::{Fault, Gva};

use crate::finding::{FaultReason, Report};
use crate::guest::Guest;
use crate::linux::hlist;
use crate::linux::layout::Structure;
use crate::linux::list::List;
use crate::linux::pid::PidEntry;
use crate::linux::task::{MAX_TASKS, Task};
use crate::linux::walk::{Seen, Walk};

/// A way to come across a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum View {
    /// `init_task.tasks`: the processes, that is the leaders of thread groups.
    TaskList,
    /// `signal_struct.thread_head` of each process.
    ThreadLists,
    /// `init_pid_ns.idr`, and `pid.tasks[PIDTYPE_PID]` there.
    PidTable,
    /// `pid.tasks` of process groups and sessions.
    Groups,
    /// `task_struct.children` of each task.
    Children,
    /// `css_set.tasks`.
    ControlGroups,
    /// `rq.curr` and `rq.cfs_tasks`.
    RunQueues,
}

impl View {
    pub(super) const ALL: [Self; 7] = [
        Self::TaskList,
        Self::ThreadLists,
        Self::PidTable,
        Self::Groups,
        Self::Children,
        Self::ControlGroups,
        Self::RunQueues,
    ];

    /// What a person calls it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::TaskList => "the task list",
            Self::ThreadLists => "its process's thread list",
            Self::PidTable => "the PID table",
            Self::Groups => "its process group",
            Self::Children => "its parent's children",
            Self::ControlGroups => "its control group",
            Self::RunQueues => "a run queue",
        }
    }
}

/// A set of views.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Views(u8);

impl Views {
    pub(super) const fn of(views: &[View]) -> Self {
        let mut set = Self(0);
        let mut index = 0;
        while index < views.len() {
            // Indexing in a `const fn`: there is no other way, and the loop bounds it.
            #[allow(clippy::indexing_slicing)]
            set.insert(views[index]);
            index += 1;
        }
        set
    }

    pub(super) const fn insert(&mut self, view: View) {
        self.0 |= 1 << view as u8;
    }

    pub(super) const fn contains(self, view: View) -> bool {
        self.0 & 1 << view as u8 != 0
    }

    /// The views in it, in their order.
    pub(super) fn iter(self) -> impl Iterator<Item = View> {
        View::ALL.into_iter().filter(move |view| self.contains(*view))
    }
}

/// What all views show.
pub(super) struct Census {
    /// By the address of each task the views that show it. `init_task` and the other idle tasks are left out: they are
    /// in no list.
    pub(super) tasks: BTreeMap<Gva, Views>,
    /// The views that were seen to their end: a task that is missing from one of them is not there.
    pub(super) complete: Views,
}

impl Census {
    /// Takes it. What could not be read is added to `report`.
    pub(super) fn take(guest: &Guest<'_>, report: &mut Report) -> Self {
        let mut census = Self { tasks: BTreeMap::new(), complete: Views::default() };
        let processes = census.note(View::TaskList, guest.processes(), |task| task.address, report);
        census.numbers(guest, report);
        census.note(View::ControlGroups, guest.tasks_in_cgroups(), |task| *task, report);
        let idle = census.running(guest, report);
        census.children(guest, report);
        census.threads(guest, processes, report);
        for task in idle.into_iter().chain(guest.symbol("init_task").ok()) {
            census.tasks.remove(&task);
        }
        census
    }

    /// Reads every task. Those that cannot be read are left out and on record.
    pub(super) fn read(&self, guest: &Guest<'_>, report: &mut Report) -> Vec<(Task, Views)> {
        let layout = match &guest.layouts().task {
            Ok(layout) => layout,
            Err(missing) => {
                report.fault("tasks", missing.clone());
                return Vec::new();
            }
        };
        let mut walk = Walk::default();
        for (address, views) in &self.tasks {
            let task = guest.task_at(*address, layout, &mut walk);
            walk.push(task.map(|task| (task, *views)));
        }
        report.absorb("tasks", Ok(walk))
    }

    /// Enters what a view shows.
    fn note<T, E: Into<FaultReason>>(
        &mut self,
        view: View,
        walk: Result<Walk<T>, E>,
        address: impl Fn(&T) -> Gva,
        report: &mut Report,
    ) -> Vec<T> {
        let Some(walk) = report.try_or_note(view.name(), walk) else { return Vec::new() };
        if walk.complete {
            self.complete.insert(view);
        }
        let items = report.absorb(view.name(), Ok(walk));
        for item in &items {
            self.tasks.entry(address(item)).or_default().insert(view);
        }
        items
    }

    /// The threads of each process, also of one that is missing from the task list: that alone does not hide them.
    fn threads(&mut self, guest: &Guest<'_>, mut processes: Vec<Task>, report: &mut Report) {
        let mut all = Walk::default();
        if let Ok(layout) = &guest.layouts().task {
            let unlisted = self.tasks.iter().filter(|(_, seen)| !seen.contains(View::TaskList));
            // What cannot be read here is reported where all tasks are read.
            let mut faults = Walk::<Task>::default();
            let unlisted = unlisted.filter_map(|(task, _)| guest.task_at(*task, layout, &mut faults).ok());
            processes.extend(unlisted.filter(|task| task.is_leader() && task.threads.is_some()));
        }
        for process in &processes {
            if all.items.len() > MAX_TASKS {
                all.fault(Fault::Limit { what: "threads", limit: MAX_TASKS as u64, at: process.address.0 });
                break;
            }
            if let Some(threads) = report.try_or_note(View::ThreadLists.name(), guest.threads(process)) {
                let threads = all.absorb(threads);
                all.items.extend(threads);
            }
        }
        self.note(View::ThreadLists, Ok::<_, Fault>(all), |task: &Task| task.address, report);
    }

    /// The PID table, and the lists of process groups and sessions that hang off its entries.
    fn numbers(&mut self, guest: &Guest<'_>, report: &mut Report) {
        let Some(pids) = report.try_or_note(View::PidTable.name(), guest.pids()) else { return };
        let groups = groups(guest, &pids.items);
        let complete = pids.complete;
        let mut by_number = Walk { items: Vec::new(), faults: pids.faults, complete };
        by_number.items.extend(pids.items.into_iter().flat_map(|entry| entry.tasks));
        self.note(View::PidTable, Ok::<_, Fault>(by_number), |task| *task, report);
        self.note(View::Groups, Ok::<_, Fault>(groups), |task| *task, report);
    }

    /// What runs. Returns the idle tasks.
    fn running(&mut self, guest: &Guest<'_>, report: &mut Report) -> Vec<Gva> {
        let Some(queues) = report.try_or_note(View::RunQueues.name(), guest.run_queues()) else {
            return Vec::new();
        };
        let (mut tasks, mut idle) = (Walk::default(), Vec::new());
        for running in tasks.absorb(queues) {
            tasks.items.extend(running.tasks);
            idle.extend(running.idle);
        }
        self.note(View::RunQueues, Ok::<_, Fault>(tasks), |task| *task, report);
        idle
    }

    /// The children of every task met so far and, in turn, of these.
    fn children(&mut self, guest: &Guest<'_>, report: &mut Report) {
        let links = Structure::named(guest.btf(), "task_struct")
            .and_then(|task| Ok((task.field("children")?, task.field("sibling")?)));
        let Some((children, sibling)) = report.try_or_note(View::Children.name(), links) else { return };
        let mut pending: Vec<Gva> =
            self.tasks.keys().copied().chain(guest.symbol("init_task").ok()).collect();
        let mut all = Walk::default();
        let mut left = MAX_TASKS;
        while let Some(parent) = pending.pop() {
            let Some(head) = all.try_or_note(children.of(parent)) else { continue };
            let list = List { what: "children", head, link: sibling.offset, limit: left };
            let found = all.absorb(list.walk(guest.space()));
            left = left.saturating_sub(found.len());
            for child in found {
                let views = self.tasks.entry(child).or_insert_with(|| {
                    pending.push(child);
                    Views::default()
                });
                views.insert(View::Children);
            }
        }
        self.note(View::Children, Ok::<_, Fault>(all), |task: &Gva| *task, report);
    }
}

/// The tasks in the lists of numbers beyond the first: thread group, process group, session (`enum pid_type`).
fn groups(guest: &Guest<'_>, entries: &[PidEntry]) -> Walk<Gva> {
    /// Bytes of a `struct hlist_head` and a `struct hlist_node`.
    const HEAD_BYTES: u64 = 8;
    const NODE_BYTES: u64 = 16;
    let mut walk = Walk::default();
    let Ok(layout) = &guest.layouts().pid else { return walk };
    let mut seen = Seen::new("process groups", MAX_TASKS);
    for entry in entries {
        for kind in 1..layout.tasks.size / HEAD_BYTES {
            let link = layout.pid_links.offset.saturating_add(kind * NODE_BYTES);
            let head = layout.tasks.of(entry.pid).map(|heads| Gva(heads.0.wrapping_add(kind * HEAD_BYTES)));
            let found =
                head.and_then(|head| hlist::follow(guest.space(), head, link, &mut seen, &mut walk.items));
            walk.try_or_note(found);
        }
    }
    walk
}
