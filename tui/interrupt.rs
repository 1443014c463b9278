//! Signals. Ctrl-C and SIGTERM: the first asks to finish the work in hand, the second to drop it, the third ends the process. SIGUSR1
//! asks a capture for an epoch at once.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use signal_hook::{
    consts::{SIGUSR1, TERM_SIGNALS},
    iterator::Signals,
};

/// What the user has asked for.
#[derive(Clone, Default)]
pub(crate) struct Interrupt {
    /// How often to stop.
    stop: Arc<AtomicUsize>,
    /// Not to wait.
    hurry: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes over SIGINT, SIGTERM, SIGQUIT and SIGUSR1.
    ///
    /// # Errors
    /// When the system refuses a handler or a thread.
    pub(crate) fn install() -> io::Result<Self> {
        let interrupt = Self::default();
        let mut signals = Signals::new(TERM_SIGNALS.iter().chain([&SIGUSR1]))?;
        let asked = interrupt.clone();
        thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in signals.forever() {
                if signal == SIGUSR1 {
                    asked.hurry.store(true, Ordering::Relaxed);
                } else if asked.stop.fetch_add(1, Ordering::Relaxed) == 2 {
                    // Nothing acknowledged is lost: an epoch is visible only when all of it is durable.
                    let advice =
                        "a guest that was held at this moment is let go by the same command, started again";
                    let _ =
                        writeln!(io::stderr(), "varve: ended at once, as asked for the third time; {advice}");
                    std::process::exit(128 + signal);
                }
            }
        })?;
        Ok(interrupt)
    }

    /// Whether the user asked to finish the work in hand and stop.
    pub(crate) fn finish(&self) -> bool {
        self.stop.load(Ordering::Relaxed) >= 1
    }

    /// Whether the user asked to drop the work in hand.
    pub(crate) fn drop_it(&self) -> bool {
        self.stop.load(Ordering::Relaxed) >= 2
    }

    /// Whether the user wants an epoch at once; says so once.
    pub(crate) fn hurry(&self) -> bool {
        self.hurry.swap(false, Ordering::Relaxed)
    }
}
