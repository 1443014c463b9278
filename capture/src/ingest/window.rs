//! Windows: how memory is divided among the threads that scan it.

use std::ops::Range;

use varve_formats::{Gpa, PAGE_SIZE, Region};

/// Frames in a window: enough for the hash to find sixteen pages to do together among many zero ones.
const WINDOW_FRAMES: u64 = 512;

/// A run of frames that follow each other in guest memory and in number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Number of the first frame, counted through the regions in order.
    pub(crate) first: u64,
    /// Its address.
    pub(crate) start: Gpa,
    /// How many frames there are.
    pub(crate) frames: u64,
}

impl Window {
    /// Length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.frames * PAGE_SIZE as u64
    }

    /// Those of `numbers`, which ascend, that are in the window.
    pub(crate) fn of<'a>(&self, numbers: &'a [u64]) -> &'a [u64] {
        let from = numbers.partition_point(|number| *number < self.first);
        let to = numbers.partition_point(|number| *number < self.first + self.frames);
        numbers.get(from..to).unwrap_or_default()
    }

    /// The indices of the frames that lie in `range` as a whole.
    pub(crate) fn frames_within(&self, range: &Range<Gpa>) -> Range<usize> {
        let into = |at: Gpa| at.offset_from(self.start).unwrap_or(0).min(self.len());
        let (start, end) = (into(range.start).div_ceil(PAGE_SIZE as u64), into(range.end) / PAGE_SIZE as u64);
        start as usize..end.max(start) as usize
    }

    /// The address behind the last frame.
    pub(crate) fn end(&self) -> Gpa {
        Gpa(self.start.0 + self.len())
    }

    /// The address of the frame with this index in the window.
    pub(crate) fn at(&self, index: usize) -> Gpa {
        Gpa(self.start.0 + (index * PAGE_SIZE) as u64)
    }
}

/// Divides the regions into windows, ascending.
pub(crate) fn windows(regions: &[Region]) -> impl Iterator<Item = Window> {
    let bases = regions.iter().scan(0, |frames, region| {
        let base = *frames;
        *frames += region.len / PAGE_SIZE as u64;
        Some((base, *region))
    });
    bases.flat_map(|(base, region)| {
        let frames = region.len / PAGE_SIZE as u64;
        (0..frames.div_ceil(WINDOW_FRAMES)).map(move |index| {
            let into = index * WINDOW_FRAMES;
            Window {
                first: base + into,
                start: Gpa(region.start.0 + into * PAGE_SIZE as u64),
                frames: WINDOW_FRAMES.min(frames - into),
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(start: u64, frames: u64) -> Region {
        Region { start: Gpa(start << 12), len: frames << 12 }
    }

    #[test]
    fn windows_number_all_frames_through_the_regions() {
        let windows: Vec<_> = windows(&[region(0x10, 513), region(0x1000, 1)]).collect();
        let frames = windows.iter().map(|window| (window.first, window.start.0 >> 12, window.frames));
        assert_eq!(frames.collect::<Vec<_>>(), [(0, 0x10, 512), (512, 0x210, 1), (513, 0x1000, 1)]);
        assert_eq!(windows[1].of(&[3, 511, 512, 513]), [512]);
    }

    #[test]
    fn a_frame_is_in_a_hole_only_as_a_whole() {
        let window = windows(&[region(1, 4)]).next().unwrap();
        let within = |start, end| window.frames_within(&(Gpa(start)..Gpa(end)));
        assert_eq!(within(0, 0x9000), 0..4);
        assert_eq!(within(0x1001, 0x4fff), 1..3);
        assert_eq!(within(0x1800, 0x1900), 1..1);
        assert_eq!(within(0x5000, 0x9000), 4..4);
    }
}
