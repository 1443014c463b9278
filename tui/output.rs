//! Results on standard output: aligned tables for people, JSON Lines for programs.

use std::io::{self, BufWriter, Write};

use serde::Serialize;

/// Standard output, in the form the user asked for.
pub(crate) struct Output {
    out: BufWriter<Box<dyn Write + Send>>,
    json: bool,
}

impl Output {
    /// Output as JSON Lines or for people.
    pub(crate) fn new(json: bool) -> Self {
        Self { out: BufWriter::new(Box::new(io::stdout())), json }
    }

    /// The same on standard error, for commands whose standard output is somebody else's.
    pub(crate) fn aside(json: bool) -> Self {
        Self { out: BufWriter::new(Box::new(io::stderr())), json }
    }

    /// Whether the user asked for JSON Lines.
    pub(crate) const fn is_json(&self) -> bool {
        self.json
    }

    /// Writes one JSON line.
    pub(crate) fn line(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, value)?;
        self.out.write_all(b"\n")
    }

    /// Writes one line of text. Control characters, which may come from a guest, are escaped.
    pub(crate) fn text(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{}", printable(text))
    }

    /// Writes an aligned table.
    pub(crate) fn table(&mut self, table: &Table) -> io::Result<()> {
        table.write(&mut self.out)
    }

    /// Sends what is buffered on its way, so that a reader sees a result when it exists.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Where a column's cells stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Rows under headings. Every cell is made printable: it may hold what a guest wrote.
pub(crate) struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table. A heading that ends in `>` is aligned right.
    pub(crate) fn new(headings: &[&str]) -> Self {
        let column = |heading: &&str| match heading.strip_suffix('>') {
            Some(name) => (name.to_owned(), Align::Right),
            None => ((*heading).to_owned(), Align::Left),
        };
        Self { columns: headings.iter().map(column).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let heads: Vec<String> = self.columns.iter().map(|(name, _)| name.clone()).collect();
        let width = |index: usize| {
            let cells = std::iter::once(&heads).chain(&self.rows).filter_map(|row| row.get(index));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        for row in std::iter::once(&heads).chain(&self.rows) {
            let mut line = String::new();
            for ((cell, width), (_, align)) in row.iter().zip(&widths).zip(&self.columns) {
                let gap = " ".repeat(width.saturating_sub(cell.chars().count()));
                let (before, behind) =
                    if *align == Align::Right { (gap.as_str(), "") } else { ("", gap.as_str()) };
                line.extend([before, cell, behind, "  "]);
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// `text` with control and bidirectional-override characters as `\u{…}` escapes, so that a guest's string cannot move
/// a terminal's cursor or hide text.
pub(crate) fn printable(text: &str) -> String {
    let dangerous = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    if !text.contains(dangerous) {
        return text.to_owned();
    }
    text.chars().map(|c| if dangerous(c) { c.escape_unicode().to_string() } else { c.to_string() }).collect()
}

/// A number of bytes as people read it: `37.4 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = "KiB";
    for next in UNITS.iter().skip(1) {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_wrote_cannot_drive_the_terminal() {
        assert_eq!(printable("plain ünicode"), "plain ünicode");
        assert_eq!(printable("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\u{a}");
        assert_eq!(printable("x\u{202e}y"), "x\\u{202e}y");
    }

    #[test]
    fn tables_align_and_do_not_trail_spaces() {
        let mut table = Table::new(&["pid>", "comm"]);
        table.row(["1".into(), "systemd".into()]);
        table.row(["4242".into(), "sh".into()]);
        let mut text = Vec::new();
        table.write(&mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), " pid  comm\n   1  systemd\n4242  sh\n");
    }

    #[test]
    fn bytes_have_units() {
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(5 << 30), "5.0 GiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
    }
}
