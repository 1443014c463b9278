//! `kallsyms`: the symbols of the kernel and its modules, as `/proc/kallsyms` lists them. Those of BPF programs, ftrace
//! trampolines and kprobes are not part of it.

use varve_formats::Fault;

use super::table::{Cell, Column, Table, column};
use super::{Filter, View};
use crate::guest::Guest;
use crate::linux::module::ModuleState;
use crate::linux::{Missing, Walk};

/// Rows after which no further module is looked at: a hostile guest can let any number of modules share one huge table.
const MAX_ROWS: usize = 1 << 20;

const COLUMNS: &[Column] = &[
    column("address", "address"),
    column("type", "type as nm prints it"),
    column("name", "name"),
    column("module", "module; null for the kernel itself"),
];

pub(super) const VIEW: View =
    View { name: "kallsyms", summary: "symbols of the kernel and its modules", columns: COLUMNS, run };

fn run(guest: &Guest<'_>, _: &Filter) -> Result<Table, Missing> {
    let mut walk = Walk::default();
    let row = |address, kind: char, name, module| {
        vec![Cell::Address(address), Cell::Text(kind.to_string()), name, module]
    };
    walk.items.extend(
        guest.symbols().map(|symbol| {
            row(symbol.address, symbol.kind, Cell::Text(symbol.name.to_owned()), Cell::Nothing)
        }),
    );
    for module in walk.absorb(guest.modules()?) {
        if walk.items.len() > MAX_ROWS {
            walk.fault(Fault::Limit { what: "symbols", limit: MAX_ROWS as u64, at: module.address.0 });
            break;
        }
        if module.state == ModuleState::Unformed {
            continue;
        }
        for symbol in walk.absorb(guest.module_symbols(&module)?) {
            let of = Cell::Guest(module.name.clone());
            walk.items.push(row(symbol.address, symbol.kind, Cell::Guest(symbol.name), of));
        }
    }
    Ok(Table::new(COLUMNS, walk, |row| row))
}
