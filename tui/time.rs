//! Times as users read them: UTC, RFC 3339.

use jiff::Timestamp;

/// Nanoseconds since 1970 as `2026-11-23T04:00:00.123Z`, to the millisecond.
pub(crate) fn utc(nanoseconds: i64) -> String {
    let at = Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or_default();
    format!("{at:.3}")
}

#[cfg(test)]
mod tests {
    #[test]
    fn times_are_utc_to_the_millisecond() {
        assert_eq!(super::utc(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(super::utc(1_795_406_400_123_999_999), "2026-11-23T04:00:00.123Z");
    }
}
