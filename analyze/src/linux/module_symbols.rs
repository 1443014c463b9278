//! `struct mod_kallsyms`: the symbol table of a module (`include/linux/module.h`, `kernel/module/kallsyms.c`).

use std::collections::HashSet;

use varve_formats::symbols::btf::Btf;
use varve_formats::{Fault, Gva, VirtualMemory};

use super::layout::{Field, Missing, Structure};
use super::module::Module;
use super::string::GuestString;
use super::walk::Walk;
use crate::guest::Guest;

/// Symbols of one module at most. The largest in-tree module, amdgpu, has about 60,000.
const MAX_SYMBOLS: u64 = 1 << 20;
/// Bytes of a name at most (`KSYM_NAME_LEN` is 512).
const MAX_NAME_BYTES: usize = 512;
/// Bytes of an `Elf64_Sym` (the ELF specification).
const ELF_SYMBOL_BYTES: u64 = 24;

/// Members of `struct mod_kallsyms` and what else describes the symbols of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModuleSymbolsLayout {
    /// Array of `Elf64_Sym`.
    pub table: Field,
    /// Number of its entries.
    pub count: Field,
    /// Names.
    pub names: Field,
    /// Type characters, one for each entry.
    pub types: Field,
    /// Exported symbols.
    pub exports: Option<ExportsLayout>,
}

/// Members that lead to the symbols a module exports to all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportsLayout {
    /// `module.syms`, array of `struct kernel_symbol`.
    pub table: Field,
    /// `module.num_syms`.
    pub count: Field,
    /// Bytes of an entry.
    pub entry_bytes: u64,
    /// Distance from this member to the symbol.
    pub value_offset: Field,
    /// Distance from this member to its name.
    pub name_offset: Field,
}

/// A symbol of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleSymbol {
    /// Its address.
    pub address: Gva,
    /// Its type as `nm` prints it; in upper case when all modules may use it.
    pub kind: char,
    /// Its name.
    pub name: GuestString,
}

impl ModuleSymbolsLayout {
    pub(super) fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let kallsyms = Structure::named(btf, "mod_kallsyms")?;
        Ok(Self {
            table: kallsyms.field("symtab")?,
            count: kallsyms.field("num_symtab")?,
            names: kallsyms.field("strtab")?,
            types: kallsyms.field("typetab")?,
            exports: ExportsLayout::resolve(btf).ok(),
        })
    }
}

impl ExportsLayout {
    fn resolve(btf: &Btf) -> Result<Self, Missing> {
        let module = Structure::named(btf, "module")?;
        let symbol = Structure::named(btf, "kernel_symbol")?;
        Ok(Self {
            table: module.field("syms")?,
            count: module.field("num_syms")?,
            entry_bytes: symbol.size()?,
            value_offset: symbol.field("value_offset")?,
            name_offset: symbol.field("name_offset")?,
        })
    }

    /// Addresses and names of what the module exports.
    fn read(&self, memory: &dyn VirtualMemory, module: Gva) -> Result<HashSet<(Gva, GuestString)>, Fault> {
        let table = self.table.pointer(memory, module)?;
        let count = bounded(self.count.read(memory, module)?, module)?;
        let follow = |field: Field, entry: Gva| {
            let at = field.of(entry)?;
            let distance = field.read_u32(memory, entry)?.cast_signed();
            at.checked_add_signed(distance.into()).ok_or(Fault::Overflow { at: at.0 })
        };
        (0..count)
            .map(|index| {
                let entry =
                    table.checked_add(index * self.entry_bytes).ok_or(Fault::Overflow { at: table.0 })?;
                let name = GuestString::read(memory, follow(self.name_offset, entry)?, MAX_NAME_BYTES)?;
                Ok((follow(self.value_offset, entry)?, name))
            })
            .collect()
    }
}

impl Guest<'_> {
    /// The symbols of a module that have a name, in the order of its table.
    ///
    /// # Errors
    /// What this kernel does not describe.
    pub fn module_symbols(&self, module: &Module) -> Result<Walk<ModuleSymbol>, Missing> {
        let layout = self.layouts().module_symbols.as_ref().map_err(Clone::clone)?;
        let mut walk = Walk::default();
        let Some(kallsyms) = module.kallsyms else { return Ok(walk) };
        let exports = layout.exports.map(|exports| exports.read(self.space(), module.address));
        let exports = exports.and_then(|exports| walk.try_or_note(exports)).unwrap_or_default();
        let table = Table::read(self.space(), layout, kallsyms);
        let Some(table) = walk.try_or_note(table) else { return Ok(walk) };
        for (entry, kind) in table.symbols.as_chunks().0.iter().zip(&table.types) {
            let symbol = table.symbol(self.space(), *entry, *kind);
            match symbol {
                Ok(symbol) if symbol.name.is_empty() => {}
                Ok(mut symbol) => {
                    if exports.contains(&(symbol.address, symbol.name.clone())) {
                        symbol.kind = symbol.kind.to_ascii_uppercase();
                    }
                    walk.items.push(symbol);
                }
                Err(fault) => walk.fault(fault),
            }
        }
        Ok(walk)
    }
}

/// The arrays of a `struct mod_kallsyms`.
struct Table {
    symbols: Vec<u8>,
    types: Vec<u8>,
    names: Gva,
}

impl Table {
    fn read(memory: &dyn VirtualMemory, layout: &ModuleSymbolsLayout, at: Gva) -> Result<Self, Fault> {
        let count = bounded(layout.count.read(memory, at)?, at)?;
        let array = |field: Field, entry_bytes: u64| {
            let mut bytes = vec![0; (count * entry_bytes) as usize];
            memory.read(field.pointer(memory, at)?, &mut bytes)?;
            Ok(bytes)
        };
        Ok(Self {
            symbols: array(layout.table, ELF_SYMBOL_BYTES)?,
            types: array(layout.types, 1)?,
            names: layout.names.pointer(memory, at)?,
        })
    }

    /// `Elf64_Sym`: name at 0, value at 8.
    fn symbol(
        &self,
        memory: &dyn VirtualMemory,
        entry: [u8; ELF_SYMBOL_BYTES as usize],
        kind: u8,
    ) -> Result<ModuleSymbol, Fault> {
        let [n0, n1, n2, n3, _, _, _, _, value @ .., _, _, _, _, _, _, _, _] = entry;
        let name = u32::from_le_bytes([n0, n1, n2, n3]);
        let name = self.names.checked_add(name.into()).ok_or(Fault::Overflow { at: self.names.0 })?;
        Ok(ModuleSymbol {
            address: Gva(u64::from_le_bytes(value)),
            kind: char::from(kind).to_ascii_lowercase(),
            name: GuestString::read(memory, name, MAX_NAME_BYTES)?,
        })
    }
}

/// A count of symbols, if it can be one.
fn bounded(count: u64, at: Gva) -> Result<u64, Fault> {
    if count > MAX_SYMBOLS {
        return Err(Fault::Limit { what: "symbols of a module", limit: MAX_SYMBOLS, at: at.0 });
    }
    Ok(count)
}
