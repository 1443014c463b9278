//! Naming epochs, as a user types it.
//!
//! | text | epoch |
//! | --- | --- |
//! | `7` | number 7 |
//! | `latest`, `latest~3` | the last one, the third before it |
//! | `@2026-11-23T04:00Z` | the last one taken at or before that moment (UTC unless it says otherwise) |
//! | `3fa9c1` | the one whose id begins so; at least four hexadecimal digits, and no other may begin so |
//! | `A..B`, `A..`, `..B`, `..` | from A to B, both included; from the first; to the last |
//!
//! Digits alone are a number if there is such an epoch, and the beginning of an id otherwise.

use std::ops::Range;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::{EpochId, EpochRecord};

/// Fewest digits of an id that name an epoch.
const MIN_PREFIX_LEN: usize = 4;

/// What of a record a name can refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochName {
    /// When the epoch was taken, in nanoseconds since 1970-01-01 UTC.
    pub taken_at_ns: i64,
    /// Its identity.
    pub id: EpochId,
}

impl From<&EpochRecord> for EpochName {
    fn from(record: &EpochRecord) -> Self {
        Self { taken_at_ns: record.taken_at_ns, id: record.id }
    }
}

/// A name that names no epoch, or more than one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The VM has no epochs at all.
    #[error("there are no epochs yet")]
    Empty,
    /// The number, or the distance from the last, is beyond the epochs there are.
    #[error("there is no epoch {text}: there are {count}, counted from 0")]
    OutOfRange {
        /// What was asked for.
        text: String,
        /// How many epochs there are.
        count: usize,
    },
    /// All epochs were taken later.
    #[error("no epoch was taken at or before {text}")]
    TooEarly {
        /// The moment asked for.
        text: String,
    },
    /// No id begins with this.
    #[error("no epoch has an id that begins with {text}")]
    UnknownId {
        /// The digits asked for.
        text: String,
    },
    /// More than one id begins with this.
    #[error("{count} epochs have an id that begins with {text}: give more digits")]
    Ambiguous {
        /// The digits asked for.
        text: String,
        /// How many ids begin with them.
        count: usize,
    },
    /// The range ends before it begins.
    #[error("the range {text} ends before it begins")]
    Backwards {
        /// What was asked for.
        text: String,
    },
    /// None of the known forms.
    #[error(
        "{text:?} does not name an epoch: use a number, latest, latest~N, @TIME such as @2026-11-23T04:00Z, or four or \
         more digits of an id"
    )]
    Malformed {
        /// What was asked for.
        text: String,
    },
}

/// The number of the epoch `text` names, among a VM's epochs in order from 0.
///
/// # Errors
/// [`SpecError`], which says why it names none.
pub fn resolve(text: &str, epochs: &[EpochName]) -> Result<u64, SpecError> {
    let last = epochs.len().checked_sub(1).ok_or(SpecError::Empty)?;
    if let Some(rest) = text.strip_prefix("latest") {
        return before_last(text, rest, last).map(|index| index as u64);
    }
    if let Some(moment) = text.strip_prefix('@') {
        return at_or_before(text, moment, epochs).map(|index| index as u64);
    }
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number && let Some(number) = text.parse::<usize>().ok().filter(|number| *number <= last) {
        return Ok(number as u64);
    }
    if text.len() >= MIN_PREFIX_LEN && text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return with_prefix(text, epochs, is_number).map(|index| index as u64);
    }
    match is_number {
        true => Err(SpecError::OutOfRange { text: text.to_owned(), count: epochs.len() }),
        false => Err(SpecError::Malformed { text: text.to_owned() }),
    }
}

/// The numbers of the epochs a range names; a single name is a range of one.
///
/// # Errors
/// As [`resolve`], and [`SpecError::Backwards`].
pub fn resolve_range(text: &str, epochs: &[EpochName]) -> Result<Range<u64>, SpecError> {
    let Some((from, to)) = text.split_once("..") else {
        let number = resolve(text, epochs)?;
        return Ok(number..number + 1);
    };
    let last = epochs.len().checked_sub(1).ok_or(SpecError::Empty)? as u64;
    let from = if from.is_empty() { 0 } else { resolve(from, epochs)? };
    let to = if to.is_empty() { last } else { resolve(to, epochs)? };
    match from <= to {
        true => Ok(from..to + 1),
        false => Err(SpecError::Backwards { text: text.to_owned() }),
    }
}

/// `latest` and `latest~N`; `rest` is what follows `latest`.
fn before_last(text: &str, rest: &str, last: usize) -> Result<usize, SpecError> {
    let malformed = || SpecError::Malformed { text: text.to_owned() };
    let distance = match rest.strip_prefix('~') {
        None if rest.is_empty() => 0,
        None => return Err(malformed()),
        Some(digits) if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            return Err(malformed());
        }
        Some(digits) => digits.parse().unwrap_or(usize::MAX),
    };
    last.checked_sub(distance).ok_or_else(|| SpecError::OutOfRange { text: text.to_owned(), count: last + 1 })
}

