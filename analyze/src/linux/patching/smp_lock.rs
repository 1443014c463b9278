//! Lock prefixes: dropped while one processor runs, put back when a second one comes up (`alternatives_smp_unlock` and
//! `alternatives_smp_lock`, `arch/x86/kernel/alternative.c`, up to 6.x).

use varve_formats::symbols::btf::Btf;
use varve_formats::{Fault, Gva, VirtualMemory};

use super::site::Kind;
use super::table::{Table, place_relative};
use crate::guest::Guest;
use crate::linux::layout::{Field, Missing, Structure};
use crate::linux::list::List;
use crate::linux::walk::Walk;

/// Modules with lock prefixes at most.
const MAX_MODULES: usize = 1 << 16;

/// Members of `struct smp_alt_module`.
struct SmpAltModuleLayout {
    next: Field,
    locks: Field,
    locks_end: Field,
}

/// The prefixes that may change, in the kernel and in modules.
///
/// They may only while the kernel keeps the list: it starts with one processor of several possible ones
/// (`uniproc_patched`) and ends when a second one comes up. Before or after, or with a single possible processor, the
/// tables are freed memory.
pub(super) fn sites(guest: &Guest<'_>) -> Result<Walk<(Gva, Kind)>, Missing> {
    let mut walk = Walk::default();
    let memory = guest.space();
    let Ok(patched) = guest.symbol("uniproc_patched") else { return Ok(walk) };
    let several = guest.symbol("nr_cpu_ids").map(|at| memory.read_u32(at).map(|count| count > 1));
    let several = walk.try_or_note(several.unwrap_or(Ok(true)));
    let patched = walk.try_or_note(memory.read_u8(patched));
    if patched != Some(1) || several != Some(true) {
        return Ok(walk);
    }
    let head = guest.symbol("smp_alt_modules")?;
    let layout = SmpAltModuleLayout::resolve(guest.btf())?;
    let list = List { what: "smp_alt_modules", head, link: layout.next.offset, limit: MAX_MODULES };
    for module in walk.absorb(list.walk(memory)) {
        let sites = layout.sites(memory, module);
        let sites = walk.try_or_note(sites).unwrap_or_default();
        walk.items.extend(sites);
    }
    Ok(walk)
}

impl SmpAltModuleLayout {
    fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let module = Structure::named(btf, "smp_alt_module")?;
        Ok(Self {
            next: module.field("next")?,
            locks: module.field("locks")?,
            locks_end: module.field("locks_end")?,
        })
    }

    fn sites(&self, memory: &dyn VirtualMemory, module: Gva) -> Result<Vec<(Gva, Kind)>, Fault> {
        let table = Table::between(
            "smp_locks",
            self.locks.pointer(memory, module)?,
            self.locks_end.pointer(memory, module)?,
        )?;
        table.each(memory, 4, |at, entry| Some((place_relative(at, entry, 0)?, Kind::LockPrefix)))
    }
}
