//! A guest that is held still, and comes back whatever happens.

use crate::SourceError;
use crate::source::{Hold, Pause};

/// Holds a guest; lets it go when dropped, at the latest.
pub(crate) struct Held<'a> {
    pause: &'a dyn Pause,
    hold: Option<Hold>,
}

impl<'a> Held<'a> {
    pub(crate) fn take(pause: &'a dyn Pause) -> Result<Self, SourceError> {
        Ok(Self { pause, hold: Some(pause.pause()?) })
    }

    /// Why the guest stood still before we came, if it did.
    pub(crate) fn others_reason(&self) -> Option<&str> {
        match &self.hold {
            Some(Hold::Theirs(reason)) => Some(reason),
            _ => None,
        }
    }

    /// Lets the guest go, and tells whether it stood still all the time. What goes wrong is tried once more.
    pub(crate) fn release(mut self) -> Result<(), SourceError> {
        self.hold.take().map_or(Ok(()), |hold| release(self.pause, &hold))
    }
}

fn release(pause: &dyn Pause, hold: &Hold) -> Result<(), SourceError> {
    match pause.resume(hold) {
        Err(SourceError::Disturbed) => Err(SourceError::Disturbed),
        Err(_) => pause.resume(hold),
        Ok(()) => Ok(()),
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(hold) = self.hold.take() {
            // Only a panic leads here; it is reported itself.
            let _ = release(self.pause, &hold);
        }
    }
}
