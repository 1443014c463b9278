//! The stage that runs while the guest is held: which frames differ from the epoch before, and copies of those.
//!
//! A window of frames is looked at by one thread. Frames of zeros are found by a plain test; a frame that had
//! content before is hashed in place, sixteen at a time, and compared by digest; one that had none is new without a
//! comparison. What differs is copied, and **the digest that goes to the archive is always that of the copy**:
//! should somebody write to the page meanwhile (a device, or the guest itself before it is held), the archive still
//! names exactly the bytes it stores.

use std::ops::{ControlFlow, Range};
use std::sync::{Mutex, PoisonError};
use std::thread;

use varve_formats::{Gpa, PAGE_SIZE, is_zero};
use varve_store::Digest;
use varve_store::hash::{Page, digest_pages};

use super::changes::{Changes, Now};
use super::holes::Holes;
use super::window::{Window, windows};
use crate::source::GuestMemory;

/// Stands for pages in holes.
static ZERO_PAGE: &Page = &[0; PAGE_SIZE];

/// Compares memory with what it held before.
#[derive(Clone, Copy)]
pub(crate) struct Scanner<'a> {
    /// The memory.
    pub(crate) memory: &'a dyn GuestMemory,
    /// The digest of each frame before.
    pub(crate) previous: &'a [[u8; 32]],
    /// Numbers of the frames that may have changed, ascending; without it any may.
    pub(crate) dirty: Option<&'a [u64]>,
}

impl Scanner<'_> {
    /// Scans all memory on all cores. What differs in a window goes to `take`, from several threads and only roughly in
    /// ascending order, until that breaks off.
    ///
    /// The threads take one window after the other and never wait for each other: on a host whose cores are busy with
    /// something else, a rendezvous for every few windows made a pause ten times as long.
    pub(crate) fn run(&self, take: impl Fn(&Window, Changes) -> ControlFlow<()> + Sync) {
        let feed = Mutex::new((windows(self.memory.regions()), Holes::default()));
        let next = || {
            let mut feed = feed.lock().unwrap_or_else(PoisonError::into_inner);
            let (windows, holes) = &mut *feed;
            let window = windows.next()?;
            Some((window, holes.within(self.memory, window.start..window.end())))
        };
        let work = || {
            while let Some((window, holes)) = next() {
                if take(&window, self.scan(window, &holes)).is_break() {
                    break;
                }
            }
        };
        let helpers = thread::available_parallelism().map_or(0, |cores| cores.get() - 1);
        thread::scope(|scope| {
            for _ in 0..helpers {
                // Where no thread is to be had this one does it all.
                let _ = thread::Builder::new().name("scan".to_owned()).spawn_scoped(scope, work);
            }
            work();
        });
    }

    fn scan(&self, window: Window, holes: &[Range<Gpa>]) -> Changes {
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
    /// The holes in the window.
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
        if let Some(numbers) = self.dirty {
            return self.run_dirty(numbers);
        }
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

    /// Reads no frame but the dirty ones.
    fn run_dirty(&self, numbers: &[u64]) -> Changes {
        let mut buffers = vec![*ZERO_PAGE; numbers.len()];
        let mut pages: Vec<Option<&Page>> = vec![None; self.window.frames as usize];
        for (number, buffer) in numbers.iter().zip(&mut buffers) {
            let index = (number - self.window.first) as usize;
            let at = self.window.at(index);
            let page = match self.memory.slice(at, PAGE_SIZE).and_then(<[u8]>::first_chunk) {
                Some(page) => Some(page),
                None => self.memory.read(at, buffer).is_ok().then_some(&*buffer),
            };
            if let Some(slot) = pages.get_mut(index) {
                *slot = page;
            }
        }
        self.compare(&pages)
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