fn at_or_before(text: &str, moment: &str, epochs: &[EpochName]) -> Result<usize, SpecError> {
    let moment = parse_moment(moment).ok_or_else(|| SpecError::Malformed { text: text.to_owned() })?;
    let found = epochs.iter().rposition(|epoch| i128::from(epoch.taken_at_ns) <= moment.as_nanosecond());
    found.ok_or_else(|| SpecError::TooEarly { text: text.to_owned() })
}

/// A timestamp with an offset, or a date with or without a time in UTC.
fn parse_moment(text: &str) -> Option<Timestamp> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Some(moment);
    }
    let moment: DateTime = text.parse().ok()?;
    TimeZone::UTC.to_timestamp(moment).ok()
}

fn with_prefix(text: &str, epochs: &[EpochName], is_number: bool) -> Result<usize, SpecError> {
    let prefix = text.to_ascii_lowercase();
    let mut matching =
        epochs.iter().enumerate().filter(|(_, epoch)| epoch.id.to_string().starts_with(&prefix));
    match (matching.next(), matching.count()) {
        (Some((index, _)), 0) => Ok(index),
        (Some(_), others) => Err(SpecError::Ambiguous { text: text.to_owned(), count: others + 1 }),
        (None, _) if is_number => Err(SpecError::OutOfRange { text: text.to_owned(), count: epochs.len() }),
        (None, _) => Err(SpecError::UnknownId { text: text.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn epochs() -> Vec<EpochName> {
        let start = "2026-11-23T04:00Z".parse::<Timestamp>().unwrap().as_nanosecond() as i64;
        let ids = ["abcd1", "abcd2", "12345", "0077", "99999"];
        let id = |text: &str| {
            let mut id = [0; 32];
            for (at, digit) in text.chars().enumerate() {
                id[at / 2] |= (digit.to_digit(16).unwrap() as u8) << if at % 2 == 0 { 4 } else { 0 };
            }
            EpochId(id)
        };
        let taken = |n: usize| start + n as i64 * 60_000_000_000;
        ids.iter().enumerate().map(|(n, text)| EpochName { taken_at_ns: taken(n), id: id(text) }).collect()
    }

    fn said(text: &str) -> String {
        match resolve_range(text, &epochs()) {
            Ok(range) => format!("{}..{}", range.start, range.end),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn every_way_to_name_an_epoch() {
        for (text, expected) in [
            ("0", "0..1"),
            ("4", "4..5"),
            ("latest", "4..5"),
            ("latest~0", "4..5"),
            ("latest~4", "0..1"),
            ("@2026-11-23T04:00Z", "0..1"),
            ("@2026-11-23T04:01:59Z", "1..2"),
            ("@2026-11-23T05:02:00+01:00", "2..3"),
            ("@2026-11-23T04:03", "3..4"),
            ("@2026-11-24", "4..5"),
            ("abcd2", "1..2"),
            ("ABCD2", "1..2"),
            ("1234", "2..3"),
            ("007700", "3..4"),
            ("1..3", "1..4"),
            ("..", "0..5"),
            ("latest~2..", "2..5"),
            ("..@2026-11-23T04:01Z", "0..2"),
            ("2..2", "2..3"),
        ] {
            assert_eq!(said(text), expected, "{text}");
        }
    }

    #[test]
    fn every_way_not_to() {
        for (text, expected) in [
            ("5", "there is no epoch 5: there are 5, counted from 0"),
            ("55555", "there is no epoch 55555: there are 5, counted from 0"),
            ("latest~5", "there is no epoch latest~5: there are 5, counted from 0"),
            (
                "latest~99999999999999999999",
                "there is no epoch latest~99999999999999999999: there are 5, counted from 0",
            ),
            ("@2026-11-23T03:59:59Z", "no epoch was taken at or before @2026-11-23T03:59:59Z"),
            ("abcd", "2 epochs have an id that begins with abcd: give more digits"),
            ("abce", "no epoch has an id that begins with abce"),
            ("3..1", "the range 3..1 ends before it begins"),
        ] {
            assert_eq!(said(text), expected, "{text}");
        }
        for text in ["", "abc", "latest~", "latest~x", "latests", "@", "@noon", "-1", "x..1", &"a".repeat(65)]
        {
            assert!(said(text).contains("does not name an epoch"), "{text}: {}", said(text));
        }
        assert_eq!(resolve("latest", &[]), Err(SpecError::Empty));
        assert_eq!(resolve_range("..", &[]), Err(SpecError::Empty));
    }

    proptest! {
        #[test]
        fn any_text_is_a_range_of_epochs_or_an_error(text in ".{0,40}") {
            if let Ok(range) = resolve_range(&text, &epochs()) {
                prop_assert!(range.start < range.end && range.end <= 5);
            }
        }
    }
}
