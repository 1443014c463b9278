//! `struct kthread` and `struct worker`: what a kernel thread is called beyond the 15 bytes of `comm`.

use varve_formats::symbols::btf::Btf;
use varve_formats::{Fault, Gva};

use super::layout::{Field, Missing, Structure};
use super::string::GuestString;
use super::task::Task;
use crate::guest::Guest;

/// `PF_WQ_WORKER`: the task runs the items of work queues.
const WORKER: u32 = 0x20;

/// Bytes that `proc_task_name` (`fs/proc/array.c`) shows, its NUL not counted.
const MAX_NAME_BYTES: usize = 63;

/// Members of `struct kthread` and `struct worker` (`kernel/kthread.c`, `kernel/workqueue_internal.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KthreadLayout {
    /// The `struct kthread` of a task: `worker_private`, or `set_child_tid` before 5.17.
    pub of_task: Field,
    /// What the thread was started with: the `struct worker` of a worker.
    pub data: Field,
    /// The name, where `comm` is too short for it (5.17 on).
    pub full_name: Option<Field>,
    /// The worker's pool; null when it is detached.
    pub pool: Field,
    /// What it works on.
    pub current_work: Field,
    /// The work queue it worked for last.
    pub desc: Field,
}

impl KthreadLayout {
    pub(super) fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let kthread = Structure::named(btf, "kthread")?;
        let worker = Structure::named(btf, "worker")?;
        Ok(Self {
            of_task: Structure::named(btf, "task_struct")?.any(&["worker_private", "set_child_tid"])?,
            data: kthread.field("data")?,
            full_name: kthread.optional("full_name"),
            pool: worker.field("pool")?,
            current_work: worker.field("current_work")?,
            desc: worker.field("desc")?,
        })
    }
}

impl Guest<'_> {
    /// The name that `/proc/PID/status` and `ps` show: `comm`, except for kernel threads with a longer name and for
    /// workers, which show their queue too (`kworker/0:1-events`; `+` instead of `-` while they work).
    ///
    /// # Errors
    /// The fault that stopped the read.
    pub fn thread_name(&self, task: &Task) -> Result<GuestString, Fault> {
        match &self.layouts().kthread {
            Ok(layout) if task.is_kernel_thread() => self.kernel_thread_name(task, layout),
            _ => Ok(task.comm.clone()),
        }
    }

    fn kernel_thread_name(&self, task: &Task, layout: &KthreadLayout) -> Result<GuestString, Fault> {
        let memory = self.space();
        let Some(kthread) = layout.of_task.pointer_or_null(memory, task.address)? else {
            return Ok(task.comm.clone());
        };
        let full_name = match layout.full_name {
            Some(field) => field.pointer_or_null(memory, kthread)?,
            None => None,
        };
        let full_name = full_name.map(|at| GuestString::read(memory, at, MAX_NAME_BYTES)).transpose()?;
        if task.flags & WORKER == 0 {
            return Ok(full_name.unwrap_or_else(|| task.comm.clone()));
        }
        // Rescuers of recent kernels are called `kworker/R-QUEUE` and shown in full (`format_worker_id`); all other
        // workers are shown by their `comm`.
        let rescuer = full_name.filter(|name| name.as_bytes().starts_with(b"kworker/R-"));
        let mut name = rescuer.as_ref().unwrap_or(&task.comm).as_bytes().to_vec();
        let worker = layout.data.pointer(memory, kthread)?;
        if layout.pool.pointer_or_null(memory, worker)?.is_some() {
            name.extend_from_slice(&self.work_queue(worker, layout)?);
        }
        name.truncate(MAX_NAME_BYTES);
        Ok(name.into())
    }

    /// The suffix that names a worker's queue; empty while it has had none.
    fn work_queue(&self, worker: Gva, layout: &KthreadLayout) -> Result<Vec<u8>, Fault> {
        let limit = usize::try_from(layout.desc.size).unwrap_or(MAX_NAME_BYTES).min(MAX_NAME_BYTES);
        let desc = GuestString::read(self.space(), layout.desc.of(worker)?, limit)?;
        if desc.is_empty() {
            return Ok(Vec::new());
        }
        let working = layout.current_work.pointer_or_null(self.space(), worker)?.is_some();
        let mut suffix = vec![if working { b'+' } else { b'-' }];
        suffix.extend_from_slice(desc.as_bytes());
        Ok(suffix)
    }
}
