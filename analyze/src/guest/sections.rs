//! The bytes of the kernel image that its symbols come from, as they would be without KASLR.

use varve_formats::symbols::kallsyms::Table;
use varve_formats::{Fault, Gva, VirtualMemory};

use super::place::relocate;

/// Read at a time, in bytes; a multiple of 8.
const CHUNK_BYTES: usize = 64 << 10;

/// The kallsyms tables and their bytes.
#[derive(Debug)]
pub(super) struct Sections(Vec<(Table, Box<[u8]>)>);

impl Sections {
    /// Reads the tables of a kernel that KASLR moved by `kernel_offset`.
    pub(super) fn read(
        memory: &dyn VirtualMemory,
        tables: &[Table],
        kernel_offset: u64,
    ) -> Result<Self, Fault> {
        let read = |table: &Table| {
            let mut bytes = Vec::new();
            chunks(memory, table, kernel_offset, |chunk| {
                bytes.extend_from_slice(chunk);
                true
            })?;
            Ok((*table, bytes.into_boxed_slice()))
        };
        tables.iter().map(read).collect::<Result<_, _>>().map(Self)
    }

    /// Each table and its bytes.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Table, &[u8])> {
        self.0.iter().map(|(table, bytes)| (*table, &**bytes))
    }

    /// BLAKE3 over name, length and bytes of each.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        for (table, bytes) in self.iter() {
            hasher.update(table.name.as_bytes());
            hasher.update(&[0]);
            hasher.update(&table.len.to_le_bytes());
            hasher.update(bytes);
        }
        *hasher.finalize().as_bytes()
    }
}

/// Whether a table of a kernel that KASLR moved by `kernel_offset` holds `bytes`.
pub(super) fn equals(
    memory: &dyn VirtualMemory,
    table: &Table,
    kernel_offset: u64,
    bytes: &[u8],
) -> Result<bool, Fault> {
    let mut rest = bytes;
    chunks(memory, table, kernel_offset, |now| {
        let (expected, later) = rest.split_at(now.len().min(rest.len()));
        rest = later;
        expected == now
    })
}

/// Hands the bytes of a table over in chunks, until `sink` says no. Returns whether it never did.
fn chunks(
    memory: &dyn VirtualMemory,
    table: &Table,
    kernel_offset: u64,
    mut sink: impl FnMut(&[u8]) -> bool,
) -> Result<bool, Fault> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut offset = 0;
    while offset < table.len {
        let len = usize::try_from(table.len - offset).map_or(CHUNK_BYTES, |rest| rest.min(CHUNK_BYTES));
        let (chunk, _) = buffer.split_at_mut(len);
        memory.read(table.start.checked_add(offset).ok_or(Fault::Overflow { at: table.start.0 })?, chunk)?;
        without_kaslr(table.name, chunk, kernel_offset);
        if !sink(chunk) {
            return Ok(false);
        }
        offset += len as u64;
    }
    Ok(true)
}

/// Undoes what KASLR did to the two tables that hold whole addresses.
fn without_kaslr(table: &str, chunk: &mut [u8], kernel_offset: u64) {
    if !matches!(table, "addresses" | "relative_base") {
        return;
    }
    for word in chunk.as_chunks_mut::<8>().0 {
        *word = relocate(Gva(u64::from_le_bytes(*word)), kernel_offset, 0).0.to_le_bytes();
    }
}
