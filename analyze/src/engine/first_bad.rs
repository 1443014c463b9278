//! The first compromised epoch of a history, decided from verdicts alone.

use serde::Serialize;

/// What the scans say of one epoch as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything was looked at and nothing was found.
    Clean,
    /// Something was found.
    Bad,
    /// Nothing was found, but not everything could be looked at.
    Incomplete,
}

/// Where a history turns bad. Serialises as documented in `docs/json.md`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FirstBad {
    /// The first epoch with a finding.
    pub first_bad: Option<u64>,
    /// The last epoch before it (or of the history, when none is bad) that is proved clean.
    pub last_clean: Option<u64>,
    /// Epochs before the first bad one that could not be looked at completely: the intruder may have come in one.
    pub incomplete_epochs: Vec<u64>,
    /// Whether every epoch before the first bad one was looked at completely: only then is the answer exact.
    pub complete: bool,
}

impl FirstBad {
    /// Decides from `(epoch, verdict)` pairs in ascending order. Reads no further than the first bad one.
    ///
    /// Exact for histories that are not monotonic, in which an intruder comes and goes: no epoch is skipped.
    pub fn decide(verdicts: impl IntoIterator<Item = (u64, Verdict)>) -> Self {
        let mut answer = Self { complete: true, ..Self::default() };
        for (epoch, verdict) in verdicts {
            match verdict {
                Verdict::Clean => answer.last_clean = Some(epoch),
                Verdict::Incomplete => {
                    answer.complete = false;
                    answer.incomplete_epochs.push(epoch);
                }
                Verdict::Bad => {
                    answer.first_bad = Some(epoch);
                    break;
                }
            }
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::{FirstBad, Verdict::*};

    fn decide(verdicts: &[super::Verdict]) -> FirstBad {
        FirstBad::decide((0..).zip(verdicts.iter().copied()))
    }

    #[test]
    fn the_first_of_several_visits_is_named() {
        let answer = decide(&[Clean, Clean, Bad, Clean, Bad]);
        assert_eq!((answer.first_bad, answer.last_clean, answer.complete), (Some(2), Some(1), true));
    }

    #[test]
    fn a_clean_history_names_its_last_epoch() {
        let answer = decide(&[Clean, Clean]);
        assert_eq!((answer.first_bad, answer.last_clean, answer.complete), (None, Some(1), true));
    }

    #[test]
    fn an_unreadable_epoch_before_the_first_bad_one_makes_the_answer_inexact() {
        let answer = decide(&[Clean, Incomplete, Bad]);
        assert_eq!((answer.first_bad, answer.last_clean, answer.complete), (Some(2), Some(0), false));
        assert_eq!(answer.incomplete_epochs, [1]);
    }

    #[test]
    fn an_unreadable_epoch_behind_the_first_bad_one_does_not_matter() {
        assert!(decide(&[Bad, Incomplete]).complete);
        assert_eq!(decide(&[Bad]).last_clean, None);
    }

    #[test]
    fn an_empty_history_has_no_clean_epoch() {
        assert_eq!(decide(&[]), FirstBad { complete: true, ..FirstBad::default() });
    }
}
