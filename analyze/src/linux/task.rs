//! `struct task_struct`: a thread (`include/linux/sched.h`).

use varve_formats::symbols::btf::Btf;
use varve_formats::{Fault, Gva, VirtualMemory};

use super::cred::Cred;
use super::layout::{Field, Missing, Structure};
use super::list::List;
use super::string::GuestString;
use super::walk::Walk;
use crate::guest::Guest;

/// Tasks at most. The kernel could number 4 Mi (`PID_MAX_LIMIT`); machines with a twentieth of that are rare, and what a
/// hostile guest makes up has to fit into our memory.
pub const MAX_TASKS: usize = 1 << 20;

/// `PF_KTHREAD`: the task is a kernel thread.
const KERNEL_THREAD: u32 = 0x0020_0000;

/// Bytes of `task_struct.comm` kept. `TASK_COMM_LEN` is 16.
const MAX_COMM_BYTES: usize = 64;

/// Members of `struct task_struct` and `struct signal_struct`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskLayout {
    /// Link in the list of processes, which begins at `init_task`.
    pub tasks: Field,
    /// Number of the thread in the initial namespace.
    pub pid: Field,
    /// Number of its thread group: what user space calls the process id.
    pub tgid: Field,
    /// Name.
    pub comm: Field,
    /// `PF_*`.
    pub flags: Field,
    /// Scheduler state: `__state`, or `state` before 5.14.
    pub state: Field,
    /// `EXIT_*`.
    pub exit_state: Field,
    /// Its parent, also while traced.
    pub real_parent: Field,
    /// Its own credentials, also while it acts with others.
    pub real_cred: Field,
    /// When it was started, on the clock that counts suspension: `start_boottime`, or `real_start_time` before
    /// 5.5.
    pub start_boottime: Field,
    /// Its address space; null for a kernel thread.
    pub mm: Field,
    /// Its thread group.
    pub signal: Field,
    /// Link in `signal_struct.thread_head`.
    pub thread_node: Field,
    /// Anchor of the list of the group's threads.
    pub thread_head: Field,
    /// Number of threads of the group.
    pub nr_threads: Field,
}

impl TaskLayout {
    pub(super) fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let task = Structure::named(btf, "task_struct")?;
        let signal = Structure::named(btf, "signal_struct")?;
        Ok(Self {
            tasks: task.field("tasks")?,
            pid: task.field("pid")?,
            tgid: task.field("tgid")?,
            comm: task.field("comm")?,
            flags: task.field("flags")?,
            state: task.any(&["__state", "state"])?,
            exit_state: task.field("exit_state")?,
            real_parent: task.field("real_parent")?,
            real_cred: task.field("real_cred")?,
            start_boottime: task.any(&["start_boottime", "real_start_time"])?,
            mm: task.field("mm")?,
            signal: task.field("signal")?,
            thread_node: task.field("thread_node")?,
            thread_head: signal.field("thread_head")?,
            nr_threads: signal.field("nr_threads")?,
        })
    }

    /// Reads `task_struct.comm`.
    pub(crate) fn read_comm(&self, memory: &dyn VirtualMemory, task: Gva) -> Result<GuestString, Fault> {
        let mut bytes = [0; MAX_COMM_BYTES];
        let len = usize::try_from(self.comm.size).unwrap_or(MAX_COMM_BYTES).min(MAX_COMM_BYTES);
        let (field, _) = bytes.split_at_mut(len);
        memory.read(self.comm.of(task)?, field)?;
        Ok(GuestString::from_field(field))
    }
}

/// A thread, or a process when it leads its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Address of its `task_struct`.
    pub address: Gva,
    /// Number of the thread in the initial namespace.
    pub pid: u32,
    /// Number of its thread group.
    pub tgid: u32,
    /// Name: `task_struct.comm`. Kernel threads may have a longer one, see [`Guest::thread_name`].
    pub comm: GuestString,
    /// `PF_*`.
    pub flags: u32,
    /// When it was started, in nanoseconds since the boot of the guest, time in suspension included. `/proc/PID/stat`
    /// shows the same in ticks of 10 ms, field 22.
    pub start_time_ns: u64,
    /// Its scheduler state.
    pub state: TaskState,
    /// Thread group of its parent; 0 for what the kernel started itself. `None` when the parent cannot be read.
    pub ppid: Option<u32>,
    /// Its credentials. `None` when they cannot be read.
    pub cred: Option<Cred>,
    /// Threads of its group. `None` when the group cannot be read, or is gone.
    pub threads: Option<u32>,
    /// Address of its `mm_struct`; `None` for a kernel thread and for what has left its memory while exiting.
    pub mm: Option<Gva>,
}

impl Task {
    /// Whether it is a kernel thread (`PF_KTHREAD`).
    pub const fn is_kernel_thread(&self) -> bool {
        self.flags & KERNEL_THREAD != 0
    }

    /// Whether it leads its thread group: what user space calls a process.
    pub const fn is_leader(&self) -> bool {
        self.pid == self.tgid
    }
}

/// What a task is doing, by the letter that `/proc/PID/stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskState(u64);

