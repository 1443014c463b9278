//! `maps`: the ranges of memory that processes have, as `/proc/PID/maps` lists them.

use varve_formats::Fault;

use super::table::{Cell, Column, Table, column};
use super::{Filter, View, processes};
use crate::guest::Guest;
use crate::linux::vma::Vma;
use crate::linux::{Missing, Walk};

/// Rows at most, over all processes: a hostile guest can let any number of processes share one huge tree.
const MAX_ROWS: usize = 1 << 20;

const COLUMNS: &[Column] = &[
    column("pid", "process number"),
    column("start", "first address"),
    column("end", "first address behind"),
    column("flags", "read, write, execute; p private or s shared"),
    column("offset", "offset in the file, in bytes"),
    column("dev", "device of the file, major:minor in hexadecimal"),
    column("inode", "number of the file's inode"),
    column("path", "file, or the kernel's name for the range"),
];

pub(super) const VIEW: View =
    View { name: "maps", summary: "memory ranges of processes", columns: COLUMNS, run };

fn run(guest: &Guest<'_>, filter: &Filter) -> Result<Table, Missing> {
    let mut walk = Walk::default();
    for task in walk.absorb(processes(guest, filter)?) {
        let Some(mm) = task.mm.filter(|_| !task.is_kernel_thread()) else { continue };
        if walk.items.len() >= MAX_ROWS {
            walk.fault(Fault::Limit { what: "memory ranges", limit: MAX_ROWS as u64, at: mm.0 });
            break;
        }
        let vmas = walk.absorb(guest.vmas(mm)?);
        walk.items.extend(vmas.into_iter().map(|vma| (task.pid, vma)));
    }
    Ok(Table::new(COLUMNS, walk, cells))
}

fn cells((pid, vma): (u32, Vma)) -> Vec<Cell> {
    let device = vma.device.map(|(major, minor)| Cell::Text(format!("{major:02x}:{minor:02x}")));
    vec![
        Cell::Number(pid.into()),
        Cell::Address(vma.start),
        Cell::Address(vma.end),
        Cell::Text(vma.flags.to_string()),
        Cell::Number(vma.offset.into()),
        device.unwrap_or(Cell::Nothing),
        Cell::number(vma.inode),
        Cell::guest(vma.path),
    ]
}
