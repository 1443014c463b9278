//! Frames of an epoch: their numbering, and the table of what each holds.

mod layout;
mod map;

pub use layout::FrameLayout;
pub(crate) use layout::MAX_FRAMES;
pub(crate) use map::{FrameMap, PageMap};

use varve_formats::Region;

use crate::{Digest, PageId};

/// What every frame of an epoch holds: the digest to compare with and the name of the stored page.
///
/// This is the writer's view of the latest epoch. Frames are numbered through the regions in order
/// ([`FrameLayout`]).
#[derive(Clone, Debug)]
pub struct FrameTable {
    layout: FrameLayout,
    ids: PageMap,
    digests: Vec<[u8; 32]>,
}

impl FrameTable {
    /// A table whose frames are all [`Digest::ABSENT`].
    pub(crate) fn absent(layout: FrameLayout) -> Self {
        let frames = layout.frames();
        Self { layout, ids: PageMap::absent(frames), digests: vec![Digest::ABSENT.0; frames as usize] }
    }

    pub(crate) fn new(layout: FrameLayout, ids: PageMap, digests: Vec<[u8; 32]>) -> Self {
        debug_assert_eq!(layout.frames(), digests.len() as u64);
        Self { layout, ids, digests }
    }

    /// The numbering of the frames.
    pub fn layout(&self) -> &FrameLayout {
        &self.layout
    }

    /// Number of frames.
    pub fn len(&self) -> u64 {
        self.digests.len() as u64
    }

    /// Whether there are no frames.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    /// The content of a frame; [`Digest::ABSENT`] also behind the last frame.
    pub fn digest(&self, frame: u64) -> Digest {
        let index = usize::try_from(frame).unwrap_or(usize::MAX);
        self.digests.get(index).map_or(Digest::ABSENT, |digest| Digest(*digest))
    }

    /// The contents of all frames in order: [`Digest`] values as plain bytes.
    pub fn digests(&self) -> &[[u8; 32]] {
        &self.digests
    }

    /// The stored page of a frame; [`PageId::ABSENT`] also behind the last frame.
    pub fn id(&self, frame: u64) -> PageId {
        self.ids.get(frame)
    }

    pub(crate) fn ids(&self) -> &PageMap {
        &self.ids
    }

    /// Frames that hold something, and how many of these hold zeros.
    pub(crate) fn count(&self) -> (u64, u64) {
        let count = |value: Digest| self.digests.iter().filter(|digest| **digest == value.0).count() as u64;
        (self.len() - count(Digest::ABSENT), count(Digest::ZERO))
    }

    pub(crate) fn set(&mut self, frame: u64, id: PageId, digest: Digest) {
        let index = usize::try_from(frame).unwrap_or(usize::MAX);
        if let Some(slot) = self.digests.get_mut(index) {
            *slot = digest.0;
            self.ids.set(frame, id);
        }
    }

    /// Adds the absent frames that a layout has which [continues](FrameLayout::continues) this one's.
    pub(crate) fn extend(&mut self, layout: FrameLayout) {
        self.ids.extend(layout.frames());
        self.digests.resize(layout.frames() as usize, Digest::ABSENT.0);
        self.layout = layout;
    }

    /// The same guest frames under another numbering: what `layout` adds is absent, what it leaves out is dropped.
    pub(crate) fn remapped(&self, layout: FrameLayout) -> Self {
        let mut table = Self::absent(layout.clone());
        for region in self.layout.regions() {
            for (from, to, count) in overlaps(&self.layout, region, &layout) {
                for offset in 0..count {
                    table.set(to + offset, self.id(from + offset), self.digest(from + offset));
                }
            }
        }
        table
    }
}

/// The runs of frames of `region` that both layouts number: number in `old`, number in `new`, length.
fn overlaps(old: &FrameLayout, region: &Region, new: &FrameLayout) -> Vec<(u64, u64, u64)> {
    let mut runs = Vec::new();
    for other in new.regions() {
        let start = region.start.gfn().max(other.start.gfn());
        let end = FrameLayout::end_of(region).min(FrameLayout::end_of(other));
        if let (true, Some(from), Some(to)) = (start < end, old.frame(start), new.frame(start)) {
            runs.push((from, to, end.0 - start.0));
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use varve_formats::{Gfn, Gpa};

    fn layout(runs: &[(u64, u64)]) -> FrameLayout {
        let regions: Vec<_> = runs
            .iter()
            .map(|(start, frames)| Region { start: Gpa(start << 12), len: frames << 12 })
            .collect();
        FrameLayout::new(&regions).unwrap()
    }

    #[test]
    fn remapping_keeps_guest_frames() {
        let old = layout(&[(0, 10), (100, 10)]);
        let mut table = FrameTable::absent(old.clone());
        for frame in 0..20 {
            table.set(frame, PageId::new(frame + 1, 0).unwrap(), Digest([frame as u8; 32]));
        }
        let new = layout(&[(5, 3), (8, 93), (105, 2), (200, 1)]);
        let moved = table.remapped(new.clone());
        for frame in 0..new.frames() {
            let gfn = new.gfn(frame).unwrap();
            let expected = old.frame(gfn).map_or(PageId::ABSENT, |frame| PageId::new(frame + 1, 0).unwrap());
            assert_eq!(moved.id(frame), expected, "frame {frame} at {gfn}");
        }
        assert_eq!(moved.digest(new.frame(Gfn(106)).unwrap()), Digest([16; 32]));
        assert_eq!(moved.count(), (5 + 1 + 2, 0));
    }

    #[test]
    fn behind_the_last_frame_is_absent() {
        let table = FrameTable::absent(layout(&[(0, 1)]));
        assert_eq!((table.digest(1), table.id(u64::MAX)), (Digest::ABSENT, PageId::ABSENT));
        assert_eq!((table.len(), table.is_empty(), table.count()), (1, false, (0, 0)));
    }
}
