//! Which guest physical addresses a file holds, and where.

use crate::{Gpa, PAGE_SIZE, Region};

/// First address that no x86-64 processor can have (physical addresses have at most 52 bits; Intel SDM volume 3,
/// 4.1.4).
pub const PHYSICAL_END: u64 = 1 << 52;

/// Most segments accepted of one file. Real images have a few; a vmcore written with paging has some ten thousand, a
/// domain saved live a few for each hundred frames that changed meanwhile. So many cost 200 MiB while a file is opened.
pub const MAX_SEGMENTS: usize = 1 << 22;

/// A run of guest physical memory that lies in one piece in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First address.
    pub start: Gpa,
    /// Length in bytes.
    pub len: u64,
    /// Where the run begins in the file, in bytes.
    pub offset: u64,
}

impl Segment {
    fn end(&self) -> u64 {
        self.start.0.saturating_add(self.len)
    }

    /// Whether both put the same address at the same place of the file.
    fn agrees_with(&self, other: &Self) -> bool {
        self.start.0.wrapping_sub(self.offset) == other.start.0.wrapping_sub(other.offset)
    }
}

/// Segments that cannot all be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SegmentError {
    /// Two segments put the same address at different places of the file.
    #[error("guest physical {at} is claimed twice: by the bytes at {first:#x} and at {second:#x}")]
    Overlap {
        /// First address claimed twice.
        at: Gpa,
        /// File offset of the segment that begins lower.
        first: u64,
        /// File offset of the other segment.
        second: u64,
    },
    /// A segment leaves the physical address space.
    #[error("{len:#x} bytes at guest physical {start} reach past the 52-bit physical address space")]
    OutOfRange {
        /// First address of the segment.
        start: Gpa,
        /// Its length in bytes.
        len: u64,
        /// Where it begins in the file, in bytes.
        offset: u64,
    },
    /// A segment lies outside the file.
    #[error(
        "{len:#x} bytes for guest physical {start} reach past the end of the file ({file_len:#x} bytes): truncated?"
    )]
    PastEnd {
        /// First address of the segment.
        start: Gpa,
        /// Its length in bytes.
        len: u64,
        /// Where it begins in the file, in bytes.
        offset: u64,
        /// Length of the file in bytes.
        file_len: u64,
    },
    /// More than [`MAX_SEGMENTS`].
    #[error("more than {MAX_SEGMENTS} segments")]
    TooMany,
    /// Nothing in it.
    #[error("holds no guest memory")]
    Empty,
}

impl SegmentError {
    /// Where in the file the offending segment begins, in bytes.
    pub const fn offset(&self) -> u64 {
        match *self {
            Self::Overlap { second, .. } => second,
            Self::OutOfRange { offset, .. } | Self::PastEnd { offset, .. } => offset,
            Self::TooMany | Self::Empty => 0,
        }
    }
}

/// A map from guest physical addresses to file offsets: ascending, disjoint, inside the file.
///
/// Segments may begin and end anywhere (the kernel's own "System RAM" ranges do, and LiME copies them); regions are
/// whole frames. Bytes of frames that are there only in part can be located but are in no region.
#[derive(Clone, Debug)]
pub struct Segments {
    segments: Vec<Segment>,
    regions: Vec<Region>,
    partial_bytes: u64,
}

impl Segments {
    /// Orders and checks `segments` of a file of `file_len` bytes. Empty ones are dropped; overlapping ones are
    /// accepted when they put every shared address at the same place (QEMU writes such vmcores when asked for
    /// `paging`).
    ///
    /// # Errors
    /// [`SegmentError`], saying which segment cannot be true.
    pub fn new(mut segments: Vec<Segment>, file_len: u64) -> Result<Self, SegmentError> {
        if segments.len() > MAX_SEGMENTS {
            return Err(SegmentError::TooMany);
        }
        segments.retain(|segment| segment.len > 0);
        for segment in &segments {
            check_bounds(segment, file_len)?;
        }
        segments.sort_unstable_by_key(|segment| (segment.start, segment.offset));
        let segments = merge(segments)?;
        let (regions, partial_bytes) = whole_frames(&segments);
        if regions.is_empty() {
            return Err(SegmentError::Empty);
        }
        Ok(Self { segments, regions, partial_bytes })
    }

    /// The file offset of `at` and how many bytes from there on are in one piece; `None` when the file does not
    /// hold it.
    pub fn locate(&self, at: Gpa) -> Option<(u64, u64)> {
        let after = self.segments.partition_point(|segment| segment.start <= at);
        let segment = self.segments.get(after.checked_sub(1)?)?;
        let into = at.offset_from(segment.start)?;
        let left = segment.len.checked_sub(into).filter(|left| *left > 0)?;
        Some((segment.offset.checked_add(into)?, left))
    }

    /// The segments, ascending and disjoint; neighbours that lie side by side in the file are one.
    pub fn as_slice(&self) -> &[Segment] {
        &self.segments
    }

    /// The runs of whole frames, ascending and disjoint.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Bytes that are in no region because the rest of their frame is missing.
    pub const fn partial_bytes(&self) -> u64 {
        self.partial_bytes
    }
}

fn check_bounds(segment: &Segment, file_len: u64) -> Result<(), SegmentError> {
    let &Segment { start, len, offset } = segment;
    if start.checked_add(len).is_none_or(|end| end.0 > PHYSICAL_END) {
        return Err(SegmentError::OutOfRange { start, len, offset });
    }
    if offset.checked_add(len).is_none_or(|end| end > file_len) {
        return Err(SegmentError::PastEnd { start, len, offset, file_len });
    }
    Ok(())
}

