//! Guest memory as a few pieces of bytes at given addresses.

use varve_formats::{Fault, Gpa, Gva, PhysicalMemory, Region, VirtualMemory};

/// Memory that holds these pieces and nothing else.
#[derive(Clone, Default)]
pub(crate) struct Guest {
    pieces: Vec<(u64, Vec<u8>)>,
    regions: Vec<Region>,
}

impl Guest {
    pub(crate) fn new(pieces: Vec<(u64, Vec<u8>)>) -> Self {
        let region = |(start, bytes): &(u64, Vec<u8>)| Region { start: Gpa(*start), len: bytes.len() as u64 };
        Self { regions: pieces.iter().map(region).collect(), pieces }
    }

    /// The bytes of one piece.
    pub(crate) fn piece(&mut self, index: usize) -> &mut Vec<u8> {
        &mut self.pieces[index].1
    }

    fn copy(&self, at: u64, buf: &mut [u8]) -> bool {
        self.pieces.iter().any(|(start, bytes)| {
            let piece =
                at.checked_sub(*start).and_then(|offset| bytes.get(offset as usize..)?.get(..buf.len()));
            piece.map(|piece| buf.copy_from_slice(piece)).is_some()
        })
    }
}

impl VirtualMemory for Guest {
    fn read(&self, at: Gva, buf: &mut [u8]) -> Result<(), Fault> {
        if self.copy(at.0, buf) { Ok(()) } else { Err(Fault::Overflow { at: at.0 }) }
    }
}

impl PhysicalMemory for Guest {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        if self.copy(at.0, buf) { Ok(()) } else { Err(Fault::NotCaptured { at }) }
    }

    fn regions(&self) -> &[Region] {
        &self.regions
    }
}
