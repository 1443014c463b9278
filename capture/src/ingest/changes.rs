//! The frames that differ, with copies of their pages.

use varve_formats::PAGE_SIZE;
use varve_store::hash::Page;
use varve_store::{Content, Digest, FrameChange};

/// What a frame holds now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Now {
    /// Zeros.
    Zero,
    /// Nothing.
    Absent,
    /// The page with this index among the copies.
    Page(usize),
}

/// The frames of a window that differ.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    /// Numbers of the frames, ascending.
    pub(crate) frames: Vec<(u64, Now)>,
    /// Copies of the pages.
    pub(crate) pages: Vec<Page>,
    /// The digests of the copies.
    pub(crate) digests: Vec<Digest>,
}

impl Changes {
    /// Bytes of the copies.
    pub(crate) fn bytes(&self) -> usize {
        self.pages.len() * PAGE_SIZE
    }

    /// The number of the first frame.
    pub(crate) fn first(&self) -> u64 {
        self.frames.first().map_or(0, |(frame, _)| *frame)
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

    /// Enters what the frames hold now into a table of digests, by frame number.
    pub(crate) fn enter(&self, table: &mut [[u8; 32]]) {
        for change in self.iter() {
            let slot = usize::try_from(change.frame).ok().and_then(|frame| table.get_mut(frame));
            if let Some(slot) = slot {
                *slot = match change.content {
                    Content::Zero => Digest::ZERO.0,
                    Content::Absent => Digest::ABSENT.0,
                    Content::Page { digest, .. } => digest.0,
                };
            }
        }
    }
}
