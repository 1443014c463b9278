//! When the next epoch is due: every interval from start to start, never two at once.

use std::time::Duration;

/// Says when epochs are due. Times are counted from the first epoch's start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    interval: Duration,
    /// When the last epoch was due.
    last: Duration,
}

/// What to do after an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Next {
    /// When the next epoch is due.
    pub(crate) at: Duration,
    /// How many times one was due while the last went on.
    pub(crate) missed: u64,
}

impl Schedule {
    /// Epochs every `interval`; zero means one right after the other.
    pub(crate) fn new(interval: Duration) -> Self {
        Self { interval, last: Duration::ZERO }
    }

    /// The next epoch, the last one having ended at `now`. One that ends exactly when the next is due misses nothing, and one that was
    /// not due changes nothing.
    pub(crate) fn next(&mut self, now: Duration) -> Next {
        if self.interval.is_zero() {
            return Next { at: now, missed: 0 };
        }
        if now < self.last {
            return Next { at: self.last, missed: 0 };
        }
        let late = now.saturating_sub(self.last).as_nanos();
        let ticks = late.div_ceil(self.interval.as_nanos()).max(1);
        let ticks = u32::try_from(ticks).unwrap_or(u32::MAX);
        self.last = self.last.saturating_add(self.interval.saturating_mul(ticks));
        Next { at: self.last.max(now), missed: u64::from(ticks) - 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn epochs_are_due_from_start_to_start() {
        let mut schedule = Schedule::new(SECOND * 10);
        assert_eq!(schedule.next(SECOND * 3), Next { at: SECOND * 10, missed: 0 });
        assert_eq!(schedule.next(SECOND * 20), Next { at: SECOND * 20, missed: 0 });
    }

    #[test]
    fn an_epoch_that_takes_too_long_misses_ticks_and_keeps_the_beat() {
        let mut schedule = Schedule::new(SECOND * 10);
        assert_eq!(schedule.next(SECOND * 31), Next { at: SECOND * 40, missed: 3 });
        assert_eq!(schedule.next(SECOND * 41), Next { at: SECOND * 50, missed: 0 });
    }

    #[test]
    fn an_epoch_between_two_that_are_due_moves_neither() {
        let mut schedule = Schedule::new(SECOND * 10);
        assert_eq!(schedule.next(SECOND), Next { at: SECOND * 10, missed: 0 });
        assert_eq!(schedule.next(SECOND * 4), Next { at: SECOND * 10, missed: 0 });
        assert_eq!(schedule.next(SECOND * 11), Next { at: SECOND * 20, missed: 0 });
    }

    #[test]
    fn no_interval_means_no_waiting() {
        let mut schedule = Schedule::new(Duration::ZERO);
        assert_eq!(schedule.next(SECOND), Next { at: SECOND, missed: 0 });
    }

    #[test]
    fn nothing_overflows() {
        let mut schedule = Schedule::new(Duration::from_nanos(1));
        let next = schedule.next(Duration::MAX);
        assert_eq!((next.at, next.missed), (Duration::MAX, u64::from(u32::MAX) - 1));
        assert_eq!(Schedule::new(Duration::MAX).next(SECOND), Next { at: Duration::MAX, missed: 0 });
    }
}
