//! `kallsyms`: the kernel's symbols.

use super::table::{Cell, Column, Table, column};
use super::{Filter, View};
use crate::guest::Guest;
use crate::linux::{Missing, Walk};

const COLUMNS: &[Column] = &[
    column("address", "address"),
    column("type", "type as nm prints it"),
    column("name", "name"),
    column("module", "module; null for the kernel itself"),
];

pub(super) const VIEW: View = View { name: "kallsyms", summary: "kernel symbols", columns: COLUMNS, run };

fn run(guest: &Guest<'_>, _: &Filter) -> Result<Table, Missing> {
    let mut walk = Walk::default();
    walk.items.extend(guest.symbols());
    Ok(Table::new(COLUMNS, walk, |symbol| {
        let kind = Cell::Text(symbol.kind.to_string());
        vec![Cell::Address(symbol.address), kind, Cell::Text(symbol.name.to_owned()), Cell::Nothing]
    }))
}
