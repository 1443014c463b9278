//! The stage that runs while the guest is held: which frames differ from the epoch before, and copies of those.
//!
//! A window of frames is looked at by one thread. Frames of zeros are found by a plain test; a frame that had
//! content before is hashed in place, sixteen at a time, and compared by digest; one that had none is new without a
//! comparison. What differs is copied, and **the digest that goes to the archive is always that of the copy**:
//! should somebody write to the page meanwhile (a device, or the guest itself before it is held), the archive still
//! names exactly the bytes it stores.

use std::ops::Range;

use rayon::prelude::*;
use varve_formats::{Gpa, PAGE_SIZE, Region, is_zero};
use varve_store::hash::{Page, digest_pages};
use varve_store::{Content, Digest, FrameChange};

use super::holes::Holes;
use crate::source::GuestMemory;

/// Frames in a window: enough for the hash to find sixteen pages to do together among many zero ones.
const WINDOW_FRAMES: u64 = 512;

/// Windows scanned side by side before their changes are handed on, in frame order; the longest handed on is 32 MiB.
const BLOCK_WINDOWS: usize = 16;

/// Stands for pages in holes.
static ZERO_PAGE: &Page = &[0; PAGE_SIZE];

/// A run of frames that follow each other in guest memory and in number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Number of the first frame, counted through the regions in order.
    first: u64,
    start: Gpa,
    frames: u64,
}

impl Window {
    /// Length in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.frames * PAGE_SIZE as u64
    }

    /// Those of `numbers`, which ascend, that are in the window.
    fn of<'a>(&self, numbers: &'a [u64]) -> &'a [u64] {
        let from = numbers.partition_point(|number| *number < self.first);
        let to = numbers.partition_point(|number| *number < self.first + self.frames);
        numbers.get(from..to).unwrap_or_default()
    }

    /// The indices of the frames that lie in `range` as a whole.
    fn frames_within(&self, range: &Range<Gpa>) -> Range<usize> {
        let into = |at: Gpa| at.offset_from(self.start).unwrap_or(0).min(self.len());
        let (start, end) = (into(range.start).div_ceil(PAGE_SIZE as u64), into(range.end) / PAGE_SIZE as u64);
        start as usize..end.max(start) as usize
    }

    fn end(&self) -> Gpa {
        Gpa(self.start.0 + self.len())
    }

    fn at(&self, index: usize) -> Gpa {
        Gpa(self.start.0 + (index * PAGE_SIZE) as u64)
    }
}

/// What a frame holds now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Now {
    Zero,
    Absent,
    /// The page with this index among the copies.
    Page(usize),
}

/// The frames of a window that differ, with copies of their pages.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    frames: Vec<(u64, Now)>,
    pages: Vec<Page>,
    digests: Vec<Digest>,
}

impl Changes {
    /// Bytes of the copies.
    pub(crate) fn bytes(&self) -> usize {
        self.pages.len() * PAGE_SIZE
    }

    /// The changes as the archive takes them, ascending by frame.
    pub(crate) fn iter(&self) -> impl Iterator<Item = FrameChange<'_>> {
        self.frames.iter().filter_map(|(frame, now)| {
            let content = match now {
                Now::Zero => Content::Zero,
                Now::Absent => Content::Absent,
                Now::Page(index) => {
                    Content::Page { digest: *self.digests.get(*index)?, bytes: self.pages.get(*index)? }
                }
            };
            Some(FrameChange { frame: *frame, content })
        })
    }
}

/// Cuts the regions into blocks of windows.
pub(crate) fn blocks(regions: &[Region]) -> impl Iterator<Item = Vec<Window>> {
    let mut windows = windows(regions).peekable();
    std::iter::from_fn(move || {
        windows.peek()?;
        Some(windows.by_ref().take(BLOCK_WINDOWS).collect())
    })
}

fn windows(regions: &[Region]) -> impl Iterator<Item = Window> {
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

/// Compares memory with what it held before.
pub(crate) struct Scanner<'a> {
    memory: &'a dyn GuestMemory,
    /// The digest of each frame before.
    previous: &'a [[u8; 32]],
    /// Numbers of the frames that may have changed, ascending; without it any may.
    dirty: Option<&'a [u64]>,
    holes: Holes,
}

impl<'a> Scanner<'a> {
    pub(crate) fn new(
        memory: &'a dyn GuestMemory,
        previous: &'a [[u8; 32]],
        dirty: Option<&'a [u64]>,
    ) -> Self {
        Self { memory, previous, dirty, holes: Holes::default() }
    }

    /// Scans the windows side by side; the changes come in their order. The windows of all calls ascend.
    pub(crate) fn scan(&mut self, windows: &[Window]) -> Vec<Changes> {
        let holes =
            windows.iter().flat_map(|window| self.holes.within(self.memory, window.start..window.end()));
        let holes: Vec<Range<Gpa>> = holes.collect();
        windows.par_iter().map(|window| self.scan_window(*window, &holes)).collect()
    }

