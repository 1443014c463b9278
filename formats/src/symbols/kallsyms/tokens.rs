//! The 256 substrings that symbol names are made of.

use crate::symbols::bytes::{copy, u16_at, until_nul};
use crate::{Gva, VirtualMemory};

use super::KallsymsError;

/// `kallsyms_token_index` has one `u16` for each byte value.
pub(super) const INDEX_BYTES: usize = 256 * 2;

/// `kallsyms_token_index` addresses at most 64 KiB of tokens, and the last one may begin there.
pub(super) const MAX_TABLE_BYTES: usize = 0x1_0000 + 512;

/// The token table: what each byte of a compressed name stands for.
#[derive(Debug)]
pub(super) struct Tokens {
    text: String,
    /// Where in `text` each token begins, and one end.
    starts: [u32; 257],
}

impl Tokens {
    /// Reads `kallsyms_token_table`, which `kallsyms_token_index` follows in every layout.
    pub(super) fn read(memory: &dyn VirtualMemory, table: Gva, index: Gva) -> Result<Self, KallsymsError> {
        let fault = |source| KallsymsError::Fault { table: "token table", source };
        let len = index.offset_from(table).unwrap_or(0) as usize;
        if !(256..=MAX_TABLE_BYTES).contains(&len) {
            return Err(KallsymsError::Malformed { table: "token table", at: table });
        }
        let table_bytes = copy(memory, table, len).map_err(fault)?;
        let index_bytes = copy(memory, index, INDEX_BYTES).map_err(fault)?;
        Self::parse(&table_bytes, &index_bytes)
            .ok_or(KallsymsError::Malformed { table: "token index", at: index })
    }

    /// Takes the tokens apart. Bytes that no symbol name holds become `?`, so that a damaged table cannot yield
    /// names that are not text.
    pub(super) fn parse(table: &[u8], index: &[u8]) -> Option<Self> {
        let mut text = String::with_capacity(table.len());
        let mut starts = [0; 257];
        for (token, start) in starts.iter_mut().enumerate() {
            *start = u32::try_from(text.len()).ok()?;
            if token < 256 {
                let bytes = until_nul(table, u16_at(index, token * 2)?.into())?;
                if text.len() + bytes.len() > MAX_TABLE_BYTES {
                    return None;
                }
                text.extend(
                    bytes.iter().map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '?' }),
                );
            }
        }
        Some(Self { text, starts })
    }

    /// What the byte stands for.
    pub(super) fn get(&self, token: u8) -> &str {
        let token = usize::from(token);
        match (self.starts.get(token), self.starts.get(token + 1)) {
            (Some(start), Some(end)) => self.text.get(*start as usize..*end as usize).unwrap_or_default(),
            _ => "",
        }
    }
}
