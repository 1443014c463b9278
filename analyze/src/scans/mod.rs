//! Scans: pure functions from one epoch of a guest to a [`Report`], one file each.
//!
//! What all of them trust, and cannot check: the first epoch of a boot is what later ones are compared with.

mod baseline;
mod census;
mod hidden_module;
mod hidden_task;
mod idt;
mod kernel_text;
mod process_policy;
mod symbols_changed;
mod syscall_table;
mod tasks;

use varve_formats::{Gva, VirtualMemory};

use crate::finding::Evidence;
use crate::{Report, guest::Guest, policy::Policy};

/// What a scan may look at. It must read nothing else: then its result holds for as long as these bytes do.
pub struct ScanInput<'a> {
    /// The epoch under scan.
    pub guest: &'a Guest<'a>,
    /// The first archived epoch of the same boot, when there is an earlier one: what the kernel looked like then.
    pub baseline: Option<&'a Guest<'a>>,
    /// What the VM's owner allows.
    pub policy: &'a Policy,
}

/// A scan, as `--scan NAME` names it.
pub struct Scan {
    /// Its name, stable.
    pub name: &'static str,
    /// What it looks for, in one line.
    pub summary: &'static str,
    /// Looks.
    pub run: fn(&ScanInput<'_>) -> Report,
}

/// Every scan, in the order they are listed and run.
pub static SCANS: &[Scan] = &[
    process_policy::SCAN,
    hidden_task::SCAN,
    hidden_module::SCAN,
    syscall_table::SCAN,
    idt::SCAN,
    kernel_text::SCAN,
    symbols_changed::SCAN,
];

/// The scan called `name`.
pub fn named(name: &str) -> Option<&'static Scan> {
    SCANS.iter().find(|scan| scan.name == name)
}

/// Evidence at a virtual address of the guest's kernel.
fn evidence(guest: &Guest<'_>, gva: Gva, before: Option<&[u8]>, after: Option<&[u8]>) -> Evidence {
    Evidence {
        gva: Some(gva),
        gpa: guest.space().translate(gva).ok().map(|found| found.gpa),
        before: before.map(<[u8]>::to_vec),
        after: after.map(<[u8]>::to_vec),
    }
}

/// Evidence that the list node at `node` was taken out of its list: what its former neighbour points to instead of it, and its
/// own two pointers.
fn list_evidence(guest: &Guest<'_>, node: Gva) -> Vec<Evidence> {
    let mut found = Vec::new();
    let mut own = [0; 16];
    if guest.space().read(node, &mut own).is_err() {
        return found;
    }
    let (_, [previous]) = own.as_chunks::<8>().0.split_at(1) else { return found };
    let previous = Gva(u64::from_le_bytes(*previous));
    if let Ok(next) = guest.space().read_u64(previous).map(u64::to_le_bytes) {
        let expected = node.0.to_le_bytes();
        if next != expected {
            found.push(evidence(guest, previous, Some(&expected), Some(&next)));
        }
    }
    found.push(evidence(guest, node, None, Some(&own)));
    found
}

/// `symbol+0x1f`: an address as a person finds it again, in any boot.
fn place(guest: &Guest<'_>, address: Gva) -> String {
    match guest.symbol_at(address) {
        Some((symbol, 0)) => symbol.name.to_owned(),
        Some((symbol, offset)) => format!("{}+{offset:#x}", symbol.name),
        None => address.to_string(),
    }
}
