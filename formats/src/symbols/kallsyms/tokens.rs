//! The 256 substrings that symbol names are made of.

use crate::symbols::bytes::{copy, until_nul};
use crate::{Gva, VirtualMemory};

use super::KallsymsError;

/// `kallsyms_token_index` has one `u16` for each byte value.
pub(super) const INDEX_BYTES: usize = 256 * 2;

/// `kallsyms_token_index` addresses at most 64 KiB of tokens, and the last one may begin there.
pub(super) const MAX_TABLE_BYTES: usize = 0x1_0000 + 512;

/// Bytes of a token that are copied without asking for its length. Most tokens have fewer than ten.
const SHORT_BYTES: usize = 16;

/// The token table: what each byte of a compressed name stands for. Its text is printable ASCII.
#[derive(Debug)]
pub(super) struct Tokens(Vec<Token>);

#[derive(Debug, Default)]
struct Token {
    /// Its beginning, padded with NULs.
    short: [u8; SHORT_BYTES],
    len: usize,
    /// The whole token, when it is longer than `short`.
    long: Vec<u8>,
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
    fn parse(table: &[u8], index: &[u8]) -> Option<Self> {
        let mut total = 0;
        let tokens = index.as_chunks().0.iter().map(|start| {
            let mut bytes = until_nul(table, u16::from_le_bytes(*start).into())?.to_vec();
            total += bytes.len();
            for byte in bytes.iter_mut().filter(|byte| !byte.is_ascii_graphic()) {
                *byte = b'?';
            }
            let mut token = Token { len: bytes.len(), ..Token::default() };
            token.short.iter_mut().zip(&bytes).for_each(|(to, from)| *to = *from);
            if bytes.len() > SHORT_BYTES {
                token.long = bytes;
            }
            (total <= MAX_TABLE_BYTES).then_some(token)
        });
        Some(Self(tokens.collect::<Option<_>>()?))
    }

    /// Appends what the byte stands for.
    pub(super) fn expand(&self, byte: u8, text: &mut Vec<u8>) {
        let Some(token) = self.0.get(usize::from(byte)) else { return };
        if token.len <= SHORT_BYTES {
            // A copy of fixed length is one instruction; what is too much is cut off again.
            let end = text.len() + token.len;
            text.extend_from_slice(&token.short);
            text.truncate(end);
        } else {
            text.extend_from_slice(&token.long);
        }
    }

    /// The first character of what the byte stands for.
    pub(super) fn first(&self, byte: u8) -> Option<u8> {
        self.0.get(usize::from(byte))?.short.first().copied()
    }
}
