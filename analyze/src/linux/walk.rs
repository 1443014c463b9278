//! What a walk through guest structures gives, and what keeps it finite.

use std::collections::HashSet;

use varve_formats::{Fault, Gva};

/// Faults kept by one walk; a hostile guest can produce any number.
pub const MAX_FAULTS: usize = 64;

/// What a walk saw, what it could not read, and whether it saw everything. Only a complete walk shows that something is
/// *not* there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk<T> {
    /// What was seen, in the order of the structure.
    pub items: Vec<T>,
    /// What could not be read, the first [`MAX_FAULTS`] of it.
    pub faults: Vec<Fault>,
    /// Whether the walk reached the end of the structure and read all of it.
    pub complete: bool,
}

impl<T> Default for Walk<T> {
    fn default() -> Self {
        Self { items: Vec::new(), faults: Vec::new(), complete: true }
    }
}

impl<T> Walk<T> {
    /// Records something that could not be read: the walk is no longer complete.
    pub fn fault(&mut self, fault: Fault) {
        self.complete = false;
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(fault);
        }
    }

    /// Adds an item, or the fault that kept it from being read.
    pub fn push(&mut self, item: Result<T, Fault>) {
        match item {
            Ok(item) => self.items.push(item),
            Err(fault) => self.fault(fault),
        }
    }

    /// The value, or `None` and the fault on record.
    pub fn try_or_note<U>(&mut self, value: Result<U, Fault>) -> Option<U> {
        value.map_err(|fault| self.fault(fault)).ok()
    }

    /// Takes over the faults of a walk that was part of this one, and gives what it saw.
    pub fn absorb<U>(&mut self, part: Walk<U>) -> Vec<U> {
        self.complete &= part.complete;
        let room = MAX_FAULTS.saturating_sub(self.faults.len());
        self.faults.extend(part.faults.into_iter().take(room));
        part.items
    }

    /// Reads an item at each place that another walk found.
    pub(crate) fn read_each(places: Walk<Gva>, mut read: impl FnMut(Gva) -> Result<T, Fault>) -> Self {
        let mut walk = Self::default();
        for place in walk.absorb(places) {
            walk.push(read(place));
        }
        walk
    }
}

/// The places a walk has been to. Each is entered once, and only so many.
pub(crate) struct Seen {
    what: &'static str,
    limit: usize,
    places: HashSet<u64>,
}

impl Seen {
    /// For a walk through `what`, with at most `limit` places.
    pub(crate) fn new(what: &'static str, limit: usize) -> Self {
        Self { what, limit, places: HashSet::new() }
    }

    /// Enters `place`.
    ///
    /// # Errors
    /// [`Fault::Malformed`] when the walk has been there: the structure loops. [`Fault::Limit`] when it is larger than
    /// anything real.
    pub(crate) fn enter(&mut self, place: Gva) -> Result<(), Fault> {
        if self.places.len() >= self.limit {
            return Err(Fault::Limit { what: self.what, limit: self.limit as u64, at: place.0 });
        }
        if !self.places.insert(place.0) {
            return Err(Fault::Malformed { what: self.what, at: place.0 });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_kept_up_to_a_limit_and_never_forgotten() {
        let mut walk = Walk::<u8>::default();
        for at in 0..100 {
            walk.push(Err(Fault::Overflow { at }));
        }
        assert_eq!((walk.faults.len(), walk.complete), (MAX_FAULTS, false));
        let mut whole = Walk::<u8>::default();
        whole.push(Ok(1));
        assert!(whole.absorb(walk).is_empty());
        assert_eq!((whole.items.as_slice(), whole.complete), ([1].as_slice(), false));
    }

    #[test]
    fn a_place_is_entered_once_and_only_so_many() {
        let mut seen = Seen::new("test list", 2);
        assert_eq!(seen.enter(Gva(1)), Ok(()));
        assert_eq!(seen.enter(Gva(1)), Err(Fault::Malformed { what: "test list", at: 1 }));
        assert_eq!(seen.enter(Gva(2)), Ok(()));
        assert_eq!(seen.enter(Gva(3)), Err(Fault::Limit { what: "test list", limit: 2, at: 3 }));
    }
}
