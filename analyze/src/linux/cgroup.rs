//! Control groups: `struct css_set`, which lists the tasks that share a set of groups (`include/linux/cgroup-defs.h`).

use varve_formats::Gva;

use super::hlist::HashTable;
use super::layout::{Field, Missing, Structure};
use super::list::List;
use super::task::MAX_TASKS;
use super::walk::Walk;
use crate::guest::Guest;

/// Buckets of `css_set_table`: 2^`CSS_SET_HASH_BITS` (`kernel/cgroup/cgroup.c`).
const BUCKETS: u64 = 1 << 7;
/// Sets of groups at most.
const MAX_SETS: usize = 1 << 20;

impl Guest<'_> {
    /// Addresses of the tasks that some set of control groups lists. A task is in no such list until its creation is
    /// complete; while it exits it stays in one to the end. Empty where the kernel has no control groups.
    ///
    /// # Errors
    /// What this kernel does not describe.
    pub(crate) fn tasks_in_cgroups(&self) -> Result<Walk<Gva>, Missing> {
        let Ok(table) = self.symbol("css_set_table") else { return Ok(Walk::default()) };
        let set = Structure::named(self.btf(), "css_set")?;
        let link = Structure::named(self.btf(), "task_struct")?.field("cg_list")?;
        let lists: Vec<Field> =
            ["tasks", "mg_tasks", "dying_tasks"].into_iter().filter_map(|name| set.optional(name)).collect();
        let hlist = set.field("hlist")?;
        let mut walk = Walk::default();
        let what = "css_set_table";
        let sets = HashTable { what, heads: table, buckets: BUCKETS, link: hlist.offset, limit: MAX_SETS };
        let sets = walk.absorb(sets.walk(self.space()));
        for set in sets {
            for list in &lists {
                let Some(head) = walk.try_or_note(list.of(set)) else { continue };
                let list = List { what: "tasks of a css_set", head, link: link.offset, limit: MAX_TASKS };
                let tasks = walk.absorb(list.walk(self.space()));
                walk.items.extend(tasks);
            }
        }
        Ok(walk)
    }
}
