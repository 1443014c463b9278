//! The queue between the scan and the archive: bounded in bytes, so that a slow archive makes the pause longer and
//! never makes varve grow or lose a page.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::changes::Changes;

/// Most bytes taken from the queue at a time.
const BATCH_BYTES: usize = 16 << 20;

/// When the archive may begin to work on what is queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// At once.
    AtOnce,
    /// When the scan is over, or the queue half full: the guest is held, and the cores are better used to let it go.
    WhenScanned,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Staging {
    limit_bytes: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Changes>,
    /// Bytes queued, and bytes the archive is working on.
    bytes: usize,
    start: Start,
    end: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// All has been queued.
    Scanned,
    /// Nobody takes anything any more, or nobody wants it.
    Broken,
}

/// The other side has given up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken;

impl Staging {
    /// A queue for `limit_bytes` of copied pages. A window more may be held by each thread that waits to queue it.
    pub(crate) fn new(limit_bytes: usize) -> Self {
        let state = State { queue: VecDeque::new(), bytes: 0, start: Start::AtOnce, end: None };
        Self { limit_bytes, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Says when the archive may begin.
    pub(crate) fn start(&self, start: Start) {
        self.state().start = start;
        self.changed.notify_all();
    }

    /// Waits until the archive has taken all that is queued: what is queued from here on comes after it. Within a batch
    /// the order is that of the frames, and a frame must not be in one batch twice.
    pub(crate) fn drain(&self) -> Result<(), Broken> {
        let mut state = self.state();
        while state.end.is_none() && !state.queue.is_empty() {
            state = self.wait(state);
        }
        state.end.map_or(Ok(()), |_| Err(Broken))
    }

    /// Queues changes, as soon as there is room for them; returns how long that took.
    pub(crate) fn push(&self, changes: Changes) -> Result<Duration, Broken> {
        let bytes = changes.bytes();
        let since = Instant::now();
        let mut state = self.state();
        while state.end.is_none() && state.bytes > 0 && state.bytes.saturating_add(bytes) > self.limit_bytes {
            // Whoever waits for room must not wait for somebody who waits for the scan to be over.
            state.start = Start::AtOnce;
            self.changed.notify_all();
            state = self.wait(state);
        }
        if state.end.is_some() {
            return Err(Broken);
        }
        if !changes.frames.is_empty() {
            state.bytes += bytes;
            state.queue.push_back(changes);
            self.changed.notify_all();
        }
        Ok(since.elapsed())
    }

    /// Says that all has been queued.
    pub(crate) fn finish(&self) {
        self.end(End::Scanned);
    }

    /// Gives up, unless all has been queued: queueing fails, and taking ends.
    pub(crate) fn give_up(&self) {
        self.end(End::Broken);
    }

    /// The next changes, ascending by frame; `None` when there will be none. Their bytes count until they are
    /// [released](Staging::release).
    pub(crate) fn pop(&self) -> Option<Vec<Changes>> {
        let mut state = self.state();
        loop {
            if state.end == Some(End::Broken) || state.end.is_some() && state.queue.is_empty() {
                return None;
            }
            let may_start = state.start == Start::AtOnce
                || state.end.is_some()
                || state.bytes.saturating_mul(2) > self.limit_bytes;
            if may_start && !state.queue.is_empty() {
                let mut batch = state.take_batch();
                self.changed.notify_all();
                batch.sort_unstable_by_key(Changes::first);
                return Some(batch);
            }
            state = self.wait(state);
        }
    }

    /// Gives the bytes of changes back.
    pub(crate) fn release(&self, batch: Vec<Changes>) {
        let bytes: usize = batch.iter().map(Changes::bytes).sum();
        drop(batch);
        let mut state = self.state();
        state.bytes = state.bytes.saturating_sub(bytes);
        self.changed.notify_all();
    }

    fn end(&self, end: End) {
        self.state().end.get_or_insert(end);
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take_batch(&mut self) -> Vec<Changes> {
        let mut bytes = 0;
        let mut batch = Vec::new();
        while let Some(changes) = self.queue.pop_front() {
            bytes += changes.bytes();
            batch.push(changes);
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::changes::Now;
    use super::*;

    /// Changes of one frame, with a copy of one page.
    fn changes(frame: u64) -> Changes {
        Changes { frames: vec![(frame, Now::Page(0))], pages: vec![[0; 4096]], ..Changes::default() }
    }

    fn firsts(batch: Option<Vec<Changes>>) -> Vec<u64> {
        batch.unwrap().iter().map(Changes::first).collect()
    }

    #[test]
    fn what_is_queued_comes_out_in_order() {
        let staging = Staging::new(1 << 20);
        for frame in [5, 3, 4] {
            staging.push(changes(frame)).unwrap();
        }
        staging.push(Changes::default()).unwrap();
        assert_eq!(firsts(staging.pop()), [3, 4, 5]);
        staging.push(changes(1)).unwrap();
        staging.finish();
        assert_eq!(firsts(staging.pop()), [1]);
        assert!(staging.pop().is_none());
        assert_eq!(staging.push(changes(2)), Err(Broken));
    }

    /// A frame that was queued, and queued again with what it holds now: in one batch the old content could win.
    #[test]
    fn what_is_queued_after_draining_is_in_a_later_batch() {
        let staging = Staging::new(1 << 20);
        staging.push(changes(5)).unwrap();
        std::thread::scope(|scope| {
            let pusher = scope.spawn(|| {
                staging.drain().unwrap();
                staging.push(changes(3)).unwrap();
                staging.finish();
            });
            // Taken before the pusher is through, or after: never together.
            assert_eq!(firsts(staging.pop()), [5]);
            pusher.join().unwrap();
        });
        assert_eq!(firsts(staging.pop()), [3]);
        assert_eq!(staging.drain(), Err(Broken), "nothing more is queued");
    }

    #[test]
    fn a_full_queue_holds_the_scan_up_until_something_is_released() {
        let staging = Staging::new(2 * 4096);
        staging.start(Start::WhenScanned);
        let released = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let batch = staging.pop().unwrap();
                released.store(true, Ordering::SeqCst);
                staging.release(batch);
            });
            staging.push(changes(1)).unwrap();
            staging.push(changes(2)).unwrap();
            staging.push(changes(3)).unwrap();
            assert!(released.load(Ordering::SeqCst), "the third did not fit before");
        });
    }

    #[test]
    fn one_that_is_larger_than_the_limit_passes_alone() {
        let staging = Staging::new(1);
        staging.push(changes(1)).unwrap();
        assert_eq!(firsts(staging.pop()), [1]);
    }

    #[test]
    fn giving_up_lets_both_sides_go() {
        let staging = Staging::new(4096);
        staging.start(Start::WhenScanned);
        std::thread::scope(|scope| {
            let taker = scope.spawn(|| {
                // Not before the queue is more than half full; then the second push waits.
                staging.pop()
            });
            staging.push(changes(1)).unwrap();
            let pusher = scope.spawn(|| staging.push(changes(2)));
            assert_eq!(firsts(taker.join().unwrap()), [1]);
            staging.give_up();
            assert_eq!(pusher.join().unwrap(), Err(Broken));
        });
        assert!(staging.pop().is_none());
    }
}
