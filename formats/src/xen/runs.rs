//! A map over frames in which neighbours share an entry.

use std::collections::BTreeMap;

/// What a run of frames has: told for its first frame, and computed for those behind.
pub(crate) trait Run: Copy + PartialEq {
    /// The value `frames` further on.
    #[must_use]
    fn further(self, frames: u64) -> Self;
}

/// Values of frames, the last one set winning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Runs<V> {
    /// By first frame: the number of frames, and the first one's value.
    runs: BTreeMap<u64, (u64, V)>,
}

impl<V> Default for Runs<V> {
    fn default() -> Self {
        Self { runs: BTreeMap::new() }
    }
}

impl<V: Run> Runs<V> {
    /// Number of runs, which is what the map costs.
    pub(crate) fn len(&self) -> usize {
        self.runs.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The runs, ascending and disjoint: first frame, number of frames, value of the first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64, V)> + '_ {
        self.runs.iter().map(|(first, (count, value))| (*first, *count, *value))
    }

    pub(crate) fn get(&self, frame: u64) -> Option<V> {
        let (first, (count, value)) = self.runs.range(..=frame).next_back()?;
        let into = frame.checked_sub(*first).filter(|into| into < count)?;
        Some(value.further(into))
    }

    /// Whether one run has all of `count` frames from `first` on.
    pub(crate) fn covers(&self, first: u64, count: u64) -> bool {
        let before = self.runs.range(..=first).next_back();
        before.is_some_and(|(start, (len, _))| first.saturating_add(count) <= start.saturating_add(*len))
    }

    /// Sets `count` frames from `first` on, whose sum must not overflow.
    pub(crate) fn set(&mut self, first: u64, count: u64, value: V) {
        if count == 0 {
            return;
        }
        self.clear(first, count);
        let (mut first, mut count, mut value) = (first, count, value);
        let end = first.saturating_add(count);
        if let Some((before, (len, theirs))) = self.runs.range(..first).next_back()
            && before.saturating_add(*len) == first
            && theirs.further(*len) == value
        {
            (first, count, value) = (*before, count.saturating_add(*len), *theirs);
        }
        if let Some((len, theirs)) = self.runs.get(&end).copied()
            && value.further(count) == theirs
        {
            self.runs.remove(&end);
            count = count.saturating_add(len);
        }
        self.runs.insert(first, (count, value));
    }

    /// Takes `count` frames from `first` on out of the map.
    pub(crate) fn clear(&mut self, first: u64, count: u64) {
        if count == 0 {
            return;
        }
        let end = first.saturating_add(count);
        if let Some((before, (len, value))) = self.runs.range_mut(..first).next_back() {
            let (theirs, value) = (before.saturating_add(*len), *value);
            if theirs > first {
                let kept = first.saturating_sub(*before);
                *len = kept;
                if theirs > end {
                    let rest = value.further(end.saturating_sub(*before));
                    self.runs.insert(end, (theirs.saturating_sub(end), rest));
                }
            }
        }
        while let Some((inside, (len, value))) = self.runs.range(first..end).next().map(|(k, v)| (*k, *v)) {
            self.runs.remove(&inside);
            let theirs = inside.saturating_add(len);
            if theirs > end {
                let rest = value.further(end.saturating_sub(inside));
                self.runs.insert(end, (theirs.saturating_sub(end), rest));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An offset, which grows with the frame.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct At(u64);

    impl Run for At {
        fn further(self, frames: u64) -> Self {
            Self(self.0 + frames)
        }
    }

    proptest! {
        #[test]
        fn it_is_what_a_map_of_single_frames_is(
            steps in prop::collection::vec((0u64..40, 0u64..12, prop::option::of(0u64..4)), 0..40),
        ) {
            let mut runs = Runs::default();
            let mut plain = BTreeMap::new();
            for (first, count, value) in steps {
                for frame in first..first + count {
                    match value {
                        // Chosen so that runs often continue one another.
                        Some(value) => { plain.insert(frame, At(value * 100 + frame)); }
                        None => { plain.remove(&frame); }
                    }
                }
                match value {
                    Some(value) => runs.set(first, count, At(value * 100 + first)),
                    None => runs.clear(first, count),
                }
            }
            for frame in 0..60 {
                prop_assert_eq!(runs.get(frame), plain.get(&frame).copied());
            }
            let listed: Vec<_> = runs.iter().collect();
            let frames: u64 = listed.iter().map(|(_, count, _)| count).sum();
            prop_assert_eq!(frames, plain.len() as u64);
            for pair in listed.windows(2) {
                let (first, count, value) = pair[0];
                prop_assert!(first + count < pair[1].0 || value.further(count) != pair[1].2, "could be one run");
            }
        }
    }
}
