//! Synthetic guests and the model an archive is compared with.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;

use varve_formats::{Gpa, PAGE_SIZE, PhysicalMemory, Region};
use varve_store::hash::{Page, ZERO_PAGE, digest_page};
use varve_store::{Archive, Content, EpochMeta, EpochRecord, FrameChange, FrameLayout};

/// What a frame of the model holds: nothing, zeros, or the page grown from a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Absent,
    Zero,
    Seed(u64),
}

impl Frame {
    /// The bytes of the frame, if it has any.
    pub(crate) fn page(self) -> Option<Page> {
        match self {
            Self::Absent => None,
            Self::Zero => Some(ZERO_PAGE),
            Self::Seed(seed) => Some(page(seed)),
        }
    }
}

/// A page that compresses about as well as guest memory: a quarter noise, the rest repetition.
pub(crate) fn page(seed: u64) -> Page {
    let mut page = ZERO_PAGE;
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut page[..PAGE_SIZE / 4]);
    for at in PAGE_SIZE / 4..PAGE_SIZE {
        page[at] = page[at % 64];
    }
    page
}

/// Guest frame number to content.
pub(crate) type Guest = BTreeMap<u64, Frame>;

/// A guest with these runs of frames, all `frame`.
pub(crate) fn guest(runs: &[(u64, u64)], frame: Frame) -> Guest {
    runs.iter().flat_map(|(start, count)| *start..start + count).map(|gfn| (gfn, frame)).collect()
}

/// The regions of runs of frames.
pub(crate) fn regions(runs: &[(u64, u64)]) -> Vec<Region> {
    runs.iter().map(|(start, count)| Region { start: Gpa(start << 12), len: count << 12 }).collect()
}

/// Archives `guest` as the next epoch of `vm`, handing over only what changed, as a capture does.
pub(crate) fn commit(archive: &Archive, vm: &str, runs: &[(u64, u64)], guest: &Guest) -> EpochRecord {
    let regions = regions(runs);
    let layout = FrameLayout::new(&regions).unwrap();
    let mut writer = archive.begin(vm, &regions).unwrap();
    let pages: Vec<(u64, Option<Page>)> = guest
        .iter()
        .map(|(gfn, frame)| (layout.frame(varve_formats::Gfn(*gfn)).unwrap(), frame.page()))
        .collect();
    let previous = writer.previous().clone();
    let changes: Vec<FrameChange<'_>> = pages
        .iter()
        .map(|(frame, page)| FrameChange { frame: *frame, content: content(page.as_ref()) })
        .filter(|change| match change.content {
            Content::Page { digest, .. } => digest != previous.digest(change.frame),
            Content::Zero => previous.digest(change.frame) != varve_store::Digest::ZERO,
            Content::Absent => previous.digest(change.frame) != varve_store::Digest::ABSENT,
        })
        .collect();
    for batch in changes.chunks(100) {
        writer.store(batch).unwrap();
    }
    writer.commit(meta(vm)).unwrap()
}

pub(crate) fn content(page: Option<&Page>) -> Content<'_> {
    match page {
        None => Content::Absent,
        Some(page) if *page == ZERO_PAGE => Content::Zero,
        Some(page) => Content::Page { digest: digest_page(page), bytes: page },
    }
}

pub(crate) fn meta(source: &str) -> EpochMeta {
    EpochMeta { taken_at_ns: 1_700_000_000_000_000_000, source: source.into(), ..EpochMeta::default() }
}

/// Compares every byte of an epoch with the model.
pub(crate) fn assert_epoch(memory: &impl PhysicalMemory, runs: &[(u64, u64)], guest: &Guest) {
    assert_eq!(memory.regions(), regions(runs));
    for gfn in runs.iter().flat_map(|(start, count)| *start..start + count) {
        let mut found = [0x5a; PAGE_SIZE];
        let at = Gpa(gfn << 12);
        match guest.get(&gfn).copied().unwrap_or(Frame::Absent).page() {
            Some(page) => {
                memory.read(at, &mut found).unwrap();
                assert!(found == page, "guest frame {gfn:#x}");
            }
            None => assert_eq!(memory.read(at, &mut found), Err(varve_formats::Fault::NotCaptured { at })),
        }
    }
}
