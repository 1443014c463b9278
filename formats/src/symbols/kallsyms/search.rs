//! Finding the tables by their shape, for kernels whose VMCOREINFO does not list them.
//!
//! Every digit occurs in symbol names, so each stands for itself and the token table holds `0 1 2 … 9` in a row.
//! `kallsyms_token_index` behind it confirms the hit. Before it lie the names: a count, that many names whose types
//! are letters `nm` prints, and markers that agree with them.

use memchr::memmem::Finder;

use crate::symbols::bytes::{align_up, copy_mapped, u16_at, u32_at};
use crate::{Gva, VirtualMemory};

use super::layout::{Layout, MAX_NAMES_BYTES, MAX_SYMBOLS};
use super::names;
use super::tokens::{INDEX_BYTES, MAX_TABLE_BYTES, Tokens};

/// Tokens `0` to `9` as they lie in the table.
const DIGITS: &[u8] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\0";

/// Bytes searched at most, whatever the caller asks for. The kernel image cannot be larger (`KERNEL_IMAGE_SIZE`).
const MAX_WINDOW_BYTES: u64 = 1 << 30;

/// Bytes searched at a time.
const CHUNK_BYTES: u64 = 4 << 20;

/// Rows of digits looked at before the search gives up.
const MAX_HITS: usize = 256;

/// Token tables whose names are searched for before the search gives up.
const MAX_TOKEN_TABLES: usize = 8;

/// Names walked at most while looking for their beginning, over all places tried.
const MAX_NAMES_WALKED: u32 = 1 << 24;

/// The sets of tables in `start .. start + len`, one after the other. The caller decides which one decodes.
pub(super) fn layouts(memory: &dyn VirtualMemory, start: Gva, len: u64) -> impl Iterator<Item = Layout> {
    let rows = digit_rows(memory, start, len.min(MAX_WINDOW_BYTES)).take(MAX_HITS);
    let tables = rows.filter_map(move |row| token_table(memory, row)).take(MAX_TOKEN_TABLES);
    tables.filter_map(move |(table, index)| with_names(memory, start, table, index))
}

/// Addresses of `0 1 2 … 9`.
fn digit_rows(memory: &dyn VirtualMemory, start: Gva, len: u64) -> impl Iterator<Item = Gva> {
    let finder = Finder::new(DIGITS);
    (0..len)
        .step_by(CHUNK_BYTES as usize)
        .map_while(move |offset| {
            let at = start.checked_add(offset)?;
            let bytes = CHUNK_BYTES.saturating_add(DIGITS.len() as u64 - 1).min(len - offset);
            let chunk = copy_mapped(memory, at, bytes as usize);
            let hits = finder.find_iter(&chunk).take(MAX_HITS);
            Some(hits.filter_map(|hit| at.checked_add(hit as u64)).collect::<Vec<_>>())
        })
        .flatten()
}

/// The token table and index around a row of digits, if the index agrees with the tokens.
fn token_table(memory: &dyn VirtualMemory, digits: Gva) -> Option<(Gva, Gva)> {
    let bytes = copy_mapped(memory, digits, MAX_TABLE_BYTES + 8 + INDEX_BYTES);
    let tokens_after = 256 - usize::from(b'0');
    let last_nul = memchr::memchr_iter(0, bytes.get(..MAX_TABLE_BYTES)?).nth(tokens_after - 1)?;
    let end = digits.checked_add(last_nul as u64 + 1)?;
    [align_up(end.0, 8)?, align_up(end.0, 4)?].into_iter().map(Gva).find_map(|index_at| {
        let index = bytes.get(index_at.offset_from(digits)? as usize..)?;
        let entry = |token: u8| u16_at(index, usize::from(token) * 2);
        let table = digits.checked_sub(entry(b'0')?.into())?;
        let consistent = entry(0)? == 0
            && (1..=255).all(|token| entry(token - 1) < entry(token))
            && (b'0'..=255).all(|token| {
                // Each token from the digits on begins behind the NUL of the one before it.
                let offset = entry(token)
                    .and_then(|start| Gva(table.0).checked_add(start.into())?.offset_from(digits));
                offset.is_some_and(|offset| offset == 0 || bytes.get(offset as usize - 1) == Some(&0))
            });
        (consistent && table.0 % 4 == 0).then_some((table, index_at))
    })
}

/// Finds the symbol count and the names before a token table.
fn with_names(memory: &dyn VirtualMemory, start: Gva, token_table: Gva, token_index: Gva) -> Option<Layout> {
    let tokens = Tokens::read(memory, token_table, token_index).ok()?;
    let len = token_table.offset_from(start)?.min(MAX_NAMES_BYTES) & !3;
    let from = token_table.checked_sub(len)?;
    let bytes = copy_mapped(memory, from, len as usize);
    let types: Vec<bool> = (0..=255).map(|token| tokens.first(token).is_some_and(is_type)).collect();
    let mut walked = 0;
    let mut accept = |name: &[u8]| {
        walked += 1;
        let first = name.first().and_then(|token| types.get(usize::from(*token)));
        walked < MAX_NAMES_WALKED && first == Some(&true)
    };
    (0..len as usize / 4).rev().map(|word| word * 4).find_map(|offset| {
        let count = u32_at(&bytes, offset)?;
        if !(1..=MAX_SYMBOLS).contains(&count) || !markers_fit(&bytes, count as usize) {
            return None;
        }
        let num_syms = from.checked_add(offset as u64)?;
        // The names are aligned to 8 bytes, to 4 from 7.0 on.
        let behind =
            [num_syms.0.checked_add(4).and_then(|end| align_up(end, 8))?, num_syms.0.checked_add(4)?];
        behind.into_iter().map(Gva).find_map(|names_at| {
            let names = bytes.get(names_at.offset_from(from)? as usize..)?;
            let extent = names::extent(names, count as usize, &mut accept)?;
            let gap = names.len() - extent.markers_end.min(names.len());
            let seqs = count as usize * 3;
            (gap < 8 || (seqs..seqs + 16).contains(&gap)).then_some(Layout {
                count,
                num_syms,
                names: names_at,
                token_table,
                token_index,
            })
        })
    })
}

/// Whether something like the markers of `count` names lies at the end of `bytes`, where the token table begins: zero,
/// then the offset of the 256th name. It spares walking the names behind almost every word that only looks like a count.
fn markers_fit(bytes: &[u8], count: usize) -> bool {
    let marks = count.div_ceil(256);
    let fits = |end: usize, width: usize| {
        let Some(start) = end.checked_sub(marks * width) else { return false };
        let second =
            || u32_at(bytes, start + width).is_some_and(|offset| (256 * 2..256 << 14).contains(&offset));
        u32_at(bytes, start) == Some(0) && (marks == 1 || second())
    };
    // The markers end there, or where the three bytes for each name begin that `seqs_of_names` takes; padding follows
    // either.
    let behind = [0, count * 3].into_iter().filter_map(|seqs| Some(bytes.len().checked_sub(seqs)? & !3));
    let ends =
        behind.flat_map(|end| [0, 4, 8].into_iter().filter_map(move |padding| end.checked_sub(padding)));
    ends.into_iter().any(|end| fits(end, 4) || fits(end, 8))
}

/// Symbol types as `nm` prints them for what a kernel image can hold.
const fn is_type(first: u8) -> bool {
    let first = first.to_ascii_lowercase();
    matches!(first, b'a'..=b'd' | b'g' | b'i' | b'n' | b'p' | b'r'..=b'w')
}
