//! `hidden_module`: modules that one part of the kernel knows and another does not.
//!
//! A module in use is in the list of modules, in sysfs, in the tree that maps addresses to modules, and in memory: its
//! `struct module` lies in its own data, in the part of the address space that only modules and generated code use. One that
//! is missing from the list, or from sysfs, hides. Executable memory there that nothing accounts for is told as well; it
//! does not make an epoch bad, because some generated code has no register.
//!
//! Not findings: modules that are being loaded or unloaded (state unformed), which come and go from the lists one by one.

mod carve;
mod orphans;

use std::collections::BTreeMap;

use varve_formats::{Fault, Gva};

use super::{Scan, ScanInput, evidence};
use crate::finding::{Evidence, Finding, Report, Severity};
use crate::guest::Guest;
use crate::linux::module::{Module, ModuleLayout, ModuleState};
use crate::linux::walk::Walk;

pub(super) const SCAN: Scan = Scan {
    name: "hidden_module",
    summary: "kernel modules that are missing from a list they belong in",
    run,
};

/// Findings of one report at most.
const MAX_FINDINGS: usize = 256;

/// What shows a module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    list: bool,
    sysfs: bool,
    tree: bool,
    memory: bool,
}

/// Which of them were seen to their end.
#[derive(Clone, Copy, Debug)]
struct Complete {
    list: bool,
    sysfs: bool,
}

fn run(input: &ScanInput<'_>) -> Report {
    let guest = input.guest;
    let mut report = Report::done();
    let layout = match &guest.layouts().module {
        Ok(layout) => layout,
        Err(missing) => return Report::impossible("modules", missing.clone()),
    };
    let mut modules: BTreeMap<Gva, (Module, Seen)> = BTreeMap::new();
    let listed = report.try_or_note("module list", guest.modules()).unwrap_or_default();
    let mut complete = Complete { list: listed.complete, sysfs: false };
    for module in report.absorb("module list", Ok(listed)) {
        modules.entry(module.address).or_insert((module, Seen::default())).1.list = true;
    }
    if let Some(sysfs) = report.try_or_note("modules in sysfs", guest.modules_in_sysfs()) {
        complete.sysfs = sysfs.complete;
        add(guest, layout, &mut modules, "modules in sysfs", sysfs, |seen| &mut seen.sysfs, &mut report);
    }
    if let Some(tree) = report.try_or_note("mod_tree", guest.modules_in_tree()).flatten() {
        add(guest, layout, &mut modules, "mod_tree", tree, |seen| &mut seen.tree, &mut report);
    }
    let known: Vec<&Module> = modules.values().map(|(module, _)| module).collect();
    let (carved, orphans) = carve::search(guest, layout, &known, &mut report);
    let carved = Walk { items: carved, ..Walk::default() };
    add(guest, layout, &mut modules, "module memory", carved, |seen| &mut seen.memory, &mut report);
    for (module, seen) in modules.values() {
        judge(guest, layout, module, *seen, complete, &mut report);
    }
    orphans::report(guest, orphans, modules.values().map(|(module, _)| module), &mut report);
    report
}

/// Enters the modules that a view shows.
fn add(
    guest: &Guest<'_>,
    layout: &ModuleLayout,
    modules: &mut BTreeMap<Gva, (Module, Seen)>,
    what: &str,
    view: Walk<Gva>,
    flag: fn(&mut Seen) -> &mut bool,
    report: &mut Report,
) {
    let mut walk = Walk::default();
    for address in walk.absorb(view) {
        if let Some((_, seen)) = modules.get_mut(&address) {
            *flag(seen) = true;
        } else {
            let module = guest.module_at(address, layout, &mut walk);
            walk.push(module);
        }
    }
    for module in report.absorb(what, Ok(walk)) {
        let (_, seen) = modules.entry(module.address).or_insert((module, Seen::default()));
        *flag(seen) = true;
    }
}

/// What is wrong with a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    /// It is in use and not listed.
    Unlisted,
    /// It is in use and not in sysfs.
    NotInSysfs,
    /// It is not listed, and says of itself that it is being set up or taken down. True of an honest module for an
    /// instant.
    Unclear,
}

