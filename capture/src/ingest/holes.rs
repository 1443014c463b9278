//! The holes of a guest's memory, found in one pass.

use std::ops::Range;

use varve_formats::Gpa;

use crate::source::GuestMemory;

/// Most holes listed of one range; the rest of the range is taken for data, which is right, if slower.
const MAX_HOLES: usize = 1024;

/// Goes through memory from hole to hole, in ascending order.
#[derive(Debug, Default)]
pub(crate) struct Holes {
    /// Up to here there is no hole, as far as was looked.
    data_until: Gpa,
}

impl Holes {
    /// The holes in `range`, ascending. The ranges of one pass ascend.
    pub(crate) fn within(&mut self, memory: &dyn GuestMemory, range: Range<Gpa>) -> Vec<Range<Gpa>> {
        let mut holes = Vec::new();
        let mut at = range.start.max(self.data_until);
        while at < range.end && holes.len() < MAX_HOLES {
            let Some(hole) = memory.next_hole(at) else { break };
            self.data_until = hole.start;
            if hole.start >= range.end || hole.is_empty() {
                break;
            }
            at = hole.end;
            holes.push(hole.start..hole.end.min(range.end));
        }
        holes
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use varve_formats::{Fault, PhysicalMemory, Region};

    use super::*;

    /// Memory with these holes, which counts how often it is asked.
    struct Sieve(Vec<Range<Gpa>>, AtomicUsize);

    impl PhysicalMemory for Sieve {
        fn read(&self, at: Gpa, _buf: &mut [u8]) -> Result<(), Fault> {
            Err(Fault::NotCaptured { at })
        }

        fn regions(&self) -> &[Region] {
            &[]
        }
    }

    impl GuestMemory for Sieve {
        fn slice(&self, _at: Gpa, _len: usize) -> Option<&[u8]> {
            None
        }

        fn next_hole(&self, at: Gpa) -> Option<Range<Gpa>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            let hole = self.0.iter().find(|hole| hole.end > at);
            Some(hole.map_or(Gpa(100)..Gpa(100), |hole| hole.start.max(at)..hole.end))
        }
    }

    fn found(sieve: &Sieve, step: u64) -> Vec<(u64, u64)> {
        let mut holes = Holes::default();
        let parts = (0..100).step_by(step as usize).map(|at| Gpa(at)..Gpa(at + step));
        parts.flat_map(|part| holes.within(sieve, part)).map(|hole| (hole.start.0, hole.end.0)).collect()
    }

    #[test]
    fn every_hole_is_found_part_by_part() {
        let sieve = Sieve(vec![Gpa(0)..Gpa(3), Gpa(38)..Gpa(61), Gpa(99)..Gpa(100)], AtomicUsize::new(0));
        assert_eq!(found(&sieve, 100), [(0, 3), (38, 61), (99, 100)]);
        assert_eq!(found(&sieve, 20), [(0, 3), (38, 40), (40, 60), (60, 61), (99, 100)]);
    }

    #[test]
    fn memory_without_holes_is_searched_once() {
        let sieve = Sieve(Vec::new(), AtomicUsize::new(0));
        assert_eq!(found(&sieve, 1), []);
        assert_eq!(sieve.1.into_inner(), 1);
    }
}
