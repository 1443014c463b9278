//! `struct rq`: what each processor runs and has ready to run (`kernel/sched/sched.h`).

use varve_formats::{Fault, Gva, VirtualMemory};

use super::layout::{Field, Missing, Structure};
use super::list::List;
use super::task::MAX_TASKS;
use super::walk::Walk;
use crate::guest::Guest;

/// Processors at most (`NR_CPUS_RANGE_END` of x86-64).
const MAX_CPUS: u32 = 8192;

/// What the processors are busy with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Running {
    /// Addresses of the tasks that run or are ready to.
    pub(crate) tasks: Vec<Gva>,
    /// Addresses of the idle tasks, which are in no list.
    pub(crate) idle: Vec<Gva>,
}

/// Members of `struct rq` and `struct task_struct`.
struct RunQueueLayout {
    curr: Field,
    idle: Field,
    /// Tasks of the fair class that are ready; only on multiprocessor kernels.
    cfs_tasks: Option<Field>,
    group_node: Field,
}

impl Guest<'_> {
    /// The run queues of the processors that are up.
    ///
    /// # Errors
    /// What this kernel does not have or describe.
    pub(crate) fn run_queues(&self) -> Result<Walk<Running>, Missing> {
        let rq = Structure::named(self.btf(), "rq")?;
        let layout = RunQueueLayout {
            curr: rq.field("curr")?,
            idle: rq.field("idle")?,
            cfs_tasks: rq.optional("cfs_tasks"),
            group_node: Structure::named(self.btf(), "task_struct")?.field("se.group_node")?,
        };
        let runqueues = self.symbol("runqueues")?;
        let mut walk = Walk::default();
        let cpus = self.cpus_online()?;
        for base in walk.absorb(cpus) {
            let queue = Gva(base.0.wrapping_add(runqueues.0));
            let running = layout.read(self.space(), queue, &mut walk);
            walk.push(running);
        }
        Ok(walk)
    }

    /// What to add to the address of a per-CPU variable, for each processor that is up (`__per_cpu_offset`).
    fn cpus_online(&self) -> Result<Walk<Gva>, Missing> {
        let mask = self.symbol("__cpu_online_mask")?;
        let offsets = self.symbol("__per_cpu_offset")?;
        let count = self.symbol("nr_cpu_ids").map(|at| self.space().read_u32(at));
        let mut walk = Walk::default();
        let Some(count) = walk.try_or_note(count.unwrap_or(Ok(MAX_CPUS))) else { return Ok(walk) };
        for cpu in 0..u64::from(count.min(MAX_CPUS)) {
            let word = Gva(mask.0.wrapping_add(cpu / 64 * 8));
            let Some(word) = walk.try_or_note(self.space().read_u64(word)) else { break };
            if word >> (cpu % 64) & 1 == 1 {
                let offset = self.space().read_u64(Gva(offsets.0.wrapping_add(cpu * 8)));
                walk.push(offset.map(Gva));
            }
        }
        Ok(walk)
    }
}

impl RunQueueLayout {
    fn read(
        &self,
        memory: &dyn VirtualMemory,
        queue: Gva,
        walk: &mut Walk<Running>,
    ) -> Result<Running, Fault> {
        let mut tasks = vec![self.curr.pointer(memory, queue)?];
        if let Some(cfs_tasks) = self.cfs_tasks {
            let head = cfs_tasks.of(queue)?;
            let list = List { what: "run queue", head, link: self.group_node.offset, limit: MAX_TASKS };
            tasks.extend(walk.absorb(list.walk(memory)));
        }
        Ok(Running { tasks, idle: vec![self.idle.pointer(memory, queue)?] })
    }
}
