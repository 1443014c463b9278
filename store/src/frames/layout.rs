//! The numbering of an epoch's frames.

use varve_formats::{Gfn, Gpa, PAGE_SHIFT, PAGE_SIZE, Region};

use crate::StoreError;

/// Most regions an epoch may have. (A PC has a handful; memory hotplug adds one a module, of which QEMU allows 256.)
pub(crate) const MAX_REGIONS: usize = 4096;

/// Most frames an epoch may have: 4 TiB of guest memory.
pub(crate) const MAX_FRAMES: u64 = 1 << 30;

/// Numbers the frames of an epoch from 0, through its regions in ascending order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameLayout {
    regions: Vec<Region>,
    /// Number of the first frame of each region.
    first: Vec<u64>,
    frames: u64,
}

impl FrameLayout {
    /// Numbers the frames of `regions`.
    ///
    /// # Errors
    /// [`StoreError::Regions`] unless they are non-empty, page-aligned, ascending, disjoint, and within 4,096 regions
    /// and 4 TiB.
    pub fn new(regions: &[Region]) -> Result<Self, StoreError> {
        if regions.is_empty() {
            return Err(StoreError::Regions("there are none"));
        }
        if regions.len() > MAX_REGIONS {
            return Err(StoreError::Regions("there are more than 4096"));
        }
        let mut layout =
            Self { regions: regions.to_vec(), first: Vec::with_capacity(regions.len()), frames: 0 };
        let mut previous_end = Gpa(0);
        for region in regions {
            if region.start.page_offset() != 0
                || !region.len.is_multiple_of(PAGE_SIZE as u64)
                || region.len == 0
            {
                return Err(StoreError::Regions("one is empty or not aligned to pages"));
            }
            if region.start < previous_end {
                return Err(StoreError::Regions("they overlap or are not ascending"));
            }
            previous_end = region.end().ok_or(StoreError::Regions("one ends behind the address space"))?;
            layout.first.push(layout.frames);
            layout.frames = layout.frames.saturating_add(region.len >> PAGE_SHIFT);
            if layout.frames > MAX_FRAMES {
                return Err(StoreError::Regions("they hold more than 4 TiB"));
            }
        }
        Ok(layout)
    }

    /// Whether every frame of `other` has the same number here: there are only new ones behind the last.
    pub(crate) fn continues(&self, other: &Self) -> bool {
        let Some((last, before)) = other.regions.split_last() else { return true };
        let Some((same, here)) = self.regions.split_at_checked(before.len()) else { return false };
        same == before
            && here.first().is_some_and(|region| region.start == last.start && region.len >= last.len)
    }

    /// The regions.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Number of frames.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// The number of a guest frame, or `None` when no region holds it.
    pub fn frame(&self, gfn: Gfn) -> Option<u64> {
        let (region, first) =
            self.region_at(self.regions.partition_point(|region| region.start.gfn() <= gfn))?;
        (gfn < Self::end_of(region)).then(|| first + (gfn.0 - region.start.gfn().0))
    }

    /// The guest frame with a number, or `None` behind the last.
    pub fn gfn(&self, frame: u64) -> Option<Gfn> {
        let (region, first) = self.region_at(self.first.partition_point(|first| *first <= frame))?;
        (frame < self.frames).then(|| Gfn(region.start.gfn().0 + (frame - first)))
    }

    /// The region before position `after`, and the number of its first frame.
    fn region_at(&self, after: usize) -> Option<(&Region, u64)> {
        let index = after.checked_sub(1)?;
        Some((self.regions.get(index)?, *self.first.get(index)?))
    }

    /// The guest frames of a region.
    pub(crate) fn gfns_of(region: &Region) -> impl Iterator<Item = Gfn> + use<> {
        (region.start.gfn().0..Self::end_of(region).0).map(Gfn)
    }

    /// First guest frame behind a region.
    pub(super) fn end_of(region: &Region) -> Gfn {
        Gfn(region.start.gfn().0 + (region.len >> PAGE_SHIFT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn region(start: u64, frames: u64) -> Region {
        Region { start: Gpa(start << 12), len: frames << 12 }
    }

    proptest! {
        #[test]
        fn numbers_and_guest_frames_agree(runs in proptest::collection::vec((0u64..5, 1u64..9), 1..8)) {
            let mut regions = Vec::new();
            let mut next = 0;
            for (gap, frames) in runs {
                regions.push(region(next + gap, frames));
                next += gap + frames;
            }
            let layout = FrameLayout::new(&regions).unwrap();
            let listed: Vec<Gfn> = regions
                .iter()
                .flat_map(|r| (r.start.gfn().0..r.start.gfn().0 + (r.len >> 12)).map(Gfn))
                .collect();
            prop_assert_eq!(layout.frames(), listed.len() as u64);
            for (frame, gfn) in listed.iter().enumerate() {
                prop_assert_eq!(layout.gfn(frame as u64), Some(*gfn));
            }
            prop_assert_eq!(layout.gfn(layout.frames()), None);
            for gfn in (0..next + 2).map(Gfn) {
                let expected = listed.iter().position(|listed| *listed == gfn).map(|at| at as u64);
                prop_assert_eq!(layout.frame(gfn), expected);
            }
        }
    }

    #[test]
    fn impossible_regions_are_refused() {
        let refused = |regions: &[Region]| FrameLayout::new(regions).unwrap_err().to_string();
        assert_eq!(refused(&[]), "regions: there are none");
        assert_eq!(refused(&[region(0, 0)]), "regions: one is empty or not aligned to pages");
        assert_eq!(
            refused(&[Region { start: Gpa(1), len: 4096 }]),
            "regions: one is empty or not aligned to pages"
        );
        assert_eq!(refused(&[region(0, 2), region(1, 2)]), "regions: they overlap or are not ascending");
        assert_eq!(refused(&[region(4, 1), region(1, 1)]), "regions: they overlap or are not ascending");
        assert_eq!(refused(&[region((1 << 52) - 1, 1)]), "regions: one ends behind the address space");
        assert_eq!(refused(&[region(0, MAX_FRAMES + 1)]), "regions: they hold more than 4 TiB");
        let many: Vec<_> = (0..=MAX_REGIONS as u64).map(|n| region(n, 1)).collect();
        assert_eq!(refused(&many), "regions: there are more than 4096");
    }
}
