//! Which frames are compared though nothing says that they were written to.
//!
//! A log of writes does not tell everything. A guest can have another page put at a frame number (`XENMEM_add_to_physmap`, which Xen
//! does not note: `p2m_add_page` of `xen/arch/x86/mm/p2m.c`), and a device can write by ways that are not noted. So with every epoch
//! some frames have their turn, until all had it; then it begins anew. The order is one that a guest cannot tell, or it would put back
//! in time what it hides; and the same in every round, so that no frame waits longer than a round.

use std::hash::{BuildHasher, RandomState};

/// Turns.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    /// How many frames there are.
    frames: u64,
    /// From the number of one frame to that of the next; both wrap around.
    step: u64,
    next: u64,
}

impl Rounds {
    /// The numbers of those of `frames` frames whose turn it is, ascending: so many that all have theirs within `epochs` epochs, or
    /// none if that is zero.
    pub(crate) fn next(&mut self, frames: u64, epochs: u64) -> Vec<u64> {
        let Some(count) =
            frames.checked_add(epochs.saturating_sub(1)).and_then(|sum| sum.checked_div(epochs))
        else {
            return Vec::new();
        };
        let mut numbers: Vec<u64> = (0..count).map(|_| self.turn(frames)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    fn turn(&mut self, frames: u64) -> u64 {
        if self.frames != frames {
            let random = RandomState::new();
            self.frames = frames;
            self.next = random.hash_one(0) % frames;
            // Without a common divisor every frame is met once.
            self.step = random.hash_one(1) % frames;
            while divisor(self.step, frames) != 1 {
                self.step += 1;
            }
        }
        let number = self.next;
        self.next = (self.next + self.step) % frames;
        number
    }
}

/// The greatest common divisor.
fn divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_frame_has_its_turn_whenever_a_round_is_said_to_begin() {
        for (frames, epochs) in [(1, 1), (1, 9), (12, 5), (1000, 7), (49_170, 64), (7, 100)] {
            let mut rounds = Rounds::default();
            for begun in 0..3 {
                let seen: BTreeSet<u64> = (0..epochs).flat_map(|_| rounds.next(frames, epochs)).collect();
                assert!(seen.into_iter().eq(0..frames), "{frames} frames in {epochs} epochs, {begun} before");
                rounds.next(frames, epochs);
            }
        }
    }

    #[test]
    fn an_epoch_has_few_and_they_are_not_foreseen() {
        let orders: BTreeSet<Vec<u64>> = (0..8).map(|_| Rounds::default().next(1 << 20, 1024)).collect();
        assert!(orders.len() > 1 && orders.iter().all(|order| order.len() == 1024 && order.is_sorted()));
        assert!(Rounds::default().next(100, 0).is_empty() && Rounds::default().next(0, 10).is_empty());
    }

    #[test]
    fn memory_that_grows_begins_anew() {
        let mut rounds = Rounds::default();
        rounds.next(10, 2);
        let seen: BTreeSet<u64> = (0..2).flat_map(|_| rounds.next(30, 2)).collect();
        assert!(seen.into_iter().eq(0..30));
    }
}
