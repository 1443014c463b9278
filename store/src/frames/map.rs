//! Values by frame, sharing what neighbouring epochs have in common.

use std::sync::Arc;

use crate::{Digest, PageId};

/// Frames in a chunk: 8 KiB of page names.
const CHUNK: usize = 1024;

/// What a frame of a map can hold.
pub(crate) trait FrameValue: Copy + PartialEq {
    /// The value of a frame without content.
    const ABSENT: Self;
}

impl FrameValue for PageId {
    const ABSENT: Self = PageId::ABSENT;
}

/// The bytes of a [`Digest`].
impl FrameValue for [u8; 32] {
    const ABSENT: Self = Digest::ABSENT.0;
}

/// The page of every frame of an epoch.
pub(crate) type PageMap = FrameMap<PageId>;

/// A value for every frame of an epoch. A clone shares all chunks; changing a frame copies its chunk if it is shared.
#[derive(Clone, Debug)]
pub(crate) struct FrameMap<T> {
    chunks: Vec<Arc<[T; CHUNK]>>,
    frames: u64,
}

impl<T: FrameValue> FrameMap<T> {
    /// `frames` absent frames.
    pub(crate) fn absent(frames: u64) -> Self {
        let chunk = Arc::new([T::ABSENT; CHUNK]);
        Self { chunks: vec![chunk; frames.div_ceil(CHUNK as u64) as usize], frames }
    }

    /// Number of frames.
    pub(crate) fn len(&self) -> u64 {
        self.frames
    }

    /// Adds absent frames behind the last, up to `frames`.
    pub(crate) fn extend(&mut self, frames: u64) {
        let chunk = Arc::new([T::ABSENT; CHUNK]);
        self.chunks.resize(frames.div_ceil(CHUNK as u64) as usize, chunk);
        self.frames = frames;
    }

    /// The value of a frame; absent behind the last.
    #[inline]
    pub(crate) fn get(&self, frame: u64) -> T {
        let chunk = self.chunks.get((frame / CHUNK as u64) as usize);
        let id = chunk.and_then(|chunk| chunk.get((frame % CHUNK as u64) as usize));
        id.copied().unwrap_or(T::ABSENT)
    }

    /// Changes a frame; behind the last, nothing.
    pub(crate) fn set(&mut self, frame: u64, value: T) {
        if frame >= self.frames {
            return;
        }
        let Some(chunk) = self.chunks.get_mut((frame / CHUNK as u64) as usize) else { return };
        if let Some(slot) = Arc::make_mut(chunk).get_mut((frame % CHUNK as u64) as usize) {
            *slot = value;
        }
    }

    /// Gives `count` frames from `start` on the same value; whole chunks share one copy.
    pub(crate) fn fill(&mut self, start: u64, count: u64, value: T) {
        let end = start.saturating_add(count).min(self.frames);
        let shared = Arc::new([value; CHUNK]);
        let mut frame = start;
        while frame < end {
            let whole = frame.is_multiple_of(CHUNK as u64) && end - frame >= CHUNK as u64;
            match self.chunks.get_mut((frame / CHUNK as u64) as usize) {
                Some(chunk) if whole => {
                    *chunk = Arc::clone(&shared);
                    frame += CHUNK as u64;
                }
                _ => {
                    self.set(frame, value);
                    frame += 1;
                }
            }
        }
    }

    /// All values in frame order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.slices().flatten().copied()
    }

    /// All values in frame order, in runs.
    pub(crate) fn slices(&self) -> impl Iterator<Item = &[T]> + '_ {
        let mut left = self.frames as usize;
        self.chunks.iter().map(move |chunk| {
            let len = left.min(CHUNK);
            left -= len;
            chunk.get(..len).unwrap_or_default()
        })
    }

    /// The frames, ascending, whose values differ between the two maps; frames only one of them has do.
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
