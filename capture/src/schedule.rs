//! When the next epoch is due: every interval from start to start, never two at once.

use std::time::Duration;

/// Says when epochs are due. Times are counted from the first epoch's start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    interval: Duration,
    /// When the next epoch is due.
    due: Duration,
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
        Self { interval, due: Duration::ZERO }
    }

    /// The next epoch, the last one having lasted from `began` until `now`. One that ends exactly when the next is due misses nothing,
    /// and one that began before it was due is not the one that is.
    pub(crate) fn next(&mut self, began: Duration, now: Duration) -> Next {
        if self.interval.is_zero() {
            return Next { at: now, missed: 0 };
        }
        if began < self.due {
            return Next { at: self.due.max(now), missed: 0 };
        }
        let late = now.saturating_sub(self.due).as_nanos();
        let ticks = late.div_ceil(self.interval.as_nanos()).max(1);
        let ticks = u32::try_from(ticks).unwrap_or(u32::MAX);
        self.due = self.due.saturating_add(self.interval.saturating_mul(ticks));
        Next { at: self.due.max(now), missed: u64::from(ticks) - 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What follows an epoch that lasted from one second to another.
    fn next(schedule: &mut Schedule, began: u32, now: u32) -> Next {
        schedule.next(SECOND * began, SECOND * now)
    }

    #[test]
    fn epochs_are_due_from_start_to_start() {
        let mut schedule = Schedule::new(SECOND * 10);
        assert_eq!(next(&mut schedule, 0, 3), Next { at: SECOND * 10, missed: 0 });
        assert_eq!(next(&mut schedule, 10, 20), Next { at: SECOND * 20, missed: 0 });
    }

    #[test]
    fn an_epoch_that_takes_too_long_misses_ticks_and_keeps_the_beat() {
        let mut schedule = Schedule::new(SECOND * 10);
        assert_eq!(next(&mut schedule, 0, 31), Next { at: SECOND * 40, missed: 3 });
        assert_eq!(next(&mut schedule, 40, 41), Next { at: SECOND * 50, missed: 0 });
    }

    #[test]
    fn an_epoch_that_was_not_due_takes_the_place_of_none() {
        let mut schedule = Schedule::new(SECOND * 10);
        assert_eq!(next(&mut schedule, 0, 1), Next { at: SECOND * 10, missed: 0 });
        assert_eq!(next(&mut schedule, 3, 4), Next { at: SECOND * 10, missed: 0 });
        assert_eq!(next(&mut schedule, 8, 12), Next { at: SECOND * 12, missed: 0 });
        assert_eq!(next(&mut schedule, 12, 13), Next { at: SECOND * 20, missed: 0 });
    }

    #[test]
    fn no_interval_means_no_waiting() {
        let mut schedule = Schedule::new(Duration::ZERO);
        assert_eq!(next(&mut schedule, 0, 1), Next { at: SECOND, missed: 0 });
    }

    #[test]
    fn nothing_overflows() {
        let mut schedule = Schedule::new(Duration::from_nanos(1));
        let next = schedule.next(Duration::ZERO, Duration::MAX);
        assert_eq!((next.at, next.missed), (Duration::MAX, u64::from(u32::MAX) - 1));
        let mut schedule = Schedule::new(Duration::MAX);
        assert_eq!(schedule.next(Duration::ZERO, SECOND), Next { at: Duration::MAX, missed: 0 });
    }
}
