//! Finding the kernel's BTF blob in its memory.

use memchr::memmem;

use crate::symbols::bytes::{copy, copy_mapped};
use crate::symbols::kallsyms::Kallsyms;
use crate::{Fault, FormatError, Gva, VirtualMemory};

use super::header::Header;
use super::{Btf, MAX_BTF_BYTES};

/// Magic, version and flags, with which every blob begins.
const MAGIC: [u8; 4] = [0x9f, 0xeb, 1, 0];

/// Bytes of the longest known header.
const HEADER_BYTES: usize = 32;

/// Bytes searched at most, whatever the caller asks for.
const MAX_WINDOW_BYTES: u64 = 1 << 30;

/// Bytes searched at a time.
const CHUNK_BYTES: u64 = 4 << 20;

/// Blobs copied and parsed at most in one search.
const MAX_BLOBS: usize = 64;

/// Why there are no types.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The kernel has no `__start_BTF` and `__stop_BTF`: it was built without BTF, or its symbols are incomplete.
    #[error("the kernel has no symbol {symbol}")]
    NoSymbol {
        /// The missing one.
        symbol: &'static str,
    },
    /// The symbols enclose nothing, or more than a blob can hold.
    #[error("__start_BTF is {start} and __stop_BTF is {stop}: not a BTF section")]
    Bounds {
        /// `__start_BTF`.
        start: Gva,
        /// `__stop_BTF`.
        stop: Gva,
    },
    /// The section cannot be read.
    #[error("BTF at {at}: {source}")]
    Fault {
        /// First address of the section.
        at: Gva,
        /// Why not.
        source: Fault,
    },
    /// The section is not BTF.
    #[error("BTF at {at}: {source}")]
    Format {
        /// First address of the section.
        at: Gva,
        /// What is wrong with it.
        source: FormatError,
    },
}

impl Btf {
    /// The kernel's own blob, between `__start_BTF` and `__stop_BTF` (`include/asm-generic/vmlinux.lds.h`), and its
    /// address.
    ///
    /// # Errors
    /// A missing symbol, memory that cannot be read, or bytes that are not BTF; [`Btf::search`] may still find it.
    pub fn locate(memory: &dyn VirtualMemory, kallsyms: &Kallsyms) -> Result<(Gva, Self), BtfError> {
        let symbol = |symbol| kallsyms.address(symbol).ok_or(BtfError::NoSymbol { symbol });
        let (start, stop) = (symbol("__start_BTF")?, symbol("__stop_BTF")?);
        let len = stop.offset_from(start).filter(|len| (1..=MAX_BTF_BYTES as u64).contains(len));
        let Some(len) = len else { return Err(BtfError::Bounds { start, stop }) };
        let bytes =
            copy(memory, start, len as usize).map_err(|source| BtfError::Fault { at: start, source })?;
        let btf = Self::parse(bytes).map_err(|source| BtfError::Format { at: start, source })?;
        Ok((start, btf))
    }

    /// The first blob in `start .. start + len` that describes `task_struct`, and its address: the kernel's own. Those
    /// of modules do not stand alone.
    pub fn search(memory: &dyn VirtualMemory, start: Gva, len: u64) -> Option<(Gva, Self)> {
        let len = len.min(MAX_WINDOW_BYTES);
        let overlap = MAGIC.len() as u64 - 1;
        let mut blobs = 0;
        for offset in (0..len).step_by(CHUNK_BYTES as usize) {
            let chunk_at = start.checked_add(offset)?;
            let chunk = copy_mapped(memory, chunk_at, (CHUNK_BYTES + overlap).min(len - offset) as usize);
            for hit in memmem::find_iter(&chunk, &MAGIC) {
                let at = chunk_at.checked_add(hit as u64)?;
                let Some(bytes) = blob(memory, at) else { continue };
                blobs += 1;
                if let Ok(btf) = Self::parse(bytes)
                    && btf.size_of("task_struct").is_some()
                {
                    return Some((at, btf));
                }
                if blobs == MAX_BLOBS {
                    return None;
                }
            }
        }
        None
    }
}

/// The bytes of a blob whose header is at `at`.
fn blob(memory: &dyn VirtualMemory, at: Gva) -> Option<Vec<u8>> {
    let header = Header::parse(&copy_mapped(memory, at, HEADER_BYTES), MAX_BTF_BYTES).ok()?;
    copy(memory, at, header.end()).ok()
}