/// Joins sorted segments that lie side by side, or over one another, in memory and in the file alike.
fn merge(sorted: Vec<Segment>) -> Result<Vec<Segment>, SegmentError> {
    let mut merged: Vec<Segment> = Vec::with_capacity(sorted.len());
    for segment in sorted {
        match merged.last_mut().filter(|last| segment.start.0 <= last.end()) {
            Some(last) if segment.agrees_with(last) => {
                let end = last.end().max(segment.end());
                last.len = end.saturating_sub(last.start.0);
            }
            Some(last) if segment.start.0 < last.end() => {
                return Err(SegmentError::Overlap {
                    at: segment.start,
                    first: last.offset,
                    second: segment.offset,
                });
            }
            _ => merged.push(segment),
        }
    }
    Ok(merged)
}

/// The whole frames in `segments`, and how many bytes are in none.
fn whole_frames(segments: &[Segment]) -> (Vec<Region>, u64) {
    const PAGE: u64 = PAGE_SIZE as u64;
    let mut regions = Vec::new();
    let mut partial = 0;
    let mut pieces = segments.iter().peekable();
    while let Some(first) = pieces.next() {
        let mut end = first.end();
        while let Some(next) = pieces.next_if(|next| next.start.0 == end) {
            end = next.end();
        }
        let whole_start = first.start.0.next_multiple_of(PAGE);
        let whole_end = end & !(PAGE - 1);
        let whole = whole_end.saturating_sub(whole_start);
        if whole > 0 {
            regions.push(Region { start: Gpa(whole_start), len: whole });
        }
        partial += end - first.start.0 - whole;
    }
    (regions, partial)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(start: u64, len: u64, offset: u64) -> Segment {
        Segment { start: Gpa(start), len, offset }
    }

    fn region(start: u64, len: u64) -> Region {
        Region { start: Gpa(start), len }
    }

    #[test]
    fn neighbours_in_memory_are_one_region_and_stay_two_segments_when_the_file_keeps_them_apart() {
        let segments =
            Segments::new(vec![segment(0x2000, 0x1000, 0x1040), segment(0x1000, 0x1000, 0x20)], 0x3000)
                .unwrap();
        assert_eq!(segments.regions(), [region(0x1000, 0x2000)]);
        assert_eq!(segments.as_slice().len(), 2);
        assert_eq!(segments.locate(Gpa(0x1fff)), Some((0x101f, 1)));
        assert_eq!(segments.locate(Gpa(0x2000)), Some((0x1040, 0x1000)));
        assert_eq!(segments.locate(Gpa(0x3000)), None);
        assert_eq!(segments.locate(Gpa(0xfff)), None);
    }

    #[test]
    fn a_frame_that_is_there_in_part_is_located_but_in_no_region() {
        // As Linux reports it under SeaBIOS: 00001000-0009fbff is System RAM.
        let segments = Segments::new(vec![segment(0x1000, 0x9ec00, 0)], 0x9ec00).unwrap();
        assert_eq!(segments.regions(), [region(0x1000, 0x9e000)]);
        assert_eq!(segments.partial_bytes(), 0xc00);
        assert_eq!(segments.locate(Gpa(0x9fbff)), Some((0x9ebff, 1)));
    }

    #[test]
    fn two_parts_make_a_whole_frame() {
        let segments =
            Segments::new(vec![segment(0, 0x800, 0x900), segment(0x800, 0x800, 0)], 0x2000).unwrap();
        assert_eq!(segments.regions(), [region(0, 0x1000)]);
        assert_eq!(segments.partial_bytes(), 0);
    }

    #[test]
    fn an_overlap_passes_only_when_both_mean_the_same_bytes() {
        let agree =
            Segments::new(vec![segment(0, 0x3000, 0x100), segment(0x1000, 0x1000, 0x1100)], 0x9000).unwrap();
        assert_eq!(agree.as_slice(), [segment(0, 0x3000, 0x100)]);
        let lie = Segments::new(vec![segment(0, 0x3000, 0x100), segment(0x1000, 0x1000, 0x1101)], 0x9000);
        assert_eq!(lie.unwrap_err(), SegmentError::Overlap { at: Gpa(0x1000), first: 0x100, second: 0x1101 });
    }

    #[test]
    fn bounds_are_checked_without_wrapping() {
        let past = Segments::new(vec![segment(0, 0x1001, 0)], 0x1000).unwrap_err();
        assert!(matches!(past, SegmentError::PastEnd { .. }), "{past}");
        let wrap = Segments::new(vec![segment(0, 2, u64::MAX)], 0x1000).unwrap_err();
        assert!(matches!(wrap, SegmentError::PastEnd { .. }), "{wrap}");
        let far = Segments::new(vec![segment(u64::MAX, 2, 0)], 0x1000).unwrap_err();
        assert!(matches!(far, SegmentError::OutOfRange { .. }), "{far}");
        assert_eq!(Segments::new(vec![segment(0, 0, 0)], 0).unwrap_err(), SegmentError::Empty);
        let many = vec![segment(0, 1, 0); MAX_SEGMENTS + 1];
        assert_eq!(Segments::new(many, 1).unwrap_err(), SegmentError::TooMany);
    }
}