    fn scan_window(&self, window: Window, holes: &[Range<Gpa>]) -> Changes {
        let dirty = self.dirty.map(|numbers| window.of(numbers));
        if dirty.is_some_and(<[u64]>::is_empty) {
            return Changes::default();
        }
        let first = usize::try_from(window.first).unwrap_or(usize::MAX);
        let previous = self.previous.get(first..).unwrap_or_default();
        Scan { memory: self.memory, window, previous, dirty, holes }.run()
    }
}

struct Scan<'a> {
    memory: &'a dyn GuestMemory,
    window: Window,
    /// What the window's frames, and those behind it, held before.
    previous: &'a [[u8; 32]],
    /// Numbers of the frames of the window that may have changed.
    dirty: Option<&'a [u64]>,
    /// Holes, also those of other windows.
    holes: &'a [Range<Gpa>],
}

impl Scan<'_> {
    fn may_differ(&self, index: usize) -> bool {
        let number = self.window.first + index as u64;
        self.dirty.is_none_or(|numbers| numbers.binary_search(&number).is_ok())
    }

    fn before(&self, index: usize) -> Digest {
        self.previous.get(index).map_or(Digest::ABSENT, |digest| Digest(*digest))
    }

    fn run(&self) -> Changes {
        let len = self.window.frames as usize * PAGE_SIZE;
        if let Some(bytes) = self.memory.slice(self.window.start, len) {
            let mut pages: Vec<Option<&Page>> = bytes.as_chunks().0.iter().map(Some).collect();
            for hole in self.holes {
                pages.get_mut(self.window.frames_within(hole)).unwrap_or_default().fill(Some(ZERO_PAGE));
            }
            return self.compare(&pages);
        }
        let mut buffer = vec![*ZERO_PAGE; self.window.frames as usize];
        if self.memory.read(self.window.start, buffer.as_flattened_mut()).is_ok() {
            return self.compare(&buffer.iter().map(Some).collect::<Vec<_>>());
        }
        let pages = buffer.iter_mut().enumerate().map(|(index, page)| {
            let read = self.memory.read(self.window.at(index), page);
            read.is_ok().then_some(&*page)
        });
        self.compare(&pages.collect::<Vec<_>>())
    }

    /// Compares the window's pages, `None` where there is none.
    fn compare(&self, pages: &[Option<&Page>]) -> Changes {
        let mut now: Vec<Option<Now>> = vec![None; pages.len()];
        // Pages to copy, and pages to hash first, each with its index.
        let (mut differing, mut compared) = (Vec::new(), Vec::new());
        for (index, (page, now)) in pages.iter().zip(&mut now).enumerate() {
            if !self.may_differ(index) {
                continue;
            }
            match (*page, self.before(index)) {
                (None, Digest::ABSENT) => {}
                (None, _) => *now = Some(Now::Absent),
                (Some(page), Digest::ZERO) if is_zero_page(page) => {}
                (Some(page), _) if is_zero_page(page) => *now = Some(Now::Zero),
                (Some(page), Digest::ABSENT | Digest::ZERO) => differing.push((index, page)),
                (Some(page), _) => compared.push((index, page)),
            }
        }
        let digests = digests_of(compared.iter().map(|(_, page)| *page));
        let changed =
            compared.into_iter().zip(digests).filter(|((index, _), now)| *now != self.before(*index));
        differing.extend(changed.map(|(page, _)| page));
        differing.sort_unstable_by_key(|(index, _)| *index);
        self.copy(&differing, now)
    }

    /// Copies the pages, and gives the copies their digests.
    fn copy(&self, differing: &[(usize, &Page)], mut now: Vec<Option<Now>>) -> Changes {
        let copies: Vec<Page> = differing.iter().map(|(_, page)| **page).collect();
        let digests = digests_of(copies.iter());
        for (copy, (index, _)) in differing.iter().enumerate() {
            if let Some(now) = now.get_mut(*index) {
                *now = Some(Now::Page(copy));
            }
        }
        let numbers = self.window.first..;
        let frames = numbers.zip(now).filter_map(|(frame, now)| Some((frame, now?))).collect();
        Changes { frames, pages: copies, digests }
    }
}

/// Whether a page is zeros; without looking when it stands for a hole.
fn is_zero_page(page: &Page) -> bool {
    std::ptr::eq(page, ZERO_PAGE) || is_zero(page)
}

fn digests_of<'a>(pages: impl Iterator<Item = &'a Page>) -> Vec<Digest> {
    let pages: Vec<&Page> = pages.collect();
    let mut digests = vec![Digest::ABSENT; pages.len()];
    digest_pages(&pages, &mut digests);
    digests
}
