//! What a scan has read: as long as none of that changes, its result holds.
//!
//! Memory is told apart in lines of 64 bytes, the 64 lines of a frame as the bits of a number. A frame that is read anywhere in a
//! line has that line in the footprint; a name asked for instead of the content ([`PhysicalMemory::page_identity`]) stands for the
//! whole frame.

use std::sync::{Mutex, PoisonError};

use rustc_hash::FxHashMap;
use varve_formats::{Fault, Gfn, Gpa, PAGE_SIZE, PhysicalMemory, Region};

/// Bytes of a line.
pub const LINE_BYTES: usize = 64;

/// Parts of a recorder, so that threads seldom wait for each other.
const SHARDS: usize = 16;

/// Lines of a frame that hold something else than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The frame.
    pub gfn: Gfn,
    /// Bit *n* is set when line *n* has changed.
    pub lines: u64,
}

/// The lines that were read.
#[derive(Debug, Default)]
pub(super) struct Footprint(FxHashMap<u64, u64>);

impl Footprint {
    /// Whether something that was read has changed.
    pub(super) fn is_touched(&self, changes: &[Change]) -> bool {
        changes.iter().any(|change| self.0.get(&change.gfn.0).is_some_and(|lines| lines & change.lines != 0))
    }
}

/// Memory that notes what is read of it.
pub(super) struct Recorder<'m> {
    memory: &'m dyn PhysicalMemory,
    shards: [Mutex<FxHashMap<u64, u64>>; SHARDS],
}

impl<'m> Recorder<'m> {
    pub(super) fn new(memory: &'m dyn PhysicalMemory) -> Self {
        Self { memory, shards: Default::default() }
    }

    /// What was read until now.
    pub(super) fn footprint(self) -> Footprint {
        let shards = self.shards.into_iter();
        let maps = shards.map(|shard| shard.into_inner().unwrap_or_else(PoisonError::into_inner));
        Footprint(maps.flatten().collect())
    }

    fn note(&self, gfn: Gfn, lines: u64) {
        if let Some(shard) = self.shards.get(gfn.0 as usize % SHARDS) {
            *shard.lock().unwrap_or_else(PoisonError::into_inner).entry(gfn.0).or_default() |= lines;
        }
    }
}

/// The lines of a frame from byte `from` until before byte `to`, of which there is at least one.
fn lines(from: usize, to: usize) -> u64 {
    let (first, last) = (from / LINE_BYTES, (to - 1) / LINE_BYTES);
    u64::MAX << first & u64::MAX >> (63 - last)
}

impl PhysicalMemory for Recorder<'_> {
    fn read(&self, at: Gpa, buf: &mut [u8]) -> Result<(), Fault> {
        let (mut gfn, mut from, mut left) = (at.gfn(), at.page_offset(), buf.len());
        while left > 0 {
            let len = left.min(PAGE_SIZE - from);
            self.note(gfn, lines(from, from + len));
            (gfn, from, left) = (Gfn(gfn.0.wrapping_add(1)), 0, left - len);
        }
        self.memory.read(at, buf)
    }

    fn regions(&self) -> &[Region] {
        self.memory.regions()
    }

    fn page_identity(&self, gfn: Gfn) -> Option<u64> {
        self.note(gfn, u64::MAX);
        self.memory.page_identity(gfn)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Frames 0 to 3.
    struct Zeros([Region; 1]);

    impl PhysicalMemory for Zeros {
        fn read(&self, _at: Gpa, _buf: &mut [u8]) -> Result<(), Fault> {
            Ok(())
        }

        fn regions(&self) -> &[Region] {
            &self.0
        }
    }

    fn footprint(reads: &[(u64, usize)]) -> Footprint {
        let memory = Zeros([Region { start: Gpa(0), len: 4 << 12 }]);
        let recorder = Recorder::new(&memory);
        for (at, len) in reads {
            recorder.read(Gpa(*at), &mut vec![0; *len]).unwrap();
        }
        recorder.footprint()
    }

    proptest! {
        #[test]
        fn a_changed_byte_touches_exactly_what_read_its_line(
            reads in prop::collection::vec((0u64..3 << 12, 0usize..5000), 0..4),
            byte in 0u64..4 << 12,
        ) {
            let line = byte / LINE_BYTES as u64;
            let change = Change { gfn: Gfn(byte >> 12), lines: 1 << (line % 64) };
            let reads_line = |(at, len): &(u64, usize)| {
                *len > 0 && at / 64 <= line && line <= (at + *len as u64 - 1) / 64
            };
            prop_assert_eq!(footprint(&reads).is_touched(&[change]), reads.iter().any(reads_line));
        }
    }

    #[test]
    fn a_name_stands_for_the_whole_frame() {
        let memory = Zeros([Region { start: Gpa(0), len: 4 << 12 }]);
        let recorder = Recorder::new(&memory);
        recorder.page_identity(Gfn(2));
        let footprint = recorder.footprint();
        assert!(footprint.is_touched(&[Change { gfn: Gfn(2), lines: 1 << 63 }]));
        assert!(!footprint.is_touched(&[Change { gfn: Gfn(1), lines: u64::MAX }]));
    }
}
