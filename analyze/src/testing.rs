//! For unit tests: memory, which is bytes and where they are, and members of structures.

use std::collections::BTreeMap;

use varve_formats::{Fault, Gpa, Gva, PAGE_SIZE, PhysicalMemory, Region, VirtualMemory};

use crate::linux::layout::Field;

/// Guest physical memory from 0 on.
pub(crate) struct Flat {
    bytes: Vec<u8>,
    regions: Vec<Region>,
}

impl Flat {
    pub(crate) fn zeroed(pages: usize) -> Self {
        let len = pages * PAGE_SIZE;
        Self { bytes: vec![0; len], regions: vec![Region { start: Gpa(0), len: len as u64 }] }
    }

    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        self.bytes[at as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn read_u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.bytes[at as usize..][..8].try_into().unwrap())
    }
}

impl PhysicalMemory for Flat {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        let start = usize::try_from(at.0).map_err(|_| Fault::NotCaptured { at })?;
        let missing = Fault::NotCaptured { at: Gpa(at.0.max(self.bytes.len() as u64)) };
        let found = self.bytes.get(start..).and_then(|tail| tail.get(..buf.len())).ok_or(missing)?;
        buf.copy_from_slice(found);
        Ok(())
    }

    fn regions(&self) -> &[Region] {
        &self.regions
    }
}

/// Virtual memory of which only the bytes that were written exist.
#[derive(Default)]
pub(crate) struct Sparse(BTreeMap<u64, u8>);

impl Sparse {
    pub(crate) fn write(&mut self, at: u64, bytes: &[u8]) {
        self.0.extend(bytes.iter().enumerate().map(|(offset, byte)| (at + offset as u64, *byte)));
    }

    pub(crate) fn write_u32(&mut self, at: u64, value: u32) {
        self.write(at, &value.to_le_bytes());
    }

    pub(crate) fn write_u64(&mut self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }
}

impl VirtualMemory for Sparse {
    fn read(&self, at: Gva, buf: &mut [u8]) -> Result<(), Fault> {
        for (offset, byte) in buf.iter_mut().enumerate() {
            let here = at.checked_add(offset as u64).ok_or(Fault::Overflow { at: at.0 })?;
            let absent = Fault::NotPresent { at: here, level: 1, entry: 0, root: Gpa(0) };
            *byte = *self.0.get(&here.0).ok_or(absent)?;
        }
        Ok(())
    }
}

/// A member at `offset`, of `size` bytes.
pub(crate) const fn field(offset: u64, size: u64) -> Field {
    Field { offset, size }
}
