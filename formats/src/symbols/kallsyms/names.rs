//! The compressed names: a length, then that many tokens, for each symbol in address order.
//!
//! The length is one byte; since 6.1 (`kallsyms: support "big" kernel symbols`) a set high bit means that the next
//! byte holds seven more bits. `kallsyms_markers` gives the offset of each 256th name: it tells which reading is right.

use crate::Gva;
use crate::symbols::bytes::{align_up, array_at};

use super::KallsymsError;
use super::tokens::Tokens;

/// Characters of one name at most. `KSYM_NAME_LEN` is 512 (128 before 6.1).
const MAX_NAME_CHARS: usize = 4096;

/// Characters of all names together at most. Debian's 7.3 has 6 MB.
const MAX_ALL_NAMES_CHARS: usize = 64 << 20;

/// How the length of a compressed name is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// Two bytes when the first has its high bit set.
    Big,
    /// Always one byte.
    Small,
}

impl Length {
    /// The tokens of the name at `offset`, and the offset of the next name.
    pub(super) fn tokens(self, names: &[u8], offset: usize) -> Option<(&[u8], usize)> {
        let first = *names.get(offset)?;
        let (len, start) = if self == Self::Big && first & 0x80 != 0 {
            let second = *names.get(offset + 1)?;
            (usize::from(first & 0x7f) | usize::from(second) << 7, offset + 2)
        } else {
            (usize::from(first), offset + 1)
        };
        let end = start.checked_add(len)?;
        if len == 0 {
            return None;
        }
        Some((names.get(start..end)?, end))
    }
}

/// Where the names end and the markers lie, as offsets from the first name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) length: Length,
    pub(super) names_end: usize,
    pub(super) markers: usize,
    pub(super) markers_end: usize,
}

/// Walks `count` names and checks the markers behind them. `bytes` begins at the first name; `accept` looks at the
/// tokens of each name and may end the walk. `None` when neither reading of the lengths agrees with the markers.
pub(super) fn extent(bytes: &[u8], count: usize, mut accept: impl FnMut(&[u8]) -> bool) -> Option<Extent> {
    let big = walk(bytes, count, Length::Big, &mut accept);
    if let Some(extent) = big.as_ref().and_then(|walk| walk.markers(bytes)) {
        return Some(extent);
    }
    walk(bytes, count, Length::Small, &mut accept)?.markers(bytes)
}

/// The offsets that the markers must hold.
struct Walk {
    length: Length,
    every_256th: Vec<usize>,
    end: usize,
}

fn walk(bytes: &[u8], count: usize, length: Length, accept: &mut impl FnMut(&[u8]) -> bool) -> Option<Walk> {
    let mut every_256th = Vec::new();
    let mut end = 0;
    for symbol in 0..count {
        let (tokens, next) = length.tokens(bytes, end)?;
        if !accept(tokens) {
            return None;
        }
        if symbol % 256 == 0 {
            every_256th.push(end);
        }
        end = next;
    }
    Some(Walk { length, every_256th, end })
}

impl Walk {
    /// Finds the markers: `u32` from 4.20 on, `unsigned long` before; aligned to 8 bytes, to 4 from 7.0 on.
    fn markers(&self, bytes: &[u8]) -> Option<Extent> {
        let agrees = |at: usize, width: usize| {
            self.every_256th.iter().enumerate().all(|(marker, expected)| {
                let at = at + marker * width;
                let value = match width {
                    4 => array_at(bytes, at).map(|bytes| u64::from(u32::from_le_bytes(bytes))),
                    _ => array_at(bytes, at).map(u64::from_le_bytes),
                };
                value == Some(*expected as u64)
            })
        };
        let place = |align: u64, width: usize| {
            let markers = usize::try_from(align_up(self.end as u64, align)?).ok()?;
            let markers_end = markers.checked_add(self.every_256th.len().checked_mul(width)?)?;
            agrees(markers, width).then_some(Extent {
                length: self.length,
                names_end: self.end,
                markers,
                markers_end,
            })
        };
        place(8, 4).or_else(|| place(8, 8)).or_else(|| place(4, 4))
    }
}

/// All names in one piece of text. Each begins with the character of its type.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    text: String,
    /// Where each name begins, and one end.
    starts: Vec<u32>,
}

impl Names {
    /// Expands `count` names. `at` is where `bytes` begins in the guest, for errors.
    pub(super) fn expand(
        bytes: &[u8],
        count: usize,
        length: Length,
        tokens: &Tokens,
        at: Gva,
    ) -> Result<Self, KallsymsError> {
        let mut text = Vec::with_capacity(bytes.len().saturating_mul(3).min(MAX_ALL_NAMES_CHARS));
        let mut starts = Vec::with_capacity(count + 1);
        starts.push(0);
        let mut offset = 0;
        for _ in 0..count {
            let begin = text.len();
            let malformed =
                KallsymsError::Malformed { table: "names", at: Gva(at.0.wrapping_add(offset as u64)) };
            let Some((compressed, next)) = length.tokens(bytes, offset) else { return Err(malformed) };
            for token in compressed {
                tokens.expand(*token, &mut text);
                if text.len() - begin > MAX_NAME_CHARS {
                    return Err(malformed);
                }
            }
            if text.len() == begin || text.len() > MAX_ALL_NAMES_CHARS {
                return Err(malformed);
            }
            starts.push(text.len() as u32);
            offset = next;
        }
        let text = String::from_utf8(text).map_err(|_| KallsymsError::Malformed { table: "names", at })?;
        Ok(Self { text, starts })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// The type character and the name.
    pub(super) fn get(&self, symbol: usize) -> Option<(char, &str)> {
        let (start, end) = (*self.starts.get(symbol)?, *self.starts.get(symbol + 1)?);
        let text = self.text.get(start as usize..end as usize)?;
        let kind = text.chars().next()?;
        Some((kind, text.get(1..)?))
    }

    /// The first symbol of each of these names, by looking at all.
    pub(super) fn positions<const N: usize>(&self, wanted: [&str; N]) -> [Option<usize>; N] {
        let mut found = [None; N];
        for (symbol, bounds) in self.starts.windows(2).enumerate() {
            let [start, end] = bounds else { break };
            for (name, slot) in wanted.iter().zip(&mut found) {
                // Lengths first: comparing them costs less than looking at the name.
                if slot.is_none() && (end - start) as usize == name.len() + 1 {
                    *slot = self.get(symbol).filter(|entry| entry.1 == *name).map(|_| symbol);
                }
            }
        }
        found
    }
}
