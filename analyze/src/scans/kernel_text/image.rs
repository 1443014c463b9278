//! Code as it stands in one epoch.

use std::ops::Range;

use varve_formats::{Fault, Gva, PAGE_SIZE, VirtualMemory};

use crate::guest::Guest;
use crate::linux::patching::{Kprobe, Text};

/// Faults kept for one text.
const MAX_FAULTS: usize = 16;

/// The bytes of a text, with zeros for what could not be read.
pub(super) struct TextImage {
    pub(super) start: Gva,
    pub(super) bytes: Vec<u8>,
    /// Which bytes could not be read, ascending.
    pub(super) unread: Vec<Range<usize>>,
    /// Why, for the first of them.
    pub(super) faults: Vec<Fault>,
}

impl TextImage {
    /// Reads a text out of `guest`. A page that is known to be the same as that of another image is copied from there.
    pub(super) fn read(guest: &Guest<'_>, text: &Text<'_, '_>, known: Option<(&Guest<'_>, &Self)>) -> Self {
        let len = usize::try_from(text.len).unwrap_or(0);
        let mut image =
            Self { start: text.start, bytes: vec![0; len], unread: Vec::new(), faults: Vec::new() };
        for range in pages(text.start, len) {
            let at = Gva(text.start.0 + range.start as u64);
            let Some(page) = image.bytes.get_mut(range.clone()) else { break };
            let same = known.filter(|(other, _)| same_page(guest, other, at));
            if let Some(known) = same.and_then(|(_, known)| known.readable(&range)) {
                page.copy_from_slice(known);
            } else if let Err(fault) = guest.space().read(at, page) {
                page.fill(0);
                image.unread.push(range);
                if image.faults.len() < MAX_FAULTS {
                    image.faults.push(fault);
                }
            }
        }
        image
    }

    /// Puts back what stood there before these probes were armed.
    pub(super) fn disarm(&mut self, probes: &[(Gva, Kprobe)]) {
        for (at, probe) in probes {
            let offset = at.offset_from(self.start).and_then(|offset| usize::try_from(offset).ok());
            if let Some(code) = offset.and_then(|offset| self.bytes.get_mut(offset..)) {
                probe.restore(code);
            }
        }
    }

    /// Whether the byte could be read.
    pub(super) fn has(&self, offset: usize) -> bool {
        offset < self.bytes.len() && !self.unread.iter().any(|range| range.contains(&offset))
    }

    /// The bytes of a range within one page.
    fn readable(&self, range: &Range<usize>) -> Option<&[u8]> {
        self.bytes.get(range.clone()).filter(|_| self.has(range.start))
    }
}

/// The pages of a text of `len` bytes, as ranges of offsets from its start.
fn pages(start: Gva, len: usize) -> impl Iterator<Item = Range<usize>> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let here = start.0.wrapping_add(from as u64);
        let end = (from + (PAGE_SIZE - Gva(here).page_offset())).min(len);
        let range = from..end;
        from = end;
        (!range.is_empty()).then_some(range)
    })
}

/// Whether two epochs are known to have the same bytes in the page at `at`, without reading it.
fn same_page(one: &Guest<'_>, other: &Guest<'_>, at: Gva) -> bool {
    let identity = |guest: &Guest<'_>| {
        let found = guest.space().translate(at).ok()?;
        guest.memory().page_identity(found.gpa.gfn())
    };
    identity(one).is_some_and(|one| identity(other) == Some(one))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pages_cover_a_text_and_end_at_page_boundaries(start in 0u64..1 << 48, len in 0usize..20_000) {
            let mut next = 0;
            for range in pages(Gva(start), len) {
                prop_assert_eq!(range.start, next);
                prop_assert!(!range.is_empty());
                next = range.end;
                prop_assert!(next == len || (start + next as u64).is_multiple_of(PAGE_SIZE as u64));
            }
            prop_assert_eq!(next, len);
        }
    }

    #[test]
    fn probes_are_disarmed_only_inside_the_text() {
        let mut image =
            TextImage { start: Gva(0x1000), bytes: vec![0xcc; 4], unread: vec![2..4], faults: Vec::new() };
        let probe = Kprobe { opcode: 0x55, detour: None };
        image.disarm(&[(Gva(0x1001), probe.clone()), (Gva(0x1004), probe.clone()), (Gva(0xfff), probe)]);
        assert_eq!(image.bytes, [0xcc, 0x55, 0xcc, 0xcc]);
        assert!(image.has(1) && !image.has(2) && !image.has(4));
    }
}
