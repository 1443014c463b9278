//! Where a page is stored.

use std::fmt;

/// Pages in a full pack.
pub const PACK_PAGES: usize = 64;

/// `log2(PACK_PAGES)`.
const SLOT_BITS: u32 = PACK_PAGES.trailing_zeros();

/// The last pack number the format can name.
pub(crate) const MAX_PACK: u64 = (1 << 48) - 1;

/// The name of a stored page: the pack that holds it and its slot there.
///
/// An archive stores a page once, so within one archive two frames have equal names exactly when they hold equal bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct PageId(u64);

impl PageId {
    /// The page of zeros, which is not stored. (Packs are numbered from 1.)
    pub const ZERO: Self = Self(0);

    /// No page: the frame has no content.
    pub const ABSENT: Self = Self(u64::MAX);

    /// The page in `slot` of `pack`, or `None` when there cannot be such a page.
    pub const fn new(pack: u64, slot: usize) -> Option<Self> {
        if pack == 0 || pack > MAX_PACK || slot >= PACK_PAGES {
            return None;
        }
        Some(Self(pack << SLOT_BITS | slot as u64))
    }

    /// The name as a number: 0 is [`PageId::ZERO`], 2^64-1 is [`PageId::ABSENT`].
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The inverse of [`PageId::get`], or `None` for a number that names nothing.
    pub const fn from_raw(raw: u64) -> Option<Self> {
        if raw == Self::ZERO.0 || raw == Self::ABSENT.0 {
            return Some(Self(raw));
        }
        Self::new(raw >> SLOT_BITS, (raw & (PACK_PAGES as u64 - 1)) as usize)
    }

    /// Whether a pack holds this page: it is neither [`PageId::ZERO`] nor [`PageId::ABSENT`].
    pub const fn is_stored(self) -> bool {
        self.0 != Self::ZERO.0 && self.0 != Self::ABSENT.0
    }

    /// The pack and the slot of a stored page.
    pub const fn location(self) -> Option<(u64, usize)> {
        if !self.is_stored() {
            return None;
        }
        Some((self.0 >> SLOT_BITS, (self.0 & (PACK_PAGES as u64 - 1)) as usize))
    }

    /// The page `count` slots further on, running over into the packs that follow.
    pub(crate) const fn following(self, count: u64) -> Option<Self> {
        if !self.is_stored() {
            return None;
        }
        match self.0.checked_add(count) {
            Some(raw) => Self::from_raw(raw),
            None => None,
        }
    }
}

impl fmt::Display for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (*self, self.location()) {
            (Self::ZERO, _) => f.write_str("zero"),
            (_, Some((pack, slot))) => write!(f, "{pack}.{slot}"),
            (_, None) => f.write_str("absent"),
        }
    }
}

impl fmt::Debug for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageId({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_at_the_edges() {
        assert_eq!(PageId::new(0, 0), None);
        assert_eq!(PageId::new(1, 64), None);
        assert_eq!(PageId::new(MAX_PACK + 1, 0), None);
        let last = PageId::new(MAX_PACK, 63).unwrap();
        assert_eq!(last.following(1), None);
        assert_eq!(last.location(), Some((MAX_PACK, 63)));
        assert_eq!(PageId::new(1, 63).unwrap().following(1), PageId::new(2, 0));
        assert_eq!(PageId::ZERO.following(1), None);
        assert_eq!(PageId::from_raw(5), None);
        assert_eq!(PageId::from_raw(u64::MAX), Some(PageId::ABSENT));
        assert_eq!(PageId::from_raw(64), PageId::new(1, 0));
    }

    #[test]
    fn names_read_well() {
        let names = [PageId::ZERO, PageId::ABSENT, PageId::new(7, 3).unwrap()].map(|id| id.to_string());
        assert_eq!(names, ["zero", "absent", "7.3"]);
    }
}
