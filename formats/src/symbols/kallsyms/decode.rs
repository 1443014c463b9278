//! From the tables to symbols: trying each place and each encoding until the addresses make sense.

use std::sync::OnceLock;

use crate::symbols::linear::{KERNEL_IMAGE_BYTES, KERNEL_MAP};
use crate::{Gva, VirtualMemory};

use super::addresses::{self, Candidate, Form};
use super::layout::Layout;
use super::names::{Extent, Names};
use super::tokens::{INDEX_BYTES, Tokens};
use super::{Hints, Kallsyms, KallsymsError, Table, search};

/// Of how many symbols at least one may be out of order before the addresses count as misread.
const MIN_SYMBOLS_PER_DISORDER: usize = 64;

impl Kallsyms {
    /// Decodes the tables at the hinted addresses or, where these are missing or wrong, wherever the search window
    /// holds them.
    ///
    /// Each encoding is tried. It is accepted when addresses ascend, `_stext` (or `_text`) is readable, lies in the
    /// kernel image below the tables and agrees with its hint or, without one, `linux_banner` reads as a banner, and
    /// `init_task`, where it is listed, lies in the image.
    ///
    /// # Errors
    /// The failure of the last place tried; of the hinted one when the search finds nothing.
    pub fn decode(memory: &dyn VirtualMemory, hints: &Hints) -> Result<Self, KallsymsError> {
        let hinted = Layout::hinted(memory, hints)
            .map(|layout| layout.and_then(|layout| Self::decode_at(memory, &layout, hints)));
        let mut failure = match hinted {
            Some(Ok(kallsyms)) => return Ok(kallsyms),
            Some(Err(error)) => Some(error),
            None => None,
        };
        let Some((start, len)) = hints.window else { return Err(failure.unwrap_or(KallsymsError::NoHint)) };
        for layout in search::layouts(memory, start, len) {
            match Self::decode_at(memory, &layout, hints) {
                Ok(kallsyms) => return Ok(kallsyms),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or(KallsymsError::NotFound { start, len }))
    }

    fn decode_at(memory: &dyn VirtualMemory, layout: &Layout, hints: &Hints) -> Result<Self, KallsymsError> {
        let tokens = Tokens::read(memory, layout.token_table, layout.token_index)?;
        let (bytes, extent) = layout.read_names(memory)?;
        let names = Names::expand(&bytes, layout.count as usize, extent.length, &tokens, layout.names)?;
        let anchors = Anchors::find(&names);
        for candidate in addresses::candidates(layout, hints) {
            let accepted = candidate
                .decode(memory, layout)
                .into_iter()
                .find(|decoded| anchors.plausible(memory, &decoded.addresses, layout, hints));
            if let Some(decoded) = accepted {
                let tables = tables(memory, layout, &extent, &candidate);
                let (addresses, order) = sorted(decoded.addresses);
                let by_name = OnceLock::new();
                return Ok(Self { encoding: decoded.encoding, names, addresses, order, tables, by_name });
            }
        }
        Err(KallsymsError::NoEncoding { symbols: names.len(), at: layout.names })
    }
}

/// Addresses in order, and which entry each came from when that is not plain.
fn sorted(addresses: Vec<u64>) -> (Vec<u64>, Vec<u32>) {
    if addresses.is_sorted() {
        return (addresses, Vec::new());
    }
    let mut pairs: Vec<(u64, u32)> = addresses.into_iter().zip(0..).collect();
    pairs.sort_unstable();
    pairs.into_iter().unzip()
}

fn tables(memory: &dyn VirtualMemory, layout: &Layout, extent: &Extent, from: &Candidate) -> Vec<Table> {
    let offset = |bytes: usize| Gva(layout.names.0.wrapping_add(bytes as u64));
    let table = |name, start, len| Table { name, start, len };
    let entries = if matches!(from.form, Form::Absolute) { "addresses" } else { "offsets" };
    let mut tables = vec![
        table("num_syms", layout.num_syms, 4),
        table("names", layout.names, extent.names_end as u64),
        table("markers", offset(extent.markers), (extent.markers_end - extent.markers) as u64),
        table("token_table", layout.token_table, layout.token_index.0.wrapping_sub(layout.token_table.0)),
        table("token_index", layout.token_index, INDEX_BYTES as u64),
        table(entries, from.table, from.len(layout)),
    ];
    let mut end = Gva(from.table.0.wrapping_add(from.len(layout)));
    if let Form::Based(base) = from.form {
        tables.push(table("relative_base", base, 8));
        end = Gva(base.0.wrapping_add(8));
    }
    if let Some(seqs) = layout.seqs(memory, extent, end) {
        tables.push(table("seqs_of_names", seqs, layout.seqs_len()));
    }
    tables.sort_unstable_by_key(|table| table.start);
    tables
}

/// Symbols whose addresses tell whether an encoding was read rightly.
struct Anchors {
    stext: Option<usize>,
    text: Option<usize>,
    init_task: Option<usize>,
    banner: Option<usize>,
}

impl Anchors {
    fn find(names: &Names) -> Self {
        let [stext, text, init_task, banner] =
            names.positions(["_stext", "_text", "init_task", "linux_banner"]);
        Self { stext, text, init_task, banner }
    }

    fn plausible(
        &self,
        memory: &dyn VirtualMemory,
        addresses: &[u64],
        layout: &Layout,
        hints: &Hints,
    ) -> bool {
        let at = |symbol: Option<usize>| symbol.and_then(|symbol| addresses.get(symbol)).copied().map(Gva);
        let in_image = |at: Gva| at.offset_from(KERNEL_MAP).is_some_and(|offset| offset < KERNEL_IMAGE_BYTES);
        let Some(start) = at(self.stext).or_else(|| at(self.text)) else { return false };
        let disorder = addresses.windows(2).filter(|pair| pair.first() > pair.last()).count();
        in_image(start)
            && start < layout.names
            && memory.read_u8(start).is_ok()
            && disorder <= addresses.len() / MIN_SYMBOLS_PER_DISORDER
            && at(self.init_task).is_none_or(in_image)
            && match (hints.stext, at(self.stext), at(self.banner)) {
                (Some(hint), Some(decoded), _) => hint == decoded,
                (_, _, Some(banner)) => {
                    let mut start = *b"Linux version ";
                    memory.read(banner, &mut start).is_ok() && start == *b"Linux version "
                }
                _ => true,
            }
    }
}
