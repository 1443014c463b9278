//! Who looks at an epoch: the gate knows only that somebody does.

use std::time::{Duration, Instant};

use varve_formats::Vcpu;

use super::mirror::Mirror;
use super::settings::Verdict;

/// What is to be looked at.
#[derive(Debug)]
pub struct Question<'a> {
    /// The number that the epoch has in the archive, or will have.
    pub epoch: u64,
    /// Its memory, which does not change until there is an answer or the judge was told to stop; with what is different from the one
    /// that was begun with before.
    pub mirror: &'a Mirror,
    /// Its registers.
    pub vcpus: &'a [Vcpu],
}

/// Looks at epochs, one at a time.
pub trait Judge: Send {
    /// Begins to look. An answer to an earlier question is not wanted any more.
    ///
    /// # Errors
    /// Why nobody can look.
    fn begin(&mut self, question: &Question<'_>) -> Result<(), String>;

    /// Waits for the answer until then. `None`: there is none yet. It comes once, with the time it took.
    fn answer(&mut self, until: Instant) -> Option<(Verdict, Duration)>;

    /// Makes sure that nobody looks at the mirror any more.
    fn stop(&mut self);
}
