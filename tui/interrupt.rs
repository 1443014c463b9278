//! Signals. Ctrl-C and SIGTERM: the first asks to finish the work in hand, the second to drop it, the third ends the process. SIGUSR1
//! asks a capture for an epoch at once.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use signal_hook::{
    consts::{SIGUSR1, TERM_SIGNALS},
    iterator::Signals,
};

/// What is said when the process ends at once.
const LAST_WORDS: &str = "varve: ended at once, as asked for the third time; a guest that was held is let go by its next capture or gate";

/// How long that may take: whoever reads it may have stopped reading.
const SAYING: Duration = Duration::from_millis(100);

/// What the user has asked for.
#[derive(Clone, Default)]
pub(crate) struct Interrupt {
    /// How often to stop.
    stop: Arc<AtomicUsize>,
    /// Not to wait.
    hurry: Arc<AtomicBool>,
}

/// Prints a line to standard error, unless that takes too long.
fn say(line: &'static str) {
    let (said, done) = mpsc::channel();
    thread::spawn(move || {
        let _ = writeln!(io::stderr(), "{line}");
        let _ = said.send(());
    });
    let _ = done.recv_timeout(SAYING);
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
                    say(LAST_WORDS);
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
