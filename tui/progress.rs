//! Progress of long work, on standard error and only when that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A progress bar that is wiped away when it is dropped.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// A bar for `total` steps of `what`.
    pub(crate) fn new(total: u64, what: &'static str, quiet: bool) -> Self {
        Self::with(total, what, quiet, "{msg} {wide_bar} {pos}/{len} {eta}")
    }

    /// A bar for `total` bytes of `what`.
    pub(crate) fn of_bytes(total: u64, what: &'static str, quiet: bool) -> Self {
        Self::with(total, what, quiet, "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    }

    fn with(total: u64, what: &'static str, quiet: bool, template: &str) -> Self {
        let target = if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(total), target).with_message(what);
        let bar = match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// That many steps are done in all.
    pub(crate) fn set(&self, done: u64) {
        self.0.set_position(done);
    }

    /// Some more steps are done.
    pub(crate) fn advance(&self, steps: u64) {
        self.0.inc(steps);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