impl TaskState {
    /// From `task_struct.__state` and `task_struct.exit_state`.
    pub const fn new(state: u64, exit_state: u64) -> Self {
        /// `TASK_REPORT`: running (0), interruptible, uninterruptible, stopped, traced, dead, zombie, parked.
        const REPORTED: u64 = 0x7f;
        const UNINTERRUPTIBLE: u64 = 0x2;
        /// `TASK_IDLE`: uninterruptible, and not counted as load (`TASK_NOLOAD`).
        const IDLE: u64 = UNINTERRUPTIBLE | 0x400;
        /// `TASK_RTLOCK_WAIT` (5.15) and `TASK_FROZEN` (6.1) are shown as uninterruptible. Both bits were unused before.
        const SHOWN_UNINTERRUPTIBLE: u64 = 0x1000 | 0x8000;
        if state & SHOWN_UNINTERRUPTIBLE != 0 {
            Self(UNINTERRUPTIBLE)
        } else if state & IDLE == IDLE {
            Self(REPORTED + 1)
        } else {
            Self((state | exit_state) & REPORTED)
        }
    }

    /// The letter. Corresponds to `task_index_to_char` (`include/linux/sched.h`).
    pub fn letter(self) -> char {
        let index = u64::BITS - self.0.leading_zeros();
        "RSDTtXZPI".chars().nth(index as usize).unwrap_or('?')
    }
}

impl Guest<'_> {
    /// Reads the task at `address`. Of what hangs off it, the parts that cannot be read are left out and their faults
    /// recorded in `walk`.
    ///
    /// # Errors
    /// The fault that kept the `task_struct` itself from being read.
    pub fn task_at<T>(&self, address: Gva, layout: &TaskLayout, walk: &mut Walk<T>) -> Result<Task, Fault> {
        let memory = self.space();
        let number = |field: Field| field.read_u32(memory, address);
        let state = layout.state.read(memory, address)?;
        let exit_state = layout.exit_state.read(memory, address)?;
        let ppid = layout
            .real_parent
            .pointer(memory, address)
            .and_then(|parent| layout.tgid.read_u32(memory, parent));
        let signal = layout.signal.pointer_or_null(memory, address)?;
        let threads = signal.map(|signal| layout.nr_threads.read_u32(memory, signal));
        let cred = layout.real_cred.pointer(memory, address)?;
        let cred = self.layouts().cred.as_ref().ok().map(|layout| layout.read(memory, cred));
        Ok(Task {
            address,
            pid: number(layout.pid)?,
            tgid: number(layout.tgid)?,
            comm: layout.read_comm(memory, address)?,
            flags: number(layout.flags)?,
            start_time_ns: layout.start_boottime.read(memory, address)?,
            state: TaskState::new(state, exit_state),
            ppid: walk.try_or_note(ppid),
            cred: cred.and_then(|cred| walk.try_or_note(cred)),
            threads: threads.and_then(|threads| walk.try_or_note(threads)),
            mm: layout.mm.pointer_or_null(memory, address)?,
        })
    }

    /// The processes (thread group leaders) in the list that begins at `init_task`, which itself is not one of them.
    ///
    /// # Errors
    /// What this kernel does not have or describe.
    pub fn processes(&self) -> Result<Walk<Task>, Missing> {
        let layout = self.layouts().task.as_ref().map_err(Clone::clone)?;
        Ok(self.read_tasks(self.process_addresses()?, layout))
    }

    /// Addresses of the tasks in the list of processes.
    pub(crate) fn process_addresses(&self) -> Result<Walk<Gva>, Missing> {
        let layout = self.layouts().task.as_ref().map_err(Clone::clone)?;
        let init_task = self.symbol("init_task")?;
        Ok(addresses_in("task list", layout.tasks.of(init_task), layout.tasks, self.space()))
    }

    /// The threads of a process, its leader included.
    ///
    /// # Errors
    /// What this kernel does not have or describe.
    pub fn threads(&self, process: &Task) -> Result<Walk<Task>, Missing> {
        let layout = self.layouts().task.as_ref().map_err(Clone::clone)?;
        let signal = layout.signal.pointer(self.space(), process.address);
        let head = signal.and_then(|signal| layout.thread_head.of(signal));
        Ok(self.read_tasks(addresses_in("thread list", head, layout.thread_node, self.space()), layout))
    }

    fn read_tasks(&self, addresses: Walk<Gva>, layout: &TaskLayout) -> Walk<Task> {
        let mut walk = Walk::default();
        for address in walk.absorb(addresses) {
            let task = self.task_at(address, layout, &mut walk);
            walk.push(task);
        }
        walk
    }
}

fn addresses_in(
    what: &'static str,
    head: Result<Gva, Fault>,
    link: Field,
    memory: &dyn VirtualMemory,
) -> Walk<Gva> {
    match head {
        Ok(head) => List { what, head, link: link.offset, limit: MAX_TASKS }.walk(memory),
        Err(fault) => {
            let mut walk = Walk::default();
            walk.fault(fault);
            walk
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_show_the_letter_that_proc_shows() {
        let letter = |state, exit| TaskState::new(state, exit).letter();
        assert_eq!(letter(0, 0), 'R');
        assert_eq!(letter(0x1, 0), 'S');
        assert_eq!(letter(0x2, 0), 'D');
        assert_eq!(letter(0x402, 0), 'I', "TASK_IDLE");
        assert_eq!(letter(0x2402, 0), 'I', "freezable");
        assert_eq!(letter(0x104, 0), 'T', "stopped, can be woken by a kill");
        assert_eq!(letter(0x8, 0), 't');
        assert_eq!(letter(0x80, 0x20), 'Z', "TASK_DEAD");
        assert_eq!(letter(0x80, 0x10), 'X');
        assert_eq!(letter(0x40, 0), 'P');
        assert_eq!(letter(0x8000, 0), 'D', "frozen");
        assert_eq!(letter(u64::MAX, u64::MAX), 'D');
    }
}
