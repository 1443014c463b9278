//! What began, ended and changed between two epochs.

use std::collections::BTreeMap;

use serde::Serialize;
use varve_formats::{Fault, Gpa, PAGE_SIZE, PhysicalMemory};
use varve_store::EpochMemory;

use super::history::{EpochError, History};
use crate::FaultReason;
use crate::guest::Guest;
use crate::linux::{GuestString, Task, Walk};

/// A process that is in one of the two epochs only, or is called otherwise in the later one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProcessChange {
    /// Process number.
    pub pid: u32,
    /// Process number of the parent.
    pub ppid: Option<u32>,
    /// Name; in the later epoch when it is in both.
    pub comm: GuestString,
    /// Name in the earlier epoch when it is in both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm_before: Option<GuestString>,
    /// Real user.
    pub uid: Option<u32>,
    /// Start, nanoseconds since boot.
    pub start_time_ns: u64,
}

/// A module that is in one of the two epochs only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModuleChange {
    /// Name.
    pub name: GuestString,
    /// Code and data, in bytes.
    pub size: u64,
}

/// A page that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangedPage {
    /// Where.
    pub gpa: Gpa,
    /// Bytes that differ; `None` when one of the two pages is missing or damaged.
    pub bytes_changed: Option<usize>,
    /// Offset of the first of them in the page.
    pub first_offset: Option<usize>,
}

/// The differences between two epochs.
#[derive(Clone, Debug, Default)]
pub struct Diff {
    /// Processes that are in the later epoch only.
    pub processes_started: Vec<ProcessChange>,
    /// Processes that are in the earlier epoch only.
    pub processes_ended: Vec<ProcessChange>,
    /// Processes that changed their name.
    pub processes_renamed: Vec<ProcessChange>,
    /// Modules that are in the later epoch only.
    pub modules_loaded: Vec<ModuleChange>,
    /// Modules that are in the earlier epoch only.
    pub modules_unloaded: Vec<ModuleChange>,
    /// Guest physical frames whose contents differ, ascending.
    pub pages_changed: Vec<Gpa>,
    /// What could not be read or is not described, in either epoch.
    pub faults: Vec<FaultReason>,
    /// Whether everything was compared.
    pub complete: bool,
}

impl Diff {
    /// Compares epochs `before` and `after` of a history.
    ///
    /// # Errors
    /// When one of them cannot be read or has no kernel.
    pub fn between(history: &History, before: u64, after: u64) -> Result<Self, EpochError> {
        history.learn(before.max(after))?;
        let (earlier, later) = (history.memory(before)?, history.memory(after)?);
        let (guest_before, guest_after) = (history.guest(&earlier)?, history.guest(&later)?);
        let mut diff = Self { complete: true, ..Self::default() };
        diff.processes(&guest_before, &guest_after);
        diff.modules(&guest_before, &guest_after);
        diff.pages_changed = later.changed_since(&earlier).into_iter().filter_map(|gfn| gfn.gpa()).collect();
        Ok(diff)
    }

    fn processes(&mut self, before: &Guest<'_>, after: &Guest<'_>) {
        let identity = |task: &Task| (task.start_time_ns, task.pid, task.address);
        let by_identity = |tasks: Vec<Task>| -> BTreeMap<_, _> {
            tasks.into_iter().map(|task| (identity(&task), task)).collect()
        };
        let earlier = by_identity(self.all(before.processes()));
        let mut later = by_identity(self.all(after.processes()));
        for (identity, task) in earlier {
            match later.remove(&identity) {
                None => self.processes_ended.push(process(task, None)),
                Some(now) if now.comm != task.comm => {
                    self.processes_renamed.push(process(now, Some(task.comm)));
                }
                Some(_) => {}
            }
        }
        self.processes_started = later.into_values().map(|task| process(task, None)).collect();
    }

    fn modules(&mut self, before: &Guest<'_>, after: &Guest<'_>) {
        let mut later: BTreeMap<_, _> =
            self.all(after.modules()).into_iter().map(|module| (module.address, module)).collect();
        for module in self.all(before.modules()) {
            if later.get(&module.address).is_some_and(|now| now.name == module.name) {
                later.remove(&module.address);
            } else {
                let size = module.size();
                self.modules_unloaded.push(ModuleChange { name: module.name, size });
            }
        }
        let loaded =
            later.into_values().map(|module| ModuleChange { size: module.size(), name: module.name });
        self.modules_loaded = loaded.collect();
    }

    /// What a walk saw; what it could not see is noted.
    fn all<T>(&mut self, walk: Result<Walk<T>, crate::linux::Missing>) -> Vec<T> {
        match walk {
            Ok(walk) => {
                self.complete &= walk.complete;
                self.faults.extend(walk.faults.into_iter().map(FaultReason::from));
                walk.items
            }
            Err(missing) => {
                self.complete = false;
                self.faults.push(FaultReason::Missing(missing.to_string()));
                Vec::new()
            }
        }
    }
}

impl ChangedPage {
    /// Compares the page at `gpa`, byte by byte.
    pub fn compare(before: &EpochMemory, after: &EpochMemory, gpa: Gpa) -> Self {
        let page = |memory: &EpochMemory| -> Result<[u8; PAGE_SIZE], Fault> {
            let mut page = [0; PAGE_SIZE];
            memory.read(gpa, &mut page).map(|()| page)
        };
        let (Ok(before), Ok(after)) = (page(before), page(after)) else {
            return Self { gpa, bytes_changed: None, first_offset: None };
        };
        let differs = || before.iter().zip(&after).map(|(before, after)| before != after);
        Self {
            gpa,
            bytes_changed: Some(differs().filter(|differs| *differs).count()),
            first_offset: differs().position(|differs| differs),
        }
    }
}

fn process(task: Task, comm_before: Option<GuestString>) -> ProcessChange {
    ProcessChange {
        pid: task.pid,
        ppid: task.ppid,
        comm: task.comm,
        comm_before,
        uid: task.cred.map(|cred| cred.uid),
        start_time_ns: task.start_time_ns,
    }
}
