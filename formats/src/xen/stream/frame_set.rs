//! Which frames a domain has, as the pages of a stream come.

use super::pages::Frame;
use crate::xen::runs::{Run, Runs};
use crate::{FormatError, Gfn, PAGE_SIZE, Region};

/// Most runs of frames without a gap that are kept. Ballooning can leave a domain with many; an epoch takes 4096 of them.
pub const MAX_FRAME_RUNS: usize = 1 << 20;

/// A frame that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct There;

impl Run for There {
    fn further(self, _frames: u64) -> Self {
        self
    }
}

/// The frames that have come with contents, and have not gone since.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FrameSet {
    runs: Runs<There>,
}

impl FrameSet {
    /// Takes note of frames: those with contents are there, the others are not, or not any more.
    ///
    /// # Errors
    /// [`FormatError`] past [`MAX_FRAME_RUNS`].
    pub fn keep(&mut self, frames: &[Frame]) -> Result<(), FormatError> {
        let follow = |one: &Frame, next: &Frame| {
            one.gfn.0 + 1 == next.gfn.0 && one.kind.has_contents() == next.kind.has_contents()
        };
        for run in frames.chunk_by(follow) {
            let Some(first) = run.first() else { continue };
            let count = run.len() as u64;
            if !first.kind.has_contents() {
                self.runs.clear(first.gfn.0, count);
            } else if !self.runs.covers(first.gfn.0, count) {
                self.runs.set(first.gfn.0, count, There);
            }
            if self.runs.len() > MAX_FRAME_RUNS {
                let reason = format!("in more than {MAX_FRAME_RUNS} pieces");
                return Err(FormatError::new("memory of the domain", 0, reason));
            }
        }
        Ok(())
    }

    /// The frames as regions, ascending, no two of them adjacent.
    pub fn regions(&self) -> Vec<Region> {
        let region =
            |(first, count, There)| Some(Region { start: Gfn(first).gpa()?, len: count * PAGE_SIZE as u64 });
        self.runs.iter().filter_map(region).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::super::PageType;
    use super::*;

    proptest! {
        #[test]
        fn it_has_what_came_last_with_contents(
            batches in prop::collection::vec(prop::collection::vec((0u64..40, any::<bool>()), 0..8), 0..12),
        ) {
            let (mut set, mut plain) = (FrameSet::default(), BTreeSet::new());
            for batch in batches {
                let frames = batch.iter().map(|(gfn, there)| {
                    let kind = if *there { PageType::Table { level: 1, pinned: false } } else { PageType::Absent };
                    Frame { gfn: Gfn(*gfn), kind }
                });
                set.keep(&frames.collect::<Vec<_>>()).unwrap();
                for (gfn, there) in batch {
                    if there { plain.insert(gfn) } else { plain.remove(&gfn) };
                }
            }
            let regions = set.regions();
            let frames = regions.iter().flat_map(|region| {
                let first = region.start.gfn().0;
                first..first + region.len / PAGE_SIZE as u64
            });
            prop_assert!(frames.eq(plain));
            prop_assert!(regions.windows(2).all(|pair| pair[0].end().unwrap() < pair[1].start));
        }
    }
}
