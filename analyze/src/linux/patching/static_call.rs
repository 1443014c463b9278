//! Static calls: `struct static_call_site` and `struct static_call_key` (`include/linux/static_call_types.h`).

use std::collections::HashMap;

use varve_formats::symbols::btf::Btf;
use varve_formats::{Fault, Gva, VirtualMemory};

use super::insn::BRANCH32_LEN;
use super::site::Kind;
use super::table::{Table, place_relative};
use crate::guest::Guest;
use crate::linux::layout::{Field, Missing, Structure};

/// `STATIC_CALL_SITE_TAIL`: the site is a jump. The other flag says that it lies in an init section.
const TAIL: u64 = 1;
const FLAGS: u64 = 3;

/// Prefixes of the trampoline and the key of one static call.
const TRAMPOLINE_PREFIX: &str = "__SCT__";
const KEY_PREFIX: &str = "__SCK__";

/// Members of `struct static_call_site` and `struct static_call_key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StaticCallLayout {
    site_size: u64,
    address: Field,
    key: Field,
    function: Field,
}

/// What the static calls of one epoch call: `static_call_key.func` by the address of the key.
#[derive(Default)]
pub(super) struct Functions {
    by_key: HashMap<u64, Option<Gva>>,
}

impl StaticCallLayout {
    pub(super) fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let site = Structure::named(btf, "static_call_site")?;
        Ok(Self {
            site_size: site.size()?,
            address: site.field("addr")?,
            key: site.field("key")?,
            function: Structure::named(btf, "static_call_key")?.field("func")?,
        })
    }

    /// Bytes of one `struct static_call_site`.
    pub(super) const fn site_size(&self) -> u64 {
        self.site_size
    }

    /// The sites of a table, read from `tables`, with the functions that their keys have in `now`.
    pub(super) fn sites(
        &self,
        tables: &dyn VirtualMemory,
        table: &Table,
        now: &dyn VirtualMemory,
        functions: &mut Functions,
    ) -> Result<Vec<(Gva, Kind)>, Fault> {
        let offset = |field: Field| usize::try_from(field.offset).unwrap_or(usize::MAX);
        let (address, key) = (offset(self.address), offset(self.key));
        let places = table.each(tables, self.site_size, |at, entry| {
            Some((place_relative(at, entry, address)?, place_relative(at, entry, key)?))
        })?;
        places
            .into_iter()
            .map(|(site, key)| {
                let function = self.function(now, Gva(key.0 & !FLAGS), functions)?;
                Ok((site, Kind::StaticCall { function, tail: key.0 & TAIL != 0 }))
            })
            .collect()
    }

    /// The trampolines in the kernel image, by their symbols. (`__SCK__` symbols need `CONFIG_KALLSYMS_ALL`, as does all
    /// of this; a trampoline whose key is not listed is not a site.)
    pub(super) fn trampolines(
        &self,
        guest: &Guest<'_>,
        functions: &mut Functions,
    ) -> Result<Vec<(Gva, Kind)>, Fault> {
        let mut sites = Vec::new();
        for symbol in guest.symbols() {
            let Some(name) = symbol.name.strip_prefix(TRAMPOLINE_PREFIX) else { continue };
            let Ok(key) = guest.symbol(&format!("{KEY_PREFIX}{name}")) else { continue };
            let function = self.function(guest.space(), key, functions)?;
            sites.push((symbol.address, Kind::Trampoline { function }));
        }
        Ok(sites)
    }

    fn function(
        &self,
        now: &dyn VirtualMemory,
        key: Gva,
        known: &mut Functions,
    ) -> Result<Option<Gva>, Fault> {
        if let Some(function) = known.by_key.get(&key.0) {
            return Ok(*function);
        }
        let function = self.function.pointer_or_null(now, key)?;
        known.by_key.insert(key.0, function);
        Ok(function)
    }
}

impl Functions {
    /// Every function that is called through a static call, sorted.
    pub(super) fn all(&self) -> Vec<Gva> {
        let mut all: Vec<Gva> = self.by_key.values().copied().flatten().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// The trampolines in the code of a module that stands at `start`. They have no symbols that can be relied on; the
/// instruction behind their jump is found nowhere else (`tramp_ud`, `arch/x86/kernel/static_call.c`).
pub(super) fn trampolines_in(start: Gva, code: &[u8]) -> Vec<(Gva, Kind)> {
    /// `ud1 %esp, %ecx`.
    const MARK: [u8; 3] = [0x0f, 0xb9, 0xcc];
    let marks = code.windows(MARK.len()).enumerate().filter(|(_, bytes)| **bytes == MARK);
    let jumps = marks.filter_map(|(offset, _)| offset.checked_sub(BRANCH32_LEN));
    jumps.map(|offset| (Gva(start.0.wrapping_add(offset as u64)), Kind::ModuleTrampoline)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Sparse;

    #[test]
    fn trampolines_are_known_by_their_mark() {
        let code = [0x90, 0xe9, 1, 2, 3, 4, 0x0f, 0xb9, 0xcc, 0x0f, 0xb9];
        assert_eq!(trampolines_in(Gva(0x1000), &code), [(Gva(0x1001), Kind::ModuleTrampoline)]);
        assert_eq!(trampolines_in(Gva(0x1000), &[0x0f, 0xb9, 0xcc]), []);
    }

    #[test]
    fn a_site_calls_what_its_key_says_in_the_epoch_at_hand() {
        let mut tables = Sparse::default();
        tables.write_u32(0x2000, (-0x1000i32).cast_unsigned());
        tables.write_u32(0x2004, 0xffc | 1);
        let mut now = Sparse::default();
        now.write_u64(0x3000, 0xffff_ffff_8100_0000);
        let field = |offset, size| Field { offset, size };
        let layout =
            StaticCallLayout { site_size: 8, address: field(0, 4), key: field(4, 4), function: field(0, 8) };
        let table = Table { what: ".static_call_sites", start: Gva(0x2000), len: 8 };
        let mut functions = Functions::default();
        let function = Some(Gva(0xffff_ffff_8100_0000));
        let sites = layout.sites(&tables, &table, &now, &mut functions).unwrap();
        assert_eq!(sites, [(Gva(0x1000), Kind::StaticCall { function, tail: true })]);
        assert_eq!(functions.all(), [Gva(0xffff_ffff_8100_0000)]);
        assert!(layout.sites(&tables, &table, &Sparse::default(), &mut Functions::default()).is_err());
    }
}
