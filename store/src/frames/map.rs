//! Page names by frame, sharing what neighbouring epochs have in common.

use std::sync::Arc;

use crate::PageId;

/// Frames in a chunk: 8 KiB of names.
const CHUNK: usize = 1024;

type Chunk = [PageId; CHUNK];

/// The page of every frame of an epoch. A clone shares all chunks; changing a frame copies its chunk if it is shared.
#[derive(Clone, Debug)]
pub(crate) struct PageMap {
    chunks: Vec<Arc<Chunk>>,
    frames: u64,
}

impl PageMap {
    /// `frames` absent frames.
    pub(crate) fn absent(frames: u64) -> Self {
        let chunk = Arc::new([PageId::ABSENT; CHUNK]);
        Self { chunks: vec![chunk; frames.div_ceil(CHUNK as u64) as usize], frames }
    }

    /// Number of frames.
    pub(crate) fn len(&self) -> u64 {
        self.frames
    }

    /// The page of a frame; absent behind the last.
    #[inline]
    pub(crate) fn get(&self, frame: u64) -> PageId {
        let chunk = self.chunks.get((frame / CHUNK as u64) as usize);
        let id = chunk.and_then(|chunk| chunk.get((frame % CHUNK as u64) as usize));
        id.copied().unwrap_or(PageId::ABSENT)
    }

    /// Changes a frame; behind the last, nothing.
    pub(crate) fn set(&mut self, frame: u64, id: PageId) {
        if frame >= self.frames {
            return;
        }
        let Some(chunk) = self.chunks.get_mut((frame / CHUNK as u64) as usize) else { return };
        if let Some(slot) = Arc::make_mut(chunk).get_mut((frame % CHUNK as u64) as usize) {
            *slot = id;
        }
    }

    /// Gives `count` frames from `start` on the same page; whole chunks share one copy.
    pub(crate) fn fill(&mut self, start: u64, count: u64, id: PageId) {
        let end = start.saturating_add(count).min(self.frames);
        let shared = Arc::new([id; CHUNK]);
        let mut frame = start;
        while frame < end {
            let whole = frame.is_multiple_of(CHUNK as u64) && end - frame >= CHUNK as u64;
            match self.chunks.get_mut((frame / CHUNK as u64) as usize) {
                Some(chunk) if whole => {
                    *chunk = Arc::clone(&shared);
                    frame += CHUNK as u64;
                }
                _ => {
                    self.set(frame, id);
                    frame += 1;
                }
            }
        }
    }

    /// All pages in frame order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = PageId> + '_ {
        self.chunks.iter().flat_map(|chunk| chunk.iter().copied()).take(self.frames as usize)
    }

    /// The frames, ascending, whose pages differ between the two maps; frames only one of them has do.
    pub(crate) fn changed(&self, other: &Self) -> Vec<u64> {
        let common = self.frames.min(other.frames);
        let mut changed = Vec::new();
        for (index, (ours, theirs)) in self.chunks.iter().zip(&other.chunks).enumerate() {
            if Arc::ptr_eq(ours, theirs) {
                continue;
            }
            let first = (index * CHUNK) as u64;
            let differing = ours.iter().zip(theirs.iter()).enumerate().filter(|(_, (a, b))| a != b);
            changed.extend(differing.map(|(at, _)| first + at as u64).take_while(|frame| *frame < common));
        }
        changed.extend(common..self.frames.max(other.frames));
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(raw: u64) -> PageId {
        PageId::new(raw + 1, 0).unwrap()
    }

    proptest! {
        #[test]
        fn behaves_as_a_plain_vector(
            frames in 1u64..5000,
            fills in proptest::collection::vec((0u64..5000, 0u64..5000, 0u64..4), 0..6),
            sets in proptest::collection::vec((0u64..5000, 0u64..4), 0..20),
        ) {
            let mut map = PageMap::absent(frames);
            let mut plain = vec![PageId::ABSENT; frames as usize];
            for (start, count, value) in fills {
                map.fill(start, count, id(value));
                for slot in plain.iter_mut().skip(start as usize).take(count as usize) {
                    *slot = id(value);
                }
            }
            let before = (map.clone(), plain.clone());
            for (frame, value) in sets {
                map.set(frame, id(value));
                if let Some(slot) = plain.get_mut(frame as usize) {
                    *slot = id(value);
                }
            }
            prop_assert_eq!(map.iter().collect::<Vec<_>>(), plain.clone());
            prop_assert_eq!(before.0.iter().collect::<Vec<_>>(), before.1.clone());
            let differing: Vec<u64> = (0..frames).filter(|f| plain[*f as usize] != before.1[*f as usize]).collect();
            prop_assert_eq!(map.changed(&before.0), differing);
            prop_assert_eq!(map.get(frames), PageId::ABSENT);
        }
    }

    #[test]
    fn frames_of_one_map_only_are_changed() {
        let (short, long) = (PageMap::absent(1000), PageMap::absent(1003));
        assert_eq!(short.changed(&long), [1000, 1001, 1002]);
        assert_eq!(long.changed(&short), [1000, 1001, 1002]);
    }
}
