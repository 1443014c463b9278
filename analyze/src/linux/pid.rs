//! `struct pid`: process numbers, and the tasks that go by them (`include/linux/pid.h`).

use varve_formats::symbols::btf::Btf;
use varve_formats::{Fault, Gva, VirtualMemory};

use super::layout::{Field, Missing, Structure};
use super::task::Task;
use super::walk::Walk;
use crate::guest::Guest;

/// Tasks that go by one number at most. There is one; while a thread executes a program, two.
const MAX_TASKS_PER_PID: usize = 16;

/// Members of `struct pid`, `struct pid_namespace` and `task_struct.pid_links`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PidLayout {
    /// Head of the namespace's IDR, in `struct pid_namespace`.
    pub idr_head: Field,
    /// Heads of the lists of tasks by `enum pid_type`, in `struct pid`. The first is `PIDTYPE_PID`.
    pub tasks: Field,
    /// Links in these lists, in `struct task_struct`.
    pub pid_links: Field,
}

/// A number of the initial PID namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PidEntry {
    /// The number.
    pub number: u64,
    /// Address of its `struct pid`.
    pub pid: Gva,
    /// Addresses of the tasks with this number. Empty when it lives on only as a process group or a session.
    pub tasks: Vec<Gva>,
}

impl PidLayout {
    pub(super) fn resolve(btf: &Btf) -> Result<Self, Missing> {
        Ok(Self {
            idr_head: Structure::named(btf, "pid_namespace")?.field("idr.idr_rt.xa_head")?,
            tasks: Structure::named(btf, "pid")?.field("tasks")?,
            pid_links: Structure::named(btf, "task_struct")?.field("pid_links")?,
        })
    }
}

impl Guest<'_> {
    /// The numbers in use in the initial PID namespace, ascending: `init_pid_ns.idr`, by which the kernel finds the
    /// target of a signal. It is independent of the task list.
    ///
    /// # Errors
    /// What this kernel does not have or describe.
    pub fn pids(&self) -> Result<Walk<PidEntry>, Missing> {
        let layout = self.layouts().pid.as_ref().map_err(Clone::clone)?;
        let xarray = self.layouts().xarray.as_ref().map_err(Clone::clone)?;
        let namespace = self.symbol("init_pid_ns")?;
        let mut walk = Walk::default();
        let head = layout.idr_head.read(self.space(), namespace);
        let Some(head) = walk.try_or_note(head) else { return Ok(walk) };
        for (number, pid) in walk.absorb(xarray.walk(self.space(), head)) {
            let tasks = self.pid_tasks(layout, pid);
            walk.push(tasks.map(|tasks| PidEntry { number, pid, tasks }));
        }
        Ok(walk)
    }

    /// The tasks in `init_pid_ns.idr`: every thread, by ascending number.
    ///
    /// # Errors
    /// What this kernel does not have or describe.
    pub fn tasks_by_pid(&self) -> Result<Walk<(PidEntry, Task)>, Missing> {
        let layout = self.layouts().task.as_ref().map_err(Clone::clone)?;
        let mut walk = Walk::default();
        for entry in walk.absorb(self.pids()?) {
            for task in &entry.tasks {
                let task = self.task_at(*task, layout, &mut walk);
                walk.push(task.map(|task| (entry.clone(), task)));
            }
        }
        Ok(walk)
    }

    /// Follows the `hlist` of a number's tasks.
    fn pid_tasks(&self, layout: &PidLayout, pid: Gva) -> Result<Vec<Gva>, Fault> {
        let mut tasks = Vec::new();
        let mut node = Gva(self.space().read_u64(layout.tasks.of(pid)?)?);
        while node.0 != 0 {
            if tasks.len() == MAX_TASKS_PER_PID {
                let limit = MAX_TASKS_PER_PID as u64;
                return Err(Fault::Limit { what: "tasks of one pid", limit, at: pid.0 });
            }
            tasks.push(node.checked_sub(layout.pid_links.offset).ok_or(Fault::Overflow { at: node.0 })?);
            node = Gva(self.space().read_u64(node)?);
        }
        Ok(tasks)
    }
}
