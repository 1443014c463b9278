//! Scans: pure functions from one epoch of a guest to a [`Report`], one file each.

use crate::{guest::Guest, policy::Policy, Report};

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
pub static SCANS: &[Scan] = &[];

/// The scan called `name`.
pub fn named(name: &str) -> Option<&'static Scan> {
    SCANS.iter().find(|scan| scan.name == name)
}
