//! A histogram of durations in constant memory.

use std::time::Duration;

/// Buckets a doubling is divided into: a quantile is at most a quarter too long.
const PER_DOUBLING: usize = 4;

/// Buckets: microseconds up to 2^32, over an hour.
const BUCKETS: usize = 32 * PER_DOUBLING;

/// How many durations fell into each of a row of buckets, each a quarter of a doubling wide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    count: u64,
    longest: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], count: 0, longest: Duration::ZERO }
    }
}

impl Histogram {
    /// Counts a duration.
    pub fn add(&mut self, duration: Duration) {
        if let Some(count) = self.counts.get_mut(bucket(duration)) {
            *count += 1;
        }
        self.count += 1;
        self.longest = self.longest.max(duration);
    }

    /// Number of durations.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// The longest.
    pub const fn longest(&self) -> Duration {
        self.longest
    }

    /// The duration that `percent` of them do not exceed, rounded up by at most a quarter; `None` without any.
    pub fn percentile(&self, percent: u32) -> Option<Duration> {
        let wanted = self.count.checked_mul(u64::from(percent.min(100)))?.div_ceil(100).max(1);
        let mut seen = 0;
        let bucket = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        Some(end_of(bucket).min(self.longest))
    }

    /// The buckets that are not empty, ascending: where each ends, and how many durations are in it.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled.map(|(bucket, count)| (end_of(bucket), *count))
    }
}

/// The bucket of a duration: that of the last microsecond it reaches into.
fn bucket(duration: Duration) -> usize {
    let micros = u64::from(u32::try_from(duration.as_micros()).unwrap_or(u32::MAX).max(1));
    let doubling = micros.ilog2() as usize;
    let within = ((micros - (1 << doubling)) * PER_DOUBLING as u64) >> doubling;
    (doubling * PER_DOUBLING + within as usize).min(BUCKETS - 1)
}

/// The shortest duration that belongs to the next bucket.
fn end_of(bucket: usize) -> Duration {
    let (doubling, within) = (bucket / PER_DOUBLING, (bucket % PER_DOUBLING) as u64);
    let start = 1u64 << doubling;
    Duration::from_micros(start + (start * (within + 1)).div_ceil(PER_DOUBLING as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_at_most_a_quarter_too_long() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(50), None);
        for millis in 1..=100 {
            histogram.add(Duration::from_millis(millis));
        }
        for percent in [1, 10, 50, 90, 99, 100] {
            let exact = Duration::from_millis(u64::from(percent));
            let told = histogram.percentile(percent).unwrap();
            assert!(told >= exact && told <= exact * 5 / 4, "{percent} %: {told:?}");
        }
        assert_eq!((histogram.count(), histogram.longest()), (100, Duration::from_millis(100)));
        assert_eq!(histogram.buckets().map(|(_, count)| count).sum::<u64>(), 100);
    }

    #[test]
    fn every_duration_has_a_bucket() {
        let mut histogram = Histogram::default();
        for duration in [Duration::ZERO, Duration::from_nanos(1), Duration::from_secs(1 << 40), Duration::MAX]
        {
            histogram.add(duration);
        }
        assert_eq!(histogram.buckets().map(|(_, count)| count).sum::<u64>(), 4);
        assert!(histogram.percentile(1).unwrap() <= Duration::from_micros(2));
    }

    #[test]
    fn buckets_ascend_and_contain_what_they_count() {
        for micros in 1..20_000 {
            let at = bucket(Duration::from_micros(micros));
            assert!(end_of(at) > Duration::from_micros(micros), "{micros}");
            assert!(at == 0 || end_of(at - 1) <= Duration::from_micros(micros), "{micros}");
        }
    }
}
