//! Ctrl-C and SIGTERM: the first asks to finish the work in hand, the second to drop it, the third ends the process.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use signal_hook::{consts::TERM_SIGNALS, iterator::Signals};

/// How often the user has asked to stop.
#[derive(Clone)]
pub(crate) struct Interrupt(Arc<AtomicUsize>);

impl Interrupt {
    /// Takes over SIGINT, SIGTERM and SIGQUIT.
    ///
    /// # Errors
    /// When the system refuses a handler or a thread.
    pub(crate) fn install() -> io::Result<Self> {
        let count = Arc::new(AtomicUsize::new(0));
        let mut signals = Signals::new(TERM_SIGNALS)?;
        let counter = Arc::clone(&count);
        thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in signals.forever() {
                if counter.fetch_add(1, Ordering::Relaxed) == 2 {
                    // Nothing acknowledged is lost: an epoch is visible only when all of it is durable.
                    std::process::exit(128 + signal);
                }
            }
        })?;
        Ok(Self(count))
    }

    /// Whether the user asked to finish the work in hand and stop.
    pub(crate) fn finish(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= 1
    }

    /// Whether the user asked to drop the work in hand.
    pub(crate) fn drop_it(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= 2
    }
}
