//! Views: what a responder lists, one file each. They bear the names of the same lists in Volatility 3.

mod kallsyms;
mod lsmod;
mod maps;
mod pidhashtable;
mod psaux;
mod pslist;
mod pstree;
mod table;

pub use table::{Cell, Column, Record, Table};

use crate::guest::Guest;
use crate::linux::{Missing, Task, Walk};

/// Which rows to show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only this process (thread group).
    pub pid: Option<u32>,
}

impl Filter {
    /// Whether rows about `task` are shown.
    pub fn admits(&self, task: &Task) -> bool {
        self.pid.is_none_or(|pid| pid == task.tgid)
    }
}

/// A view.
#[derive(Clone, Copy, Debug)]
pub struct View {
    /// Its name, stable.
    pub name: &'static str,
    /// What it lists, in one line.
    pub summary: &'static str,
    /// Its columns.
    pub columns: &'static [Column],
    /// Lists it. Fails with what the kernel does not have or describe.
    pub run: fn(&Guest<'_>, &Filter) -> Result<Table, Missing>,
}

/// Every view, in the order they are listed.
pub static VIEWS: &[View] =
    &[pslist::VIEW, pstree::VIEW, psaux::VIEW, pidhashtable::VIEW, maps::VIEW, lsmod::VIEW, kallsyms::VIEW];

/// The view called `name`.
pub fn named(name: &str) -> Option<&'static View> {
    VIEWS.iter().find(|view| view.name == name)
}

/// The processes in the task list that the filter admits.
fn processes(guest: &Guest<'_>, filter: &Filter) -> Result<Walk<Task>, Missing> {
    let mut walk = guest.processes()?;
    walk.items.retain(|task| filter.admits(task));
    Ok(walk)
}
