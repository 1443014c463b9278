//! The queue between the scan and the archive: bounded in bytes, so that a slow archive makes the pause longer and
//! never makes varve grow or lose a page.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::scan::Changes;

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
    queue: VecDeque<Vec<Changes>>,
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
    /// A queue for `limit_bytes` of copied pages. One block more may be held by whoever waits to queue it.
    pub(crate) fn new(limit_bytes: usize) -> Self {
        let state = State { queue: VecDeque::new(), bytes: 0, start: Start::AtOnce, end: None };
        Self { limit_bytes, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Says when the archive may begin.
    pub(crate) fn start(&self, start: Start) {
        self.state().start = start;
        self.changed.notify_all();
    }

    /// Queues a block, as soon as there is room for it; returns how long that took.
    pub(crate) fn push(&self, block: Vec<Changes>) -> Result<Duration, Broken> {
        let bytes = bytes_of(&block);
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
        state.bytes += bytes;
        state.queue.push_back(block);
        self.changed.notify_all();
        Ok(since.elapsed())
    }

    /// Says that all has been queued.
    pub(crate) fn finish(&self) {
        self.end(End::Scanned);
    }

    /// Gives up: queueing fails, and taking ends.
    pub(crate) fn give_up(&self) {
        self.end(End::Broken);
    }

    /// The next block; `None` when there will be none. Its bytes count until they are [released](Staging::release).
    pub(crate) fn pop(&self) -> Option<Vec<Changes>> {
        let mut state = self.state();
        loop {
            if state.end == Some(End::Broken) {
                return None;
            }
            let may_start = state.start == Start::AtOnce
                || state.end.is_some()
                || state.bytes.saturating_mul(2) > self.limit_bytes;
            if may_start && let Some(block) = state.queue.pop_front() {
                return Some(block);
            }
            if state.end.is_some() {
                return None;
            }
            state = self.wait(state);
        }
    }

    /// Gives the bytes of a block back.
    pub(crate) fn release(&self, block: Vec<Changes>) {
        let bytes = bytes_of(&block);
        drop(block);
        let mut state = self.state();
        state.bytes = state.bytes.saturating_sub(bytes);
        self.changed.notify_all();
    }

    fn end(&self, end: End) {
        let mut state = self.state();
        if state.end != Some(End::Broken) {
            state.end = Some(end);
        }
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

fn bytes_of(block: &[Changes]) -> usize {
    block.iter().map(Changes::bytes).sum()
}
