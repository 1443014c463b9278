//! Searching the memory of modules for modules that no list has.

use varve_formats::{Gva, PAGE_SIZE, VirtualMemory};

use crate::finding::Report;
use crate::guest::Guest;
use crate::linux::module::{Module, ModuleLayout};
use crate::linux::walk::Walk;

/// Last address of the part of the address space that modules use (`Documentation/arch/x86/x86_64/mm.rst`). It begins
/// behind the kernel image.
const LAST: Gva = Gva(0xffff_ffff_feff_ffff);
/// The image is mapped in pages of this size.
const IMAGE_PAGE_BYTES: u64 = 2 << 20;
/// `struct module` is aligned to cache lines (`include/linux/module.h`).
const ALIGNMENT: usize = 64;
/// Bytes of a name at most, and what it consists of.
const MAX_NAME_BYTES: usize = 56;

/// Looks at every page there that belongs to none of the `known` modules. Returns the modules found in them, and the
/// executable pages.
pub(super) fn search(
    guest: &Guest<'_>,
    layout: &ModuleLayout,
    known: &[&Module],
    report: &mut Report,
) -> (Vec<Gva>, Vec<Gva>) {
    let (mut modules, mut executable) = (Vec::new(), Vec::new());
    let Some(end) = report.try_or_note("module memory", guest.symbol("_end")) else {
        return (modules, executable);
    };
    let first = Gva(end.0.next_multiple_of(IMAGE_PAGE_BYTES));
    let owned = PageSet::of(known);
    for mapping in guest.space().mappings(first, LAST) {
        let Some(mapping) = report.try_or_note("module memory", mapping) else { continue };
        let pages = (1u64 << mapping.page_shift) / PAGE_SIZE as u64;
        for page in (0..pages).map(|page| Gva(mapping.gva.0.wrapping_add(page * PAGE_SIZE as u64))) {
            if page < first || page > LAST || owned.contains(page) {
                continue;
            }
            if mapping.access.executable {
                executable.push(page);
            } else {
                search_page(guest, layout, page, &mut modules, report);
            }
        }
    }
    (modules, executable)
}

fn search_page(
    guest: &Guest<'_>,
    layout: &ModuleLayout,
    page: Gva,
    modules: &mut Vec<Gva>,
    report: &mut Report,
) {
    let mut bytes = [0; PAGE_SIZE];
    if report.try_or_note("module memory", guest.space().read(page, &mut bytes)).is_none() {
        return;
    }
    for offset in (0..PAGE_SIZE).step_by(ALIGNMENT) {
        let candidate = Gva(page.0.wrapping_add(offset as u64));
        let head = bytes.get(offset..).unwrap_or_default();
        if may_begin(layout, head) && is_module(guest, layout, candidate) {
            modules.push(candidate);
        }
    }
}

/// Whether these bytes may be the beginning of a `struct module`: a state, and behind it a name.
fn may_begin(layout: &ModuleLayout, head: &[u8]) -> bool {
    let at = |offset: u64, len: usize| {
        let offset = usize::try_from(offset).ok()?;
        head.get(offset..offset.checked_add(len)?)
    };
    let state = at(layout.state.offset, 4).is_none_or(|state| matches!(state, [0..=3, 0, 0, 0]));
    let name = at(layout.name.offset, 1).is_none_or(|name| name.iter().all(u8::is_ascii_graphic));
    state && name
}

/// Whether there is a module: it lies in its own memory, has a name, and code that can be executed.
fn is_module(guest: &Guest<'_>, layout: &ModuleLayout, candidate: Gva) -> bool {
    let Ok(module) = guest.module_at(candidate, layout, &mut Walk::<Module>::default()) else { return false };
    let name = module.name.as_bytes();
    let named = (1..=MAX_NAME_BYTES).contains(&name.len()) && name.iter().all(u8::is_ascii_graphic);
    let executable = || guest.space().translate(module.text).is_ok_and(|found| found.access.executable);
    named && module.contains(candidate) && executable()
}

/// The pages of some modules.
struct PageSet {
    /// First and last page of each region, ascending.
    regions: Vec<(u64, u64)>,
}

impl PageSet {
    fn of(modules: &[&Module]) -> Self {
        let page = |address: u64| address / PAGE_SIZE as u64;
        let regions = modules.iter().flat_map(|module| &module.regions);
        let mut regions: Vec<_> = regions
            .map(|region| {
                (page(region.start.0), page(region.start.0.saturating_add(region.len.saturating_sub(1))))
            })
            .collect();
        regions.sort_unstable();
        Self { regions }
    }

    /// Regions of honest modules do not overlap; where they do, a page may be looked at for nothing.
    fn contains(&self, address: Gva) -> bool {
        let page = address.0 / PAGE_SIZE as u64;
        let behind = self.regions.partition_point(|(first, _)| *first <= page);
        behind.checked_sub(1).and_then(|last| self.regions.get(last)).is_some_and(|(_, last)| page <= *last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::module::{ModuleRegion, ModuleState};

    fn module(regions: &[(u64, u64)]) -> Module {
        Module {
            address: Gva(0),
            name: "test".into(),
            state: ModuleState::Live,
            text: Gva(0),
            regions: regions
                .iter()
                .map(|(start, len)| ModuleRegion { start: Gva(*start), len: *len })
                .collect(),
            references: None,
            used_by: Vec::new(),
            taints: 0,
            kallsyms: None,
        }
    }

    #[test]
    fn a_region_owns_every_page_it_touches() {
        let (one, other) = (module(&[(0x3000, 0x1001), (0x1000, 1)]), module(&[(0x8800, 0x10)]));
        let owned = PageSet::of(&[&one, &other]);
        let pages: Vec<u64> = (0..10).filter(|page| owned.contains(Gva(page * 0x1000))).collect();
        assert_eq!(pages, [1, 3, 4, 8]);
        assert!(!PageSet::of(&[]).contains(Gva(0)));
    }
}
