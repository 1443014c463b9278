//! What a view shows: rows of cells under named columns.

use std::fmt;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use varve_formats::{Fault, Gva};

use crate::linux::{GuestString, Walk};

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name: the key in JSON, stable.
    pub name: &'static str,
    /// What stands in it, with its unit.
    pub summary: &'static str,
}

/// Shorthand for the tables of columns.
pub(super) const fn column(name: &'static str, summary: &'static str) -> Column {
    Column { name, summary }
}

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// Could not be read, or does not apply: `null`.
    Nothing,
    /// A number.
    Number(i128),
    /// An address: in JSON a string, `"0x…"`.
    Address(Gva),
    /// Yes or no.
    Flag(bool),
    /// Text of our own.
    Text(String),
    /// A string of the guest's, escaped.
    Guest(GuestString),
    /// Several strings of the guest's: an array in JSON.
    Guests(Vec<GuestString>),
}

impl Cell {
    /// A number, or nothing.
    pub(super) fn number(value: Option<impl Into<i128>>) -> Self {
        value.map_or(Self::Nothing, |value| Self::Number(value.into()))
    }

    /// A string of the guest's, or nothing.
    pub(super) fn guest(value: Option<GuestString>) -> Self {
        value.map_or(Self::Nothing, Self::Guest)
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("-"),
            Self::Number(number) => number.fmt(f),
            Self::Address(address) => address.fmt(f),
            Self::Flag(flag) => f.write_str(if *flag { "yes" } else { "no" }),
            Self::Text(text) => text.fmt(f),
            Self::Guest(text) => text.fmt(f),
            Self::Guests(texts) => {
                for (position, text) in texts.iter().enumerate() {
                    write!(f, "{}{text}", if position == 0 { "" } else { "," })?;
                }
                Ok(())
            }
        }
    }
}

impl Serialize for Cell {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nothing => out.serialize_none(),
            Self::Number(number) => match (i64::try_from(*number), u64::try_from(*number)) {
                (Ok(number), _) => out.serialize_i64(number),
                (_, Ok(number)) => out.serialize_u64(number),
                _ => out.serialize_i128(*number),
            },
            Self::Address(address) => out.collect_str(address),
            Self::Flag(flag) => out.serialize_bool(*flag),
            Self::Text(text) => out.serialize_str(text),
            Self::Guest(text) => text.serialize(out),
            Self::Guests(texts) => texts.serialize(out),
        }
    }
}

/// What a view shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The columns.
    pub columns: &'static [Column],
    /// The rows; each has a cell for every column.
    pub rows: Vec<Vec<Cell>>,
    /// What could not be read, the first of it.
    pub faults: Vec<Fault>,
    /// Whether the view shows everything there is.
    pub complete: bool,
}

impl Table {
    /// The rows of a walk.
    pub(super) fn new<T>(columns: &'static [Column], walk: Walk<T>, cells: impl Fn(T) -> Vec<Cell>) -> Self {
        let rows = walk.items.into_iter().map(cells).collect();
        Self { columns, rows, faults: walk.faults, complete: walk.complete }
    }

    /// The rows with their columns' names, to be serialised.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        self.rows.iter().map(|cells| Record { columns: self.columns, cells })
    }
}

/// A row with the names of its columns. Serialises as a map in the order of the columns.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    columns: &'static [Column],
    cells: &'a [Cell],
}

impl<'a> Record<'a> {
    /// The cell of a column.
    pub fn get(&self, column: &str) -> Option<&'a Cell> {
        self.entries().find(|(name, _)| *name == column).map(|(_, cell)| cell)
    }

    /// Names and cells.
    pub fn entries(&self) -> impl Iterator<Item = (&'static str, &'a Cell)> + use<'a> {
        self.columns.iter().map(|column| column.name).zip(self.cells)
    }
}

impl Serialize for Record<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        let mut map = out.serialize_map(Some(self.cells.len()))?;
        for (name, cell) in self.entries() {
            map.serialize_entry(name, cell)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_serialises_in_the_order_of_its_columns() {
        const COLUMNS: &[Column] =
            &[column("pid", ""), column("task", ""), column("comm", ""), column("uid", "")];
        let mut walk = Walk::default();
        walk.items.push(7u32);
        let table = Table::new(COLUMNS, walk, |pid| {
            let task = Cell::Address(Gva(0xffff_8880_0000_1000));
            vec![Cell::Number(pid.into()), task, Cell::Guest("a\u{1b}".into()), Cell::Nothing]
        });
        let json = serde_json::to_string(&table.records().next().unwrap()).unwrap();
        assert_eq!(json, r#"{"pid":7,"task":"0xffff888000001000","comm":"a\\x1b","uid":null}"#);
        assert_eq!(table.records().next().unwrap().get("pid"), Some(&Cell::Number(7)));
    }

    #[test]
    fn numbers_of_64_bits_of_either_sign_serialise() {
        let json = |number| serde_json::to_string(&Cell::Number(number)).unwrap();
        assert_eq!(json(i128::from(u64::MAX)), "18446744073709551615");
        assert_eq!(json(-1), "-1");
    }

    #[test]
    fn cells_show_what_a_person_reads() {
        let shown = |cell: Cell| cell.to_string();
        assert_eq!(shown(Cell::Nothing), "-");
        assert_eq!(shown(Cell::Flag(true)), "yes");
        assert_eq!(shown(Cell::Guests(vec!["a".into(), "b".into()])), "a,b");
        assert_eq!(shown(Cell::Address(Gva(0x1000))), "0x1000");
    }
}
