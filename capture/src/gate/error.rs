//! How a gate fails. Whatever it held is still held.

use std::io;

use crate::output::OutputError;
use crate::{CaptureError, SourceError};

/// A gate that could not begin or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    /// This guest cannot be gated.
    #[error("{reason}")]
    Unsuitable {
        /// Why not.
        reason: String,
    },
    /// An earlier gate has frozen it.
    #[error(
        "the guest was frozen because of what was found in epoch {epoch}, and its packets are held. Roll it back (`varve rollback`), \
         or, if that is no harm after all, allow it in the policy and give --thaw: it goes on when an epoch passes"
    )]
    Frozen {
        /// The epoch.
        epoch: u64,
    },
    /// An earlier gate has put it into quarantine.
    #[error(
        "the guest is in quarantine on bridge {bridge:?}. Roll it back, or connect its cards to their bridge again and open the gate \
         (`varve gate --off`) before the next one begins"
    )]
    InQuarantine {
        /// The bridge.
        bridge: String,
    },
    /// Another gate is at work.
    #[error("another gate has the journal {path}: is this guest gated already?")]
    Busy {
        /// The journal.
        path: String,
    },
    /// The journal cannot be written: nothing is done that is not written down.
    #[error("the gate's journal cannot be written: {source}")]
    Journal {
        /// What the system says.
        source: io::Error,
    },
    /// The output buffer.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The guest.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// An epoch.
    #[error(transparent)]
    Capture(#[from] CaptureError),
}

impl From<GateError> for SourceError {
    fn from(error: GateError) -> Self {
        match error {
            GateError::Output(error) => Self::Output(error),
            GateError::Source(error) => error,
            other => Self::Refused { doing: "ending the interval".to_owned(), reason: other.to_string() },
        }
    }
}
