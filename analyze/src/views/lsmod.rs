//! `lsmod`: the modules in the kernel's list, as `/proc/modules` lists them.

use super::table::{Cell, Column, Table, column};
use super::{Filter, View};
use crate::guest::Guest;
use crate::linux::Missing;
use crate::linux::module::{Module, ModuleState};

const COLUMNS: &[Column] = &[
    column("name", "name"),
    column("size", "code and data, in bytes"),
    column("refs", "references to it"),
    column("used_by", "modules that use it"),
    column("state", "Live, Loading or Unloading"),
    column("address", "where its code begins"),
    column("taints", "taint bits it brought"),
    column("module", "address of the struct module"),
];

pub(super) const VIEW: View = View { name: "lsmod", summary: "loaded kernel modules", columns: COLUMNS, run };

fn run(guest: &Guest<'_>, _: &Filter) -> Result<Table, Missing> {
    let mut walk = guest.modules()?;
    walk.items.retain(|module| module.state != ModuleState::Unformed);
    Ok(Table::new(COLUMNS, walk, cells))
}

fn cells(module: Module) -> Vec<Cell> {
    let size = module.size();
    vec![
        Cell::Guest(module.name),
        Cell::Number(size.into()),
        Cell::number(module.references),
        Cell::Guests(module.used_by),
        Cell::Text(module.state.name().to_owned()),
        Cell::Address(module.text),
        Cell::Number(module.taints.into()),
        Cell::Address(module.address),
    ]
}