fn problem(state: ModuleState, seen: Seen, complete: Complete) -> Option<Problem> {
    match state {
        ModuleState::Unformed if !seen.list && complete.list => Some(Problem::Unclear),
        ModuleState::Unformed => None,
        _ if !seen.list && complete.list => Some(Problem::Unlisted),
        ModuleState::Live if !seen.sysfs && complete.sysfs => Some(Problem::NotInSysfs),
        _ => None,
    }
}

fn judge(
    guest: &Guest<'_>,
    layout: &ModuleLayout,
    module: &Module,
    seen: Seen,
    complete: Complete,
    report: &mut Report,
) {
    let name = &module.name;
    let Some(problem) = problem(module.state, seen, complete) else { return };
    if report.findings.len() == MAX_FINDINGS {
        let limit = Fault::Limit { what: "findings", limit: MAX_FINDINGS as u64, at: module.address.0 };
        return report.fault("modules", limit);
    }
    let title = match problem {
        Problem::Unlisted => format!(
            "Module {name} is hidden: it is missing from the module list and known to {}",
            names(seen)
        ),
        Problem::NotInSysfs => format!("Module {name} is hidden from /sys/module"),
        Problem::Unclear => {
            let reason = "is in no list, as if it were just being loaded or unloaded".to_owned();
            return report.fault(format!("module {name}"), reason);
        }
    };
    report.findings.push(Finding {
        scan: SCAN.name,
        severity: Severity::High,
        title,
        object: format!("module:{name}:{}", module.address),
        evidence: links(guest, module, layout),
        attack: &["T1014", "T1547.006"],
    });
}

fn names(seen: Seen) -> String {
    let views = [(seen.sysfs, "sysfs"), (seen.tree, "the address tree"), (seen.memory, "memory")];
    let names: Vec<&str> = views.into_iter().filter(|(seen, _)| *seen).map(|(_, name)| name).collect();
    names.join(", ")
}

/// What the module's former neighbour in the list points to instead of it, and its own links there.
fn links(guest: &Guest<'_>, module: &Module, layout: &ModuleLayout) -> Vec<Evidence> {
    let Ok(node) = layout.list.of(module.address) else { return Vec::new() };
    super::list_evidence(guest, node)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPLETE: Complete = Complete { list: true, sysfs: true };
    const NOWHERE: Seen = Seen { list: false, sysfs: false, tree: false, memory: false };

    #[test]
    fn a_module_in_use_is_listed_and_in_sysfs() {
        let everywhere = Seen { list: true, sysfs: true, tree: true, memory: false };
        assert_eq!(problem(ModuleState::Live, everywhere, COMPLETE), None);
        let unlinked = Seen { list: false, ..everywhere };
        assert_eq!(problem(ModuleState::Live, unlinked, COMPLETE), Some(Problem::Unlisted));
        let no_sysfs = Seen { sysfs: false, ..everywhere };
        assert_eq!(problem(ModuleState::Live, no_sysfs, COMPLETE), Some(Problem::NotInSysfs));
        let only_memory = Seen { memory: true, ..NOWHERE };
        assert_eq!(problem(ModuleState::Unknown(9), only_memory, COMPLETE), Some(Problem::Unlisted));
    }

    #[test]
    fn what_comes_and_goes_is_no_finding() {
        let listed = Seen { list: true, ..NOWHERE };
        assert_eq!(problem(ModuleState::Coming, listed, COMPLETE), None);
        assert_eq!(problem(ModuleState::Going, listed, COMPLETE), None);
        assert_eq!(problem(ModuleState::Unformed, listed, COMPLETE), None);
        let in_memory = Seen { memory: true, ..NOWHERE };
        assert_eq!(problem(ModuleState::Unformed, in_memory, COMPLETE), Some(Problem::Unclear));
    }

    #[test]
    fn a_view_that_broke_off_proves_nothing() {
        let broken = Complete { list: false, sysfs: false };
        assert_eq!(problem(ModuleState::Live, Seen { tree: true, ..NOWHERE }, broken), None);
    }
}
